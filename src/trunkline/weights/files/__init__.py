"""What getting weight files is made of; ``trunkline.weights.hub`` is the way in.

``places`` says what is asked for, ``cache`` and ``folder`` where it lies on this machine,
``download`` and ``huggingface`` how it comes here, ``verification`` whether it is still the same.
"""

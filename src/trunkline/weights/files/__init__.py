"""What getting weight files is made of; ``trunkline.weights.hub`` is the way in.

``places`` says what is asked for, ``cache`` and ``folder`` where it lies on this machine.
``addresses`` says which hosts may be asked, ``hosts`` asks, ``patience`` ends it; ``download`` and
``huggingface`` make files of the answers, ``recognition`` tells whether they are checkpoints, and
``verification`` whether they are still the same.
"""

"""What reading checkpoints is made of; ``trunkline.weights.checkpoint`` is the way in.

``records`` are notes of what a pickle describes, ``vocabulary`` says which names it may use,
``unpickling`` is the machine that reads it, ``torch_files`` the formats around it, and
``unwrapping`` finds the state dict in what was read.
"""

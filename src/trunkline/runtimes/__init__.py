"""A backbone on the engine that suits the machine, and the proof that it is the same backbone."""

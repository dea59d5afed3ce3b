"""Files → backbones: what is loaded is loaded whole, or not at all."""

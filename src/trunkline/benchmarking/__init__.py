"""How fast a backbone runs here, measured so that the figures can be compared."""

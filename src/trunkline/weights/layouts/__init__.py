"""One name table per upstream, read in both directions."""

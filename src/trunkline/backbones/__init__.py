"""What a backbone computes; knows nothing of files. Each family is one file."""

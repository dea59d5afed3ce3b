"""What hangs on a backbone."""

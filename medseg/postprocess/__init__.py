"""Clean label maps."""

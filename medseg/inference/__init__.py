"""Network and prepared image to scores."""

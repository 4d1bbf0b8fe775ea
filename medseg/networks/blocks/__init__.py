"""Building blocks of networks, for 2D and 3D."""

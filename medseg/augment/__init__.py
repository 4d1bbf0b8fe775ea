"""Random changes of a training patch, with an explicit generator."""

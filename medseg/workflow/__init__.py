"""The jobs, each a straight line of calls."""

"""Batches, one step, one loop."""

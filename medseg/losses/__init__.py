"""Losses as functions of (NetworkOutput, Batch)."""

"""Fingerprint and budget to plan: pure decisions, each with a reason."""

"""Slow and obviously right references."""

import numpy as np


def dice(one, two):
    """Dice of two masks voxel by voxel; 1 where both are empty."""
    both = sum(1 for a, b in zip(one.ravel(), two.ravel(), strict=True) if a and b)
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(two))
    return 2 * both / total if total else 1.0

"""Overlap of two masks, and which of their components meet."""

import math

import numpy as np
from jaxtyping import Bool
from scipy import ndimage


def dice(prediction: Bool[np.ndarray, "z y x"], reference: Bool[np.ndarray, "z y x"]) -> float:
    """2 |A and B| / (|A| + |B|) (Dice 1945); NaN if both are empty, 0 if one is.

    >>> dice(np.array([[[True, True, False]]]), np.array([[[False, True, True]]]))
    0.5
    """
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / total if total else math.nan


def iou(prediction: Bool[np.ndarray, "z y x"], reference: Bool[np.ndarray, "z y x"]) -> float:
    """|A and B| / |A or B| (Jaccard 1912); NaN if both are empty, 0 if one is."""
    union = int(np.count_nonzero(prediction | reference))
    return int(np.count_nonzero(prediction & reference)) / union if union else math.nan


def lesions(prediction: Bool[np.ndarray, "z y x"], reference: Bool[np.ndarray, "z y x"]) -> tuple[int, int, int]:
    """Components of the reference, how many of them are found, and false components of the prediction.

    A component (26 neighbours, 8 where z = 1) counts as found, or as true, if it shares one voxel or more with the
    other mask.

    >>> lesions(np.array([[[1, 0, 0, 0, 1, 0]]]) > 0, np.array([[[1, 1, 0, 0, 0, 0]]]) > 0)
    (1, 1, 1)
    """
    count, found = _touched(reference, prediction)
    predicted, true = _touched(prediction, reference)
    return count, found, predicted - true


def _touched(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Number of components of `mask`, and of those that share a voxel with `other`."""
    numbered, count = ndimage.label(mask, np.ones((3, 3, 3)))
    hit = np.unique(numbered[other])
    return int(count), int(np.count_nonzero(hit))

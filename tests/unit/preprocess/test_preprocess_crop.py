import numpy as np

from medseg.preprocess.crop import nonzero_box
from medseg.types.geometry import Box


def test_box_holds_the_nonzero_voxels_of_all_channels():
    array = np.zeros((2, 6, 7, 8), np.int16)
    array[0, 1, 2, 3] = -1
    array[1, 4, 5, 6] = 9
    assert nonzero_box(array) == Box((1, 2, 3), (5, 6, 7))


def test_an_empty_scan_is_not_cropped():
    assert nonzero_box(np.zeros((1, 2, 3, 4))) == Box((0, 0, 0), (2, 3, 4))


def test_a_full_scan_is_not_cropped():
    assert nonzero_box(np.full((1, 2, 3, 4), -1000)) == Box((0, 0, 0), (2, 3, 4))

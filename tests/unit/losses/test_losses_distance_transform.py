import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from medseg.losses.distance_transform import distance_within


@pytest.mark.parametrize(
    ("size", "spacing"), [((9, 14), (0.7, 0.3)), ((5, 9, 8), (3.0, 0.5, 0.5)), ((1, 7, 7), (1, 1, 2))]
)
@pytest.mark.parametrize("radius", [0.2, 1.5, 4.0, 100.0])
def test_distances_are_scipys_within_the_radius_and_infinite_beyond(size, spacing, radius):
    rng = np.random.default_rng(3)
    masks = rng.random((2, *size)) < 0.05
    masks[:, 0, ..., 0] = True
    true = np.stack([distance_transform_edt(~mask, sampling=spacing) for mask in masks])
    found = distance_within(torch.from_numpy(masks), spacing, radius).numpy()
    near = true <= radius
    np.testing.assert_allclose(found[near], true[near], rtol=1e-5)
    assert np.isinf(found[~near]).all()


def test_an_empty_mask_is_infinitely_far():
    assert torch.isinf(distance_within(torch.zeros(1, 4, 4, dtype=torch.bool), (1.0, 1.0), 9.0)).all()

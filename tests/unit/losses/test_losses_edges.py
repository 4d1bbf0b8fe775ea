"""Edge targets against scipy's morphology and loops over pixels."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.edges import at_module, canny, check_kind, edges_of, reference_masks

CASES = [((9, 7), (1.0, 1.0)), ((4, 6, 5), (1.0, 1.0, 1.0)), ((4, 6, 5), (5.0, 1.0, 1.0)), ((6, 5), (2.0, 1.0))]


def _random(size: tuple[int, ...], seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(ndimage.gaussian_filter(rng.standard_normal((2, 3, *size)), (0, 0) + (1,) * len(size)) > 0)


@pytest.mark.parametrize("kind", ["outer", "inner", "both"])
@pytest.mark.parametrize(("size", "spacing"), CASES)
def test_edges_are_morphological(size: tuple[int, ...], spacing: tuple[float, ...], kind: str) -> None:
    masks = _random(size)
    element = np.ones([1 if s > 2 * min(spacing) else 3 for s in spacing])
    edges, counts = edges_of(masks, torch.ones_like(masks), spacing, kind)  # type: ignore[arg-type]
    for i, m in np.ndenumerate(np.empty((2, 3))):
        mask = masks[i].numpy()
        wide = ndimage.binary_dilation(mask, element)
        thin = ndimage.binary_erosion(mask, element, border_value=1)
        slow = {"outer": wide & ~mask, "inner": mask & ~thin, "both": wide & ~thin}[kind]
        assert np.array_equal(edges[i].numpy(), slow)
        inside = ndimage.binary_erosion(np.ones(size, bool), element)
        assert np.array_equal(counts[i].numpy(), inside), m


def test_edges_next_to_what_is_unknown_or_beyond_the_image_do_not_count() -> None:
    target = torch.zeros(1, 1, 7, 7, dtype=torch.int64)
    target[:, :, 2:5, 2:5], target[:, :, 0, 6] = 1, -1
    masks, known = reference_masks(target, 2)
    _, counts = edges_of(masks, known, (1.0, 1.0), "both")
    slow = torch.zeros(7, 7, dtype=torch.bool)
    slow[1:6, 1:6] = True
    slow[1, 5] = False
    assert torch.equal(counts[0, 0], slow) and torch.equal(counts[0, 1], slow)


def test_an_ignored_border_is_no_edge() -> None:
    target = torch.ones(1, 1, 5, 6, dtype=torch.int64)
    target[..., 3:] = -1
    masks, known = reference_masks(target, 2)
    for kind in ("outer", "inner", "both"):
        edges, counts = edges_of(masks, known, (1.0, 1.0), kind)  # type: ignore[arg-type]
        assert not (edges & counts).any()


def test_classes_and_regions_become_one_mask_each() -> None:
    classes = torch.tensor([[[[0, 1, 2, -1]]]])
    masks, known = reference_masks(classes, 3)
    assert masks[0, :, 0].tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
    ]
    assert known[0, :, 0].tolist() == [[True, True, True, False]] * 3
    regions = torch.tensor([[[[0, 1]], [[-1, 1]]]])
    masks, known = reference_masks(regions, 2)
    assert masks[0, :, 0].tolist() == [[False, True], [False, True]]
    assert known[0, :, 0].tolist() == [[True, True], [False, True]]


def _slow_canny(mask: np.ndarray) -> np.ndarray:
    """Smoothing and gradient by scipy, then pixel by pixel."""
    smooth = ndimage.gaussian_filter(mask.astype(float), 1.0, mode="nearest")
    dy, dx = (ndimage.sobel(smooth, axis, mode="nearest") / 8 for axis in (0, 1))
    size, found = np.hypot(dy, dx), np.zeros(mask.shape, bool)
    padded = np.pad(size, 1)
    for y, x in np.ndindex(mask.shape):
        if size[y, x] < 0.1:
            continue
        octant = round(math.atan2(dy[y, x], dx[y, x]) / (math.pi / 4))
        step = {
            0: (0, 1),
            1: (1, 1),
            2: (1, 0),
            3: (1, -1),
            4: (0, -1),
            -1: (-1, 1),
            -2: (-1, 0),
            -3: (-1, -1),
            -4: (0, -1),
        }
        v, u = step[octant]
        toward, back = padded[y + 1 + v, x + 1 + u], padded[y + 1 - v, x + 1 - u]
        found[y, x] = size[y, x] > toward + 1e-4 and size[y, x] >= back - 1e-4
    return found


def test_canny_is_its_slow_form() -> None:
    masks = _random((24, 20), seed=3)
    found = canny(masks.float())
    for i in np.ndindex(2, 3):
        slow = _slow_canny(masks[i].numpy())
        assert (found[i].numpy() != slow).mean() < 0.01  # directions on the border of two octants
        assert slow.sum() > 10


def test_canny_draws_a_line_of_one_pixel_on_the_inside() -> None:
    mask = torch.zeros(1, 1, 15, 15)
    mask[:, :, 4:11, 4:11] = 1
    found = canny(mask)[0, 0]
    inner, _ = edges_of(mask > 0, mask >= 0, (1.0, 1.0), "inner")
    assert (found & ~inner[0, 0]).sum() == 0
    assert found[7].tolist() == [i in (4, 10) for i in range(15)]
    assert found.sum() >= inner.sum() - 4  # at most the corners are rounded off


def test_canny_keeps_a_circle_closed() -> None:
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    found = canny((torch.hypot(y, x) < 14)[None, None].float())[0, 0].numpy()
    outside, pieces = ndimage.label(~found)
    assert pieces >= 2 and outside[20, 20] != outside[0, 0]
    distance = np.hypot(y.numpy(), x.numpy())[found]
    assert abs(distance - 13.5).max() < 1.2


def test_wrong_kinds_are_refused() -> None:
    masks = torch.zeros(1, 1, 3, 3, 3, dtype=torch.bool)
    with pytest.raises(PlanError, match="2D"):
        edges_of(masks, ~masks, (1.0, 1.0, 1.0), "canny")
    with pytest.raises(PlanError, match="outer, inner, both, canny"):
        check_kind("sobel")


@pytest.mark.parametrize(("size", "small"), [((8, 12), (4, 3)), ((4, 8, 6), (4, 2, 3))])
def test_masks_shrink_by_their_share_and_edges_by_their_maximum(size: tuple[int, ...], small: tuple[int, ...]) -> None:
    masks = _random(size)
    edges, _ = edges_of(masks, torch.ones_like(masks), (1.0,) * len(size), "outer")
    mask, line = at_module(masks, edges, small)
    step = [n // m for n, m in zip(size, small, strict=True)]
    for place in np.ndindex(*small):
        block = (slice(None), slice(None), *(slice(p * s, (p + 1) * s) for p, s in zip(place, step, strict=True)))
        axes = tuple(range(2, masks.dim()))
        here = (slice(None), slice(None), *place)
        torch.testing.assert_close(mask[here], masks[block].float().mean(axes))
        torch.testing.assert_close(line[here], edges[block].float().amax(axes))


def test_a_line_of_one_voxel_survives_any_scale() -> None:
    edges = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    edges[..., 5, :] = True
    _, line = at_module(edges, edges, (2, 2))
    assert line[0, 0].tolist() == [[1.0, 1.0], [0.0, 0.0]]

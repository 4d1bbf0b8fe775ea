"""Windows that cover a volume, against brute force and MONAI."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from medseg.errors import BundleError, PlanError
from medseg.inference.sliding_window import averaged, mirrored, sliding_window
from medseg.inference.window import bell, starts, tile
from medseg.types.plan import Inference
from medseg.types.sides import Swap

CPU = torch.device("cpu")


def _whole(forward, image, patch, plan, *, outputs=1, batch=1):
    slabs = list(sliding_window(forward, image, patch, plan, outputs=outputs, device=CPU, batch=batch))
    row = 0
    for slab in slabs:
        assert slab.start == row and slab.scores.dtype == np.float32
        row += slab.scores.shape[1]
    assert row == image.shape[1]
    return np.concatenate([slab.scores for slab in slabs], axis=1)


def _image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _conv(outputs=3, channels=2):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(outputs, channels, 3, 3, 3, generator=generator)
    return lambda image: torch.nn.functional.conv3d(image, weight, padding=1)


@given(st.integers(1, 60), st.integers(1, 40), st.floats(0, 0.9))
@settings(max_examples=80, deadline=None)
def test_windows_cover_the_axis_with_the_overlap_that_was_asked(size, patch, overlap):
    first = starts(size, patch, overlap)
    assert first[0] == 0 and first[-1] == max(0, size - patch)
    gaps = np.diff(first)
    assert (gaps > 0).all() and (gaps <= max(1, np.ceil(patch * (1 - overlap)))).all()
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_tiles_come_slice_by_slice():
    boxes = tile((10, 8, 8), (4, 8, 4), 0.5)
    assert [box.start for box in boxes[:3]] == [(0, 0, 0), (0, 0, 2), (0, 0, 4)]
    assert all(box.shape == (4, 8, 4) for box in boxes)


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_impossible_overlap_is_refused(overlap):
    with pytest.raises(PlanError, match=r"inference.overlap"):
        starts(10, 4, overlap)


@pytest.mark.parametrize("patch", [1, 5, 16, 40])
def test_the_gaussian_is_symmetric_and_positive(patch):
    weight = bell(patch, "gaussian")
    np.testing.assert_array_equal(weight, weight[::-1])
    assert weight.min() >= 1e-3 and weight.max() <= 1


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("shape", [(9, 13, 7), (3, 4, 20), (70, 6, 6), (2, 2, 2)])
def test_an_identity_network_returns_the_image(shape, blend):
    image = _image(1, *shape)
    result = _whole(lambda x: x, image, (6, 5, 8), Inference(blend=blend), batch=3)
    np.testing.assert_allclose(result, image, rtol=0, atol=2e-6)


def test_constant_blend_equals_monai():
    image, network = _image(2, 16, 12, 20), _conv()
    ours = _whole(network, image, (8, 6, 8), Inference(0.5, "constant"), outputs=3)
    theirs = sliding_window_inference(torch.from_numpy(image)[None], (8, 6, 8), 1, network, overlap=0.5)
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(("shape", "patch", "batch"), [((11, 9, 10), (6, 4, 5), 2), ((5, 4, 12), (7, 6, 6), 1)])
def test_gaussian_blend_equals_brute_force(shape, patch, batch):
    image, network = _image(2, *shape), _conv()
    ours = _whole(network, image, patch, Inference(0.4, "gaussian"), outputs=3, batch=batch)

    lack = [max(0, p - n) for p, n in zip(patch, shape, strict=True)]
    padded = np.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in lack)])
    total, weights = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    bells = [bell(p, "gaussian").astype(float) for p in patch]
    weight = np.einsum("i,j,k->ijk", *bells)
    for z, y, x in product(*(starts(n, p, 0.4) for n, p in zip(padded.shape[1:], patch, strict=True))):
        cut = (slice(z, z + patch[0]), slice(y, y + patch[1]), slice(x, x + patch[2]))
        total[(slice(None), *cut)] += weight * network(torch.from_numpy(padded[(slice(None), *cut)])[None])[0].numpy()
        weights[cut] += weight
    inner = tuple(slice(n // 2, n // 2 + m) for n, m in zip(lack, shape, strict=True))
    np.testing.assert_allclose(ours, (total / weights)[(slice(None), *inner)], atol=1e-5)


def test_a_flat_patch_goes_slice_by_slice_in_batches():
    seen = []

    def network(x):
        seen.append(tuple(x.shape))
        return 2 * x

    image = _image(1, 7, 8, 8)
    result = _whole(network, image, (1, 8, 8), Inference(), batch=4)
    np.testing.assert_allclose(result, 2 * image, atol=1e-6)
    assert seen == [(4, 1, 1, 8, 8), (3, 1, 1, 8, 8)]


def test_mirrored_averaging_commutes_with_flips():
    network, plan = _conv(channels=1), Inference(0.5, "gaussian", (0, 1, 2))
    image = _image(1, 9, 8, 10)
    plain = _whole(network, image, (4, 4, 6), plan, outputs=3)
    for axis in (1, 2, 3):
        flipped = np.ascontiguousarray(np.flip(image, axis))
        np.testing.assert_allclose(
            np.flip(_whole(network, flipped, (4, 4, 6), plan, outputs=3), axis), plain, atol=1e-5
        )
    assert not np.allclose(_whole(network, image, (4, 4, 6), Inference(), outputs=3), plain, atol=1e-2)


def test_mirroring_runs_every_combination_once_and_leaves_the_window_alone():
    calls = []

    def network(x):
        calls.append(x.clone())
        return x

    window = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    before = window.clone()
    torch.testing.assert_close(mirrored(network, (0, 1, 2))(window), before)
    torch.testing.assert_close(window, before)
    assert len(calls) == 8 and len({tuple(call.flatten().tolist()) for call in calls}) == 8


def test_flipping_the_axis_between_the_sides_exchanges_channels_and_others_do_not():
    window = torch.randn(1, 3, 3, 4, 5)
    seen = []

    def network(x):
        seen.append(x.clone())
        return x

    def by_hand(axes):
        dims = [2 + axis for axis in axes]
        logits = window.flip(dims).flip(dims)
        return logits[:, [0, 2, 1]] if 2 in axes else logits

    every = [(), (0,), (2,), (0, 2)]
    expected = sum(by_hand(axes) for axes in every) / 4
    torch.testing.assert_close(mirrored(network, (0, 2), Swap(2, (0, 2, 1)))(window), expected)
    assert len(seen) == 4


def test_windows_cannot_exchange_channels_that_have_no_names():
    plan = Inference(mirror_axes=(2,), swap_axis=2, swap_labels=(("l", "r"),))
    with pytest.raises(PlanError, match=r"swap_labels.*no names"):
        _whole(lambda x: x, _image(1, 4, 4, 4), (4, 4, 4), plan)


def test_an_ensemble_is_the_mean_of_its_members():
    window = torch.ones(1, 1, 2, 2, 2)
    both = averaged([lambda x: 2 * x, lambda x: 5 * x])
    torch.testing.assert_close(both(window), 3.5 * window)


def test_wrong_outputs_and_nan_are_refused():
    image = _image(1, 4, 4, 4)
    with pytest.raises(BundleError, match="labels or patch"):
        _whole(lambda x: x, image, (4, 4, 4), Inference(), outputs=2)
    with pytest.raises(BundleError, match="NaN or Inf"):
        _whole(lambda x: x * float("nan"), image, (4, 4, 4), Inference())


def test_progress_counts_windows():
    seen = []
    image = _image(1, 8, 4, 4)
    list(sliding_window(lambda x: x, image, (4, 4, 4), Inference(), outputs=1, device=CPU, report=seen.append))
    assert [(p.done, p.total) for p in seen] == [(1, 3), (2, 3), (3, 3)]

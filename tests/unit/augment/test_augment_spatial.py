import math

import pytest
import torch
from scipy.ndimage import affine_transform

from medseg.augment import spatial
from medseg.augment.chain import AUGMENT, build_augment, margin
from medseg.augment.spatial import affine, centre_crop, mirror
from medseg.errors import PlanError
from medseg.types.plan import Step
from medseg.types.tensors import Patch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ball(shape, channels=1, values=(1,)):
    """An off-centre ball whose image equals its label, with one value per octant row."""
    axes = [torch.arange(n) - (n - 1) / 2 for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    inside = ((grid - 1.5) ** 2).sum(0) < (min(shape) / 3) ** 2
    labels = inside.to(torch.int16) * values[0]
    if len(values) > 1:
        labels = torch.where(inside & (grid[-1] > 1.5), values[1], labels).to(torch.int16)
    return Patch(labels.float()[None].repeat(channels, *[1] * len(shape)), labels[None])


@pytest.mark.parametrize("shape", [(12, 10), (8, 12, 10)])
def test_mirror_moves_labels_with_image(shape):
    patch = ball(shape)
    axes = [a for a in range(3 - len(shape), 3)]
    out = mirror(patch, generator(), axes=axes, p=1.0)
    assert torch.equal(out.image, patch.image.flip(list(range(1, len(shape) + 1))))
    assert torch.equal(out.labels[0].float(), out.image[0])


def test_mirror_flips_each_axis_half_of_the_time_and_only_the_named_ones():
    patch = Patch(torch.arange(8.0).reshape(1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.int16))
    rng, flipped = generator(), [0, 0, 0]
    for _ in range(400):
        corner = int(mirror(patch, rng, axes=[0, 2]).image[0, 0, 0, 0])
        for axis, weight in enumerate((4, 2, 1)):
            flipped[axis] += bool(corner & weight)
    assert flipped[1] == 0
    assert 150 < flipped[0] < 250 and 150 < flipped[2] < 250


def test_mirroring_the_slice_axis_of_a_2d_patch_is_refused():
    with pytest.raises(PlanError, match="cannot mirror"):
        mirror(ball((8, 8)), generator(), axes=[0])


@pytest.mark.parametrize("shape", [(12, 10), (8, 12, 10)])
def test_affine_without_angle_and_zoom_is_the_identity(shape):
    patch = ball(shape, channels=2, values=(3, 7))
    out = affine(patch, generator(), p=1.0, degrees=0.0, scale_low=1.0, scale_high=1.0)
    assert torch.allclose(out.image, patch.image, atol=1e-5)
    assert torch.equal(out.labels, patch.labels)


@pytest.mark.parametrize("in_plane", [False, True])
@pytest.mark.parametrize("values", [(1,), (2, 9), (300,), (1, 2)])
def test_affine_keeps_labels_on_the_image(values, in_plane):
    patch = ball((18, 24, 20), values=values)
    out = affine(patch, generator(3), p=1.0, in_plane=in_plane)
    assert not torch.equal(out.labels, patch.labels)
    known = torch.tensor([0, *values])
    nearest = (out.image[0][..., None] - known).abs().min(-1)
    certain = nearest.values < 1e-3  # between 0 and 9 lies a 2 that is none
    agree = out.labels[0][certain] == known[nearest.indices][certain]
    assert certain.float().mean() > 0.5 and agree.float().mean() > 0.995
    assert set(out.labels.unique().tolist()) <= {0, *values}
    assert out.labels.dtype == patch.labels.dtype


@pytest.mark.parametrize("shape", [(15, 17), (13, 15, 17)])
def test_affine_agrees_with_scipy(shape):
    torch.manual_seed(0)
    image = torch.randn(1, 1, *shape)
    matrix = spatial.rotation([0.3] if len(shape) == 2 else [0.3, -0.2, 0.4]) * 1.2
    labels = torch.zeros(1, 1, *shape, dtype=torch.int16)
    moved, _ = spatial._sample(image, labels, matrix, shape)
    centre = (torch.tensor(shape) - 1) / 2
    offset = centre - matrix @ centre
    want = affine_transform(image[0, 0].numpy(), matrix.numpy(), offset.numpy(), order=1, mode="grid-constant")
    assert abs(moved[0, 0].numpy() - want).max() < 1e-4


@pytest.mark.parametrize("shape", [(9, 10), (8, 9, 10)])
def test_many_labels_are_the_largest_interpolated_indicator(shape, monkeypatch):
    torch.manual_seed(1)
    labels = torch.randint(0, 7, (2, 1, *shape)).to(torch.int16) * 11
    matrix = spatial.rotation([0.4] if len(shape) == 2 else [0.3, 0.2, 0.1]) * 1.3
    image = torch.zeros(2, 1, *shape)
    _, voted = spatial._sample(image, labels, matrix, shape)
    monkeypatch.setattr(spatial, "_FEW", 99)
    _, indicators = spatial._sample(image, labels, matrix, shape)
    assert torch.equal(voted, indicators)


def test_rotation_turns_by_the_angle_and_zoom_above_one_sees_more():
    bar = torch.zeros(1, 33, 33)
    bar[0, 16, 4:29] = 1
    patch = Patch(bar, bar.to(torch.int16))
    matrix = spatial.rotation([math.pi / 2])
    turned, _ = spatial._sample(bar[None], patch.labels[None], matrix, (33, 33))
    assert torch.allclose(turned[0, 0], bar[0].T, atol=1e-4)
    small, _ = spatial._sample(bar[None], patch.labels[None], torch.eye(2) * 2, (33, 33))
    assert (small[0, 0, 16] > 0.4).sum() < 15


def test_what_was_loaded_around_the_patch_is_cropped_when_nothing_fires():
    patch = ball((20, 20, 20))
    out = affine(patch, generator(), p=0.0, size=(10, 12, 14))
    assert torch.equal(out.image, patch.image[:, 5:15, 4:16, 3:17])
    assert torch.equal(centre_crop(patch, (10, 12, 14)).labels, out.labels)


def test_margin_holds_a_turned_patch_so_that_no_padding_is_seen():
    size = (16, 16, 16)
    step = Step("affine", {"p": 1.0, "degrees": 30.0, "scale_low": 1.0, "scale_high": 1.0})
    loaded = margin([step], size)
    assert min(loaded) > 16
    full = Patch(torch.ones(1, *loaded), torch.ones(1, *loaded, dtype=torch.int16))
    function = build_augment([step], patch=size)
    for seed in range(5):
        out = function(full, generator(seed))
        assert out.image.shape == (1, *size)
        assert out.image.min() > 0.999 and out.labels.min() == 1


@pytest.mark.parametrize("in_plane", [False, True])
def test_margin_looks_ahead_at_what_a_patch_will_need(in_plane):
    size, step = (8, 16, 16), Step("affine", {"p": 0.5, "in_plane": in_plane})
    function, sizes = build_augment([step], patch=size), set()
    for seed in range(12):
        loaded = margin([step], size, generator(seed))
        full = Patch(torch.ones(1, *loaded), torch.ones(1, *loaded, dtype=torch.int16))
        out = function(full, generator(seed))
        assert out.image.shape == (1, *size) and out.image.min() > 0.999
        sizes.add(loaded)
    assert size in sizes and len(sizes) > 5


def test_margin_leaves_the_slice_axis_alone_in_plane():
    assert margin([Step("affine", {"in_plane": True})], (4, 32, 32))[0] == 4
    assert margin([Step("mirror")], (8, 8, 8)) == (8, 8, 8)


def test_unknown_steps_and_options_are_named():
    with pytest.raises(PlanError, match=r"training\.augment\[0\].*unknown name"):
        build_augment([Step("blurr")])
    with pytest.raises(PlanError, match="has no option sigma"):
        build_augment([Step("blur", {"sigma": 2.0})])


@pytest.mark.parametrize("shape", [(14, 12), (10, 14, 12)])
def test_the_whole_chain_repeats_with_the_generator_and_keeps_its_input(shape):
    names = [name for name in AUGMENT if name != "mirror" or len(shape) == 3]
    steps = [Step(name, {"p": 1.0}) for name in names]
    patch = ball(shape, channels=2, values=(1, 2))
    before = patch.image.clone(), patch.labels.clone()
    function = build_augment(steps)
    first, again, other = (function(patch, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.image, again.image) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.image, other.image)
    assert first.image.isfinite().all() and first.image.shape == patch.image.shape
    assert torch.equal(patch.image, before[0]) and torch.equal(patch.labels, before[1])

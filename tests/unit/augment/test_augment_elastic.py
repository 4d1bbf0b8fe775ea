import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from medseg.augment import elastic as module
from medseg.augment.elastic import elastic
from medseg.errors import PlanError
from medseg.types.tensors import Patch

SHAPES = [(24, 31), (16, 24, 31)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def coordinates(shape):
    """A patch whose channels are its own voxel coordinates, so that the result says where each voxel came from."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in shape], indexing="ij"))
    return Patch(grid, torch.zeros((1, *shape), dtype=torch.int16))


def strongest(patch, **options):
    """The bent patch of the seed, out of 20, whose strength comes out largest."""
    outs = [elastic(patch, generator(seed), p=1.0, **options) for seed in range(20)]
    return max(outs, key=lambda out: float((out.image - patch.image).abs().mean()))


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_bends_without_the_chance_or_without_moves(shape):
    patch = coordinates(shape)
    assert elastic(patch, generator(), p=0.0) is patch
    assert torch.allclose(elastic(patch, generator(), p=1.0, most=0.0).image, patch.image, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_places_move_visibly_smoothly_and_never_fold(shape):
    patch = coordinates(shape)
    out = strongest(patch)
    moved = (out.image - patch.image).abs()
    assert moved.max() > 0.04 * max(shape)  # over a voxel
    gradients = np.stack([np.stack(np.gradient(channel.numpy())) for channel in out.image])
    determinants = np.linalg.det(np.moveaxis(gradients, (0, 1), (-2, -1)))
    assert 0.2 < determinants.min() < 0.8 and 1.2 < determinants.max() < 2.5


@pytest.mark.parametrize("shape", SHAPES)
def test_the_border_keeps_its_own(shape):
    out = strongest(coordinates(shape)).image
    for axis, n in enumerate(shape):
        assert torch.allclose(out[axis].select(axis, 0), torch.tensor(0.0), atol=1e-4)
        assert torch.allclose(out[axis].select(axis, n - 1), torch.tensor(n - 1.0), atol=1e-4)


def test_the_spline_agrees_with_scipy():
    moves = torch.rand(8, 8, 8, 3, generator=generator(), dtype=torch.float64)
    ticks = [torch.linspace(0, 5, n, dtype=torch.float64) for n in (7, 9, 11)]
    here = torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1)
    expected = [
        map_coordinates(moves[..., a].numpy(), here.numpy().transpose(3, 0, 1, 2) + 1, order=3, prefilter=False)
        for a in range(3)
    ]
    assert np.allclose(module._on_grid(moves, ticks).numpy(), np.stack(expected, -1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_plane", [False, True])
def test_labels_stay_on_the_image(shape, in_plane):
    grid = coordinates(shape).image
    ball = ((grid - torch.tensor(shape).reshape(-1, *[1] * len(shape)) / 2) ** 2).sum(0).sqrt() < min(shape) / 3
    labels = torch.where(ball & (grid[-1] > shape[-1] / 2), 7, ball.to(torch.int16) * 3)[None]
    patch = Patch((labels == 7).float(), labels)
    out = elastic(patch, generator(4), p=1.0, in_plane=in_plane and len(shape) == 3)
    assert not torch.equal(out.labels, labels)
    assert out.labels.dtype == labels.dtype and set(out.labels.unique().tolist()) == {0, 3, 7}
    clear = (out.image - 0.5).abs() > 0.17  # a value alone among neighbours needs a half, beside two others a third
    assert torch.equal((out.labels == 7)[clear], (out.image > 0.5)[clear])


def test_in_plane_bends_every_slice_alike_and_keeps_the_first_axis():
    patch = coordinates((4, 24, 31))
    out = strongest(patch, in_plane=True).image
    assert torch.allclose(out[0], patch.image[0], atol=1e-4)
    assert torch.allclose(out[1:], out[1:, :1].expand_as(out[1:]), atol=1e-4)
    assert not torch.allclose(out[1:], patch.image[1:], atol=0.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_plane", [False, True])
def test_points_go_where_their_voxels_go(shape, in_plane):
    patch = coordinates(shape)
    known = torch.rand(30, len(shape), generator=generator()) * (torch.tensor(shape) - 1)
    patch = Patch(patch.image, patch.labels, torch.cat([known, torch.full((1, len(shape)), torch.nan)]))
    for seed in range(10):
        out = elastic(patch, generator(seed), p=1.0, in_plane=in_plane and len(shape) == 3)
        assert out.points[-1].isnan().all()
        came_from = [
            map_coordinates(channel.numpy(), out.points[:-1].numpy().T, order=1, mode="nearest")
            for channel in out.image
        ]
        assert np.allclose(np.stack(came_from, 1), known.numpy(), atol=1e-3)


def test_points_outside_the_patch_and_one_voxel_axes_are_finite():
    patch = Patch(
        torch.rand(1, 1, 9), torch.zeros(1, 1, 9, dtype=torch.int16), torch.tensor([[0.0, -4.0], [0.0, 20.0]])
    )
    out = elastic(patch, generator(), p=1.0)
    assert out.points.isfinite().all() and out.image.isfinite().all()
    assert torch.allclose(out.points, patch.points, atol=1e-4)


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_points_of_patches_of_few_slices_stay_between_them(slices):
    patch = coordinates((slices, 24, 31))
    points = torch.tensor([[0.3, 12.0, 9.0], [slices - 1.0, 3.0, 20.0], [0.5 * (slices - 1), 20.0, 28.0]])
    for seed in range(10):
        out = elastic(Patch(patch.image, patch.labels, points), generator(seed), p=1.0)
        assert (out.points[:, 0] - points[:, 0]).abs().max() < 0.5 * (slices - 1) + 1e-4
        assert (out.points[:, 1:] - points[:, 1:]).abs().max() < 4


@pytest.mark.parametrize("options", [{"most": 0.9}, {"most": -0.1}, {"cells": 3}])
def test_grids_that_fold_are_refused(options):
    with pytest.raises(PlanError, match="fold"):
        elastic(coordinates((8, 8)), generator(), p=1.0, **options)

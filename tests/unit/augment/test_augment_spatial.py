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


def spots(shape, points):
    """A bright spot at every point, a channel each, and the points; places need not be voxels."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    grid = torch.stack(axes, -1)
    image = torch.stack([torch.exp(-((grid - point) ** 2).sum(-1) / (2 * 1.3**2)) for point in points])
    labels = (image > 0.5).any(0, keepdim=True).to(torch.int16)
    return Patch(image, labels, torch.as_tensor(points))


def centroids(image):
    """Centre of mass of every channel, by sums over a grid."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in image.shape[1:]), indexing="ij")
    total = image.sum(tuple(range(1, image.dim())))
    return torch.stack([(image * axis).sum(tuple(range(1, image.dim()))) / total for axis in axes], -1)


PLACES_2D = torch.tensor([[14.0, 17.25], [22.5, 13.0], [18.0, 21.0]])
PLACES_3D = torch.tensor([[10.0, 14.0, 17.25], [12.5, 22.5, 13.0], [11.0, 18.0, 21.0]])


@pytest.mark.parametrize("size", [None, (15, 24, 22)])
@pytest.mark.parametrize(("places", "in_plane"), [(PLACES_2D, False), (PLACES_3D, False), (PLACES_3D, True)])
def test_affine_moves_points_as_it_moves_what_is_bright_there(places, in_plane, size):
    patch = spots((22, 37, 34)[3 - places.shape[1] :], places)
    seen = 0
    for seed in range(6):
        function = build_augment(
            [Step("affine", {"p": 0.7, "degrees": 25.0, "scale_low": 0.8, "scale_high": 1.2, "in_plane": in_plane})],
            patch=size,
        )
        out = function(patch, generator(seed))
        edge = torch.tensor(out.image.shape[1:]) - 4
        whole = ((out.points > 3) & (out.points < edge)).all(1)
        assert torch.allclose(centroids(out.image)[whole], out.points[whole], atol=0.05)
        seen += int(whole.sum())
    assert seen > 6
    assert torch.equal(patch.points, places)


@pytest.mark.parametrize("places", [PLACES_2D, PLACES_3D])
def test_mirror_and_crop_move_points_with_the_voxels(places):
    shape = (23, 37, 34)[3 - places.shape[1] :]
    patch = spots(shape, places)
    for axis in range(3 - len(shape), 3):
        out = mirror(patch, generator(), axes=[axis], p=1.0)
        assert torch.allclose(out.points, centroids(out.image), atol=1e-3)
    out = centre_crop(patch, (17, 30, 33)[3 - len(shape) :])
    assert torch.allclose(out.points, centroids(out.image), atol=0.05)


def test_unknown_points_stay_unknown_and_steps_on_grey_values_leave_points_alone():
    points = torch.tensor([[float("nan")] * 3, [3.0, 4.0, 5.0]])
    patch = Patch(torch.rand(1, 10, 12, 14), torch.zeros(1, 10, 12, 14, dtype=torch.int16), points)
    out = mirror(affine(patch, generator(), p=1.0), generator(), p=1.0)
    assert out.points[0].isnan().all() and out.points[1].isfinite().all()
    for name in set(AUGMENT) - {"affine", "elastic", "mirror"}:
        function = build_augment([Step(name, {"p": 1.0})])
        assert torch.equal(function(patch, generator()).points[1], points[1]), name


def test_flipping_the_axis_between_the_sides_exchanges_values_and_points():
    labels = torch.tensor([[[1, 1, 0, 5, 2, 3]]], dtype=torch.int16)
    points = torch.tensor([[0.0, 0.0], [0.0, 4.0], [0.0, 2.0]])
    patch = Patch(labels.float(), labels, points)
    options = {"p": 1.0, "swap_axis": 2, "swap_values": [1, 2], "swap_points": [0, 1]}
    out = mirror(patch, generator(), axes=[2], **options)
    assert out.labels.tolist() == [[[3, 1, 5, 0, 2, 2]]]
    assert out.points.tolist() == [[0.0, 1.0], [0.0, 5.0], [0.0, 3.0]]
    other = mirror(patch, generator(), axes=[1], **options)
    assert torch.equal(other.labels, labels) and torch.equal(other.points, points)


def sided(shape=(12, 16, 20)):
    """A scan in which left and right differ by their side only: a ball each, labels 1 and 2, points in the middle."""
    labels = torch.zeros(1, *shape, dtype=torch.int16)
    points = torch.tensor([[5.0, 8.0, 4.0], [5.0, 8.0, 15.0], [9.0, 3.0, 9.5]])
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"), -1)
    for value, point in enumerate(points[:2], start=1):
        labels[0][((grid - point) ** 2).sum(-1) < 9] = value
    return Patch((labels > 0).float(), labels, points)


def test_a_sided_phantom_keeps_its_sides_under_augmentation():
    patch = sided()
    options = {"swap_axis": 2, "swap_values": [1, 2], "swap_points": [0, 1]}
    turn = {"p": 0.5, "degrees": 15.0, "scale_low": 0.9, "scale_high": 1.1}
    function = build_augment([Step("affine", turn), Step("mirror", options)])
    plain = build_augment([Step("affine", turn), Step("mirror")])
    middle = (patch.labels.shape[-1] - 1) / 2
    wrong = 0
    for seed in range(12):
        out = function(patch, generator(seed))
        for value in (1, 2):
            columns = (out.labels[0] == value).nonzero()[:, 2].float()
            assert ((columns.mean() < middle) == (value == 1)) and columns.numel()
            assert abs(columns.mean() - out.points[value - 1, 2]) < 0.4
        values = plain(patch, generator(seed)).labels[0]
        wrong += bool((values == 1).nonzero()[:, 2].float().mean() > middle)
    assert wrong > 2


def test_swaps_that_are_no_pairs_are_refused():
    for options in ({"swap_values": [1]}, {"swap_points": [0, 1, 1, 2]}):
        with pytest.raises(PlanError, match="no pairs"):
            mirror(sided(), generator(), **options)
    with pytest.raises(PlanError, match="of 3 points"):
        mirror(sided(), generator(), p=1.0, swap_axis=2, swap_points=[1, 3])


@pytest.mark.parametrize("shape", [(41, 31), (3, 41, 31)])
def test_turning_about_the_probe_keeps_what_lies_there_and_moves_what_is_far(shape):
    image = torch.zeros(1, *shape)
    image[..., 20, 15] = 1.0
    point = torch.tensor([[*[1.0] * (len(shape) - 2), 20.0, 15.0], [*[1.0] * (len(shape) - 2), 0.0, 15.0]])
    patch = Patch(image, torch.zeros(1, *shape, dtype=torch.int16), point)
    out = affine(
        patch,
        torch.Generator().manual_seed(1),
        p=1.0,
        degrees=20.0,
        scale_low=1.0,
        scale_high=1.0,
        in_plane=len(shape) == 3,
        pivot=(0.5 / 41, 0.5),
    )
    plane = out.image[0].reshape(-1, 41, 31)[0]
    y, x = torch.meshgrid(torch.arange(41.0), torch.arange(31.0), indexing="ij")
    centroid = torch.stack([(plane * y).sum(), (plane * x).sum()]) / plane.sum()
    torch.testing.assert_close(out.points[0, -2:], centroid, atol=0.05, rtol=0)
    assert (out.points[0, -2:] - torch.tensor([20.0, 15.0])).norm() > 1.0
    torch.testing.assert_close(out.points[1, -2:], torch.tensor([0.0, 15.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("pivot", [(), (-0.1, 0.5), (0.0, 0.0)])
def test_what_is_loaded_holds_what_a_turn_about_the_probe_samples(pivot):
    size = (1, 40, 30)
    steps = [Step("affine", {"p": 1.0, "degrees": 25.0, "pivot": list(pivot), "scale_low": 0.8, "scale_high": 1.2})]
    augment, rng = build_augment(steps, patch=size), torch.Generator().manual_seed(0)
    scan = Patch(torch.rand(1, 301, 301, generator=rng), torch.ones(1, 301, 301, dtype=torch.int16))
    for seed in range(8):
        loaded = margin(steps, size, torch.Generator().manual_seed(seed))
        cut = centre_crop(scan, [n + (301 - n) % 2 for n in loaded[1:]])  # about the same middle
        found = augment(cut, torch.Generator().manual_seed(seed))
        whole = augment(scan, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(found.image, whole.image, rtol=0, atol=1e-3)
        assert found.labels.all()


def test_a_pivot_of_another_dimension_is_refused():
    with pytest.raises(PlanError, match="pivot"):
        affine(
            Patch(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int16)), torch.Generator(), p=1.0, pivot=(0.5,)
        )

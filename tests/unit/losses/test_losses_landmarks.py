import itertools
import math

import dsntnn
import pytest
import torch

from medseg.errors import PlanError
from medseg.losses import landmarks
from medseg.losses.landmarks import dsnt, gaussians, heatmap, jensen_shannon
from medseg.types.tensors import Batch, NetworkOutput

SIZES = [(6, 9), (4, 5, 7)]


def made(size, *, points=3, seed=0, dtype=torch.float32):
    """Heat maps that sum to 1, points predicted and true, in voxels."""
    rng = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(2, points, *size, generator=rng, dtype=dtype)
    heatmaps = scores.flatten(2).softmax(2).reshape(scores.shape)
    extent = torch.tensor(size, dtype=dtype) - 1
    predicted, truth = (torch.rand(2, points, len(size), generator=rng, dtype=dtype) * extent for _ in range(2))
    return heatmaps, predicted, truth


def batch_of(truth, size, spacing=None):
    return Batch(torch.zeros(len(truth), 1, *size), torch.zeros(len(truth), 1, *size, dtype=torch.long), truth, spacing)


def slow_gauss(point, size, sigma):
    field = torch.zeros(size, dtype=torch.float64)
    for voxel in itertools.product(*map(range, size)):
        far = sum(((i - float(p)) / s) ** 2 for i, p, s in zip(voxel, point, sigma, strict=True))
        field[voxel] = math.exp(-far / 2)
    return field / field.sum()


def slow_js(p, q):
    total = 0.0
    for a, b in zip(p.double().flatten().tolist(), q.double().flatten().tolist(), strict=True):
        m = (a + b) / 2
        total += (a * math.log(a / m) if a else 0) / 2 + (b * math.log(b / m) if b else 0) / 2
    return total


@pytest.mark.parametrize("at_once", [1, 100, 1 << 21])
@pytest.mark.parametrize("size", SIZES)
def test_jensen_shannon_is_dsntnns_and_the_sum_over_voxels(size, at_once, monkeypatch):
    monkeypatch.setattr(landmarks, "_VOXELS_AT_ONCE", at_once)
    heatmaps, _, truth = made(size)
    found = jensen_shannon(heatmaps, truth, (1.0,) * len(size))
    normalised = dsntnn.pixel_to_normalized_coordinates(truth.flip(2), size)
    torch.testing.assert_close(found, dsntnn.js_reg_losses(heatmaps, normalised, 1.0), atol=1e-5, rtol=1e-5)
    sigma = (0.5, 1.0, 2.0)[: len(size)]
    found = jensen_shannon(heatmaps, truth, sigma)
    for b, n in itertools.product(range(2), range(3)):
        expected = slow_js(heatmaps[b, n], slow_gauss(truth[b, n], size, sigma))
        assert float(found[b, n]) == pytest.approx(expected, abs=1e-5)


def test_jensen_shannon_is_0_for_equal_maps_and_ln_2_for_maps_apart():
    points = torch.tensor([[[2.0, 2.0]]])
    same = gaussians(points, (16, 16), (1.0, 1.0))
    assert float(jensen_shannon(same, points, (1.0, 1.0))) == pytest.approx(0.0, abs=1e-6)
    apart = jensen_shannon(same, torch.tensor([[[13.0, 13.0]]]), (0.3, 0.3))
    assert float(apart) == pytest.approx(math.log(2), abs=1e-3)
    assert float(apart) <= math.log(2) + 1e-6


@pytest.mark.parametrize("at_once", [1, 1 << 21])
@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_of_jensen_shannon_is_that_of_finite_differences_and_of_dsntnn(size, at_once, monkeypatch):
    monkeypatch.setattr(landmarks, "_VOXELS_AT_ONCE", at_once)
    heatmaps, _, truth = made(size, points=1, dtype=torch.float64)
    heatmaps = (heatmaps + 0.01).requires_grad_()  # logarithms near 0 bend more than finite differences see
    sigma = (0.8, 1.5, 1.0)[: len(size)]
    assert torch.autograd.gradcheck(lambda maps: jensen_shannon(maps, truth, sigma), heatmaps, atol=1e-5)
    (own,) = torch.autograd.grad(jensen_shannon(heatmaps, truth, (1.0,) * len(size)).sum(), heatmaps)
    normalised = dsntnn.pixel_to_normalized_coordinates(truth.flip(2), size)
    (other,) = torch.autograd.grad(dsntnn.js_reg_losses(heatmaps, normalised, 1.0).sum(), heatmaps)
    torch.testing.assert_close(own, other, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_the_loss_is_dsntnns_average_over_the_points_that_are_known(size):
    heatmaps, predicted, truth = made(size)
    truth[0, 1] = torch.nan
    truth[1, 2, 0] = torch.nan  # half known is unknown
    known = ~truth.isnan().any(2)
    found = dsnt(NetworkOutput(heatmaps=heatmaps, points=predicted), batch_of(truth, size))
    whole = truth.nan_to_num(0.0)
    target, actual = (dsntnn.pixel_to_normalized_coordinates(p.flip(2), size) for p in (whole, predicted))
    each = dsntnn.euclidean_losses(actual, target) + dsntnn.js_reg_losses(heatmaps, target, 1.0)
    torch.testing.assert_close(found, dsntnn.average_loss(each, known.float()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_variance_term_is_dsntnns(size):
    heatmaps, _, truth = made(size)
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")).flatten(1)
    means = torch.einsum("bns,ds->bnd", heatmaps.flatten(2), places)
    output = NetworkOutput(heatmaps=heatmaps, points=means)
    with_term = dsnt(output, batch_of(truth, size), regulariser="variance", weight=0.5, sigma_mm=1.0)
    without = dsnt(output, batch_of(truth, size), regulariser="none")
    expected = 0.5 * torch.stack([dsntnn.variance_reg_losses(heatmaps[b : b + 1], 1.0) for b in range(2)]).mean()
    torch.testing.assert_close(with_term - without, expected, atol=1e-3, rtol=1e-4)


def test_distances_in_mm_and_the_width_of_the_gaussian_follow_the_spacing():
    size, spacing = (4, 8, 8), (3.0, 0.5, 0.25)
    heatmaps, predicted, truth = made(size, points=2)
    output, batch = NetworkOutput(heatmaps=heatmaps, points=predicted), batch_of(truth, size, spacing)
    far = dsnt(output, batch, unit="mm", regulariser="none")
    expected = [
        math.dist([a * s for a, s in zip(p, spacing, strict=True)], [a * s for a, s in zip(t, spacing, strict=True)])
        for p, t in zip(predicted.flatten(0, 1).tolist(), truth.flatten(0, 1).tolist(), strict=True)
    ]
    assert float(far) == pytest.approx(sum(expected) / 4, rel=1e-5)
    term = dsnt(output, batch, unit="mm", sigma_mm=1.5) - far
    slow = jensen_shannon(heatmaps, truth, (0.5, 3.0, 6.0)).mean()
    torch.testing.assert_close(term, slow, atol=1e-5, rtol=1e-4)
    term = dsnt(output, batch, unit="mm") - far
    torch.testing.assert_close(term, jensen_shannon(heatmaps, truth, (0.25 / 3, 0.5, 1.0)).mean(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", [dsnt, heatmap])
def test_without_known_points_the_loss_is_0_with_zero_gradients(loss):
    heatmaps, predicted, truth = made((6, 9))
    scores = heatmaps.log().requires_grad_()
    maps = scores.flatten(2).softmax(2).reshape(scores.shape)
    output = NetworkOutput(heatmaps=maps, points=predicted * maps.flatten(2).sum(2, keepdim=True))
    value = loss(output, batch_of(torch.full_like(truth, torch.nan), (6, 9)))
    value.backward()
    assert float(value.detach()) == 0.0
    assert scores.grad is not None and not scores.grad.any()


def test_an_unknown_point_leaves_the_gradients_of_the_others_alone():
    heatmaps, predicted, truth = made((6, 9))
    hidden = truth.clone()
    hidden[:, 1] = torch.nan
    kept = [0, 2]
    grads = []
    for given, points, target in (
        (heatmaps, predicted, hidden),
        (heatmaps[:, kept], predicted[:, kept], truth[:, kept]),
    ):
        maps = given.clone().requires_grad_()
        dsnt(NetworkOutput(heatmaps=maps, points=points), batch_of(target, (6, 9))).backward()
        grads.append(maps.grad)
    torch.testing.assert_close(grads[0][:, kept], grads[1])
    assert not grads[0][:, 1].any()


def test_narrow_gaussians_between_voxels_stay_probabilities():
    made_of = gaussians(torch.tensor([[[0.5, 3.0]]]), (4, 8), (0.01, 0.01))
    assert float(made_of.sum()) == pytest.approx(1.0)
    assert made_of[0, 0, :2, 3].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["mse", "bce"])
@pytest.mark.parametrize("balance", [None, 0.3])
def test_the_heat_map_loss_is_the_weighted_mean_over_voxels(size, kind, balance):
    maps, predicted, truth = made(size)
    maps = 4 * maps
    truth[0, 0] = torch.nan
    spacing = (2.0, 1.0, 0.5)[: len(size)]
    batch = batch_of(truth, size, spacing)
    output = NetworkOutput(heatmaps=maps, points=predicted)
    found = heatmap(output, batch, kind=kind, sigma_mm=2.0, balance=balance)
    sigma = [2.0 / s for s in spacing]
    losses = []
    for b, n in itertools.product(range(2), range(3)):
        if (b, n) == (0, 0):
            continue
        near = far = both = weight_near = weight_far = count = 0.0
        for voxel in itertools.product(*map(range, size)):
            h = float(maps[(b, n, *voxel)])
            g = math.exp(-sum(((i - float(p)) / s) ** 2 for i, p, s in zip(voxel, truth[b, n], sigma, strict=True)) / 2)
            p = 1 / (1 + math.exp(-h))
            e = (h - g) ** 2 if kind == "mse" else -g * math.log(p) - (1 - g) * math.log(1 - p)
            near, far, both, count = near + g * e, far + (1 - g) * e, both + e, count + 1
            weight_near, weight_far = weight_near + g, weight_far + 1 - g
        parts = 0.3 * near / weight_near + 0.7 * far / weight_far
        losses.append(both / count if balance is None else parts)
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_what_does_not_fit_is_said():
    heatmaps, predicted, truth = made((6, 9))
    output = NetworkOutput(heatmaps=heatmaps, points=predicted)
    with pytest.raises(PlanError, match="without a head"):
        dsnt(NetworkOutput((torch.zeros(1, 2, 6, 9),)), batch_of(truth, (6, 9)))
    with pytest.raises(PlanError, match="the batch holds none"):
        dsnt(output, Batch(torch.zeros(2, 1, 6, 9), torch.zeros(2, 1, 6, 9, dtype=torch.long)))
    with pytest.raises(PlanError, match="finest features"):
        dsnt(output, batch_of(truth, (12, 18)))
    for options in ({"unit": "cm"}, {"regulariser": "kl"}, {"sigma_mm": 0.0}):
        with pytest.raises(PlanError):
            dsnt(output, batch_of(truth, (6, 9)), **options)
    for options in ({"kind": "mae"}, {"balance": 2.0}):
        with pytest.raises(PlanError):
            heatmap(output, batch_of(truth, (6, 9)), **options)

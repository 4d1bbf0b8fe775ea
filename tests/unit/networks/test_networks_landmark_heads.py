import itertools
import math

import dsntnn
import pytest
import torch

from medseg.errors import PlanError
from medseg.losses.build import build_loss
from medseg.networks.build import build_network
from medseg.networks.landmark_heads import dsnt, expectation, heatmap, peaks, to_voxels
from medseg.types.plan import LossTerm, Network, Step, Topology
from medseg.types.tensors import Batch

SIZES = [(7, 5), (4, 6, 9)]


def topology(ndim, stride=1):
    row = (1, stride, stride) if ndim == 2 else (stride,) * 3
    kernel = (1, 3, 3) if ndim == 2 else (3, 3, 3)
    return Topology(ndim, (4, 8), (row, (1, 2, 2)), (kernel, kernel), (1, 1))


def maps(size, *, points=3, seed=0):
    scores = torch.randn(2, points, *size, generator=torch.Generator().manual_seed(seed))
    return (3 * scores).flatten(2).softmax(2).reshape(scores.shape)


@pytest.mark.parametrize("size", SIZES)
def test_the_expectation_is_the_sum_over_all_voxels(size):
    heatmaps = maps(size)
    expected = torch.zeros(2, 3, len(size), dtype=torch.float64)
    for voxel in itertools.product(*map(range, size)):
        place = torch.tensor([(2 * i + 1) / n - 1 for i, n in zip(voxel, size, strict=True)], dtype=torch.float64)
        expected += heatmaps[(slice(None), slice(None), *voxel)].double()[..., None] * place
    torch.testing.assert_close(expectation(heatmaps), expected.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_expectation_is_that_of_dsntnn_in_reversed_order(size):
    heatmaps = maps(size)
    torch.testing.assert_close(expectation(heatmaps), dsntnn.dsnt(heatmaps).flip(2), atol=1e-6, rtol=0)
    voxels = dsntnn.normalized_to_pixel_coordinates(dsntnn.dsnt(heatmaps), size).flip(2)
    torch.testing.assert_close(to_voxels(expectation(heatmaps), size), voxels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_all_mass_in_one_voxel_is_that_voxel(size):
    for voxel in ((0,) * len(size), tuple(n - 1 for n in size), tuple(n // 2 for n in size)):
        one = torch.zeros(1, 1, *size)
        one[(0, 0, *voxel)] = 1
        found = to_voxels(expectation(one), size)[0, 0]
        torch.testing.assert_close(found, torch.tensor(voxel).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_dsnt_head_gives_probabilities_and_their_mean_places(size):
    torch.manual_seed(0)
    head = dsnt(topology(len(size)), (6, 12), outputs=0, points=3)
    output = head((torch.randn(2, 6, *size), torch.randn(2, 12, 2, 2)))
    assert output.logits == ()
    torch.testing.assert_close(output.heatmaps.flatten(2).sum(2), torch.ones(2, 3))
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))
    mean = torch.einsum("bns,ds->bnd", output.heatmaps.flatten(2), places.flatten(1))
    torch.testing.assert_close(output.points, mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [dsnt, heatmap])
def test_heads_compute_in_float32_under_autocast(make):
    torch.manual_seed(0)
    head = make(topology(2), (6,), outputs=0, points=2)
    features = 20 * torch.randn(1, 6, 16, 16)
    plain = head((features,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = head((features,))
    assert half.heatmaps.dtype == half.points.dtype == torch.float32
    torch.testing.assert_close(half.heatmaps, plain.heatmaps)
    torch.testing.assert_close(half.points, plain.points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        from_half = head((features.bfloat16(),))
    assert from_half.heatmaps.dtype == torch.float32


def test_large_scores_overflow_nothing():
    head = dsnt(topology(2), (1,), outputs=0, points=1)
    features = torch.zeros(1, 1, 4, 4)
    features[0, 0, 2, 1] = 1e6
    with torch.no_grad():
        head.maps.weight.fill_(1.0)
    assert head((features,)).points.tolist() == [[[2.0, 1.0]]]


@pytest.mark.parametrize("make", [dsnt, heatmap])
@pytest.mark.parametrize("size", SIZES)
def test_every_parameter_gets_a_gradient(make, size):
    head = make(topology(len(size)), (6,), outputs=0, points=2)
    head((torch.randn(1, 6, *size),)).heatmaps.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


@pytest.mark.parametrize("point", [(3.0, 4.0), (3.3, 4.4), (2.51, 5.49), (3.2, 4.1, 2.6)])
@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_peaks_of_gaussians_are_exact_between_voxels(point, sigma):
    size = (8, 10, 7)[: len(point)]
    logs = torch.zeros(size, dtype=torch.float64)
    for voxel in itertools.product(*map(range, size)):
        logs[voxel] = -0.5 * math.dist(voxel, point) ** 2 / sigma**2
    found = peaks(logs.exp()[None, None])[0, 0]
    torch.testing.assert_close(found, torch.tensor(point, dtype=torch.float64), atol=1e-6, rtol=0)
    inside = logs.exp().clamp(1e-12, 1 - 1e-12)
    from_logits = peaks((inside / (1 - inside)).log()[None, None], logit=True)[0, 0]
    torch.testing.assert_close(from_logits, torch.tensor(point, dtype=torch.float64), atol=1e-6, rtol=0)


def test_peaks_at_edges_stay_on_their_voxel_and_flat_maps_move_nothing():
    ramp = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert peaks(ramp).tolist() == [[[2.0, 3.0]]]
    assert peaks(-ramp).tolist() == [[[0.0, 0.0]]]
    assert peaks(torch.zeros(1, 1, 3, 3)).isfinite().all()


def test_a_head_at_a_coarser_scale_and_one_without_points_are_refused():
    with pytest.raises(PlanError, match="coarser"):
        dsnt(topology(2, stride=2), (6,), outputs=0, points=2)
    with pytest.raises(PlanError, match="0 points"):
        heatmap(topology(3), (6,), outputs=0, points=0)
    with pytest.raises(PlanError, match="logits"):
        heatmap(topology(3), (6,), outputs=0, points=1, values="logits")


FIELDS = {
    "segmentation": ("logits",),
    "dsnt": ("heatmaps", "points"),
    "heatmap": ("heatmaps", "points"),
    "boundary": ("boundaries",),
    "distance": ("distances",),
}


def numbers(output):
    """The tensors of every field that a head has filled, by its name."""
    found = {
        "logits": output.logits,
        "boundaries": tuple(part for one in output.boundaries for part in (one.edge, one.mask)),
        **{name: (getattr(output, name),) for name in ("heatmaps", "points", "distances")},
    }
    return {name: parts for name, parts in found.items() if parts and parts[0] is not None}


@pytest.mark.parametrize("use", ["dsnt", "heatmap"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_head_more_or_less_leaves_the_numbers_of_the_others_alone(use, ndim):
    heads = (Step("segmentation"), Step(use, {"points": 2}), Step("boundary"), Step("distance"))
    image = torch.randn(2, 1, *(4, 8, 8)[3 - ndim :])

    def built(some):
        torch.manual_seed(0)
        return build_network(Network("unet", topology(ndim), tuple(some)), channels=1, outputs=3)

    every = built(heads)
    expected, weights = numbers(every(image)), every.state_dict()
    for kept in (some for count in (1, 2, 3) for some in itertools.combinations(range(len(heads)), count)):
        fewer = built(heads[place] for place in kept)
        own = {f"heads.{place}.": f"heads.{now}." for now, place in enumerate(kept)}
        backbone = {name: value for name, value in weights.items() if not name.startswith("heads.")}
        of_heads = {
            now + name.removeprefix(then): value
            for then, now in own.items()
            for name, value in weights.items()
            if name.startswith(then)
        }
        fewer.load_state_dict(backbone | of_heads)
        found = numbers(fewer(image))
        assert set(found) == {field for place in kept for field in FIELDS[heads[place].use]}
        for name, parts in found.items():
            torch.testing.assert_close(parts, expected[name])
    assert expected["logits"][0].shape[1] == 3 and expected["points"][0].shape == (2, 2, ndim)
    assert set(expected) == {field for head in heads for field in FIELDS[head.use]}


@pytest.mark.parametrize("use", ["dsnt", "heatmap"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_network_learns_where_one_point_is(use, ndim):
    torch.manual_seed(0)
    network = build_network(Network("unet", topology(ndim), (Step(use, {"points": 1}),)), channels=1, outputs=0)
    truth = torch.tensor([[2.0, 5.0, 9.0][3 - ndim :]])
    image = torch.randn(1, 1, *(6, 10, 14)[3 - ndim :])
    batch = Batch(image, torch.zeros_like(image).long(), truth[None])
    loss = build_loss((LossTerm(1.0, use),))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    assert float((network(image).points - truth).detach().norm()) > 2
    for _ in range(60):
        optimizer.zero_grad()
        loss(network(image), batch).total.backward()
        optimizer.step()
    assert float((network.eval()(image).points - truth).detach().norm()) < 1

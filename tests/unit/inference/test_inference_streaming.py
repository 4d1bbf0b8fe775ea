from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import tiny_plan

from medseg.inference.ensemble import predict_scores
from medseg.inference.streaming import turn_to_thinnest, turned_geometry
from medseg.preprocess.native import native_probabilities
from medseg.types.geometry import Geometry
from medseg.types.image import Image
from medseg.types.plan import Inference, Sampling

CPU = torch.device("cpu")
OBLIQUE = ((0.8, -0.6, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))


def scan(shape):
    array = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    return Image(array, Geometry(shape, (3.0, 1.5, 0.5), (10.0, -20.0, 5.0), OBLIQUE), ("MR",))


def plan_for(patch, mirror=()):
    return replace(tiny_plan(), sampling=Sampling(patch, 2), inference=Inference(0.5, "gaussian", mirror))


def network(plan):
    """A convolution that tells every direction from every other."""
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(1, plan.labels.outputs(), 3, padding=1).requires_grad_(False)
    seen = []

    def forward(windows):
        seen.append(tuple(windows.shape[2:]))
        return layer(windows)

    return forward, seen


@pytest.mark.parametrize("mirror", [(), (1,), (0, 2)])
@pytest.mark.parametrize("shape", [(12, 30, 14), (12, 14, 30), (6, 20, 40)])
def test_the_prediction_is_the_same_and_what_is_held_is_smaller(shape, mirror):
    image, plan = scan(shape), plan_for((8, 10, 12), mirror)
    forward, _ = network(plan)
    plain = list(predict_scores((forward,), image, plan, device=CPU))
    expected = native_probabilities(plain, image.geometry, image.geometry, plan.labels)

    turning, seen = network(plan)
    turned, changed, members = turn_to_thinnest(image, plan, (turning,))
    slabs = list(predict_scores(members, turned, changed, device=CPU))
    found = native_probabilities(slabs, turned.geometry, image.geometry, plan.labels)

    np.testing.assert_allclose(found.array, expected.array, atol=1e-5)
    assert set(seen) == {(8, 10, 12)}  # the network sees its own axes
    held = [changed.sampling.patch[0] * slabs[0].scores[0, 0].size, plan.sampling.patch[0] * plain[0].scores[0, 0].size]
    assert held[0] < 0.9 * held[1]
    assert np.shares_memory(turned.array, image.array)


def test_a_scan_whose_first_axis_is_best_and_2d_networks_stay_as_they_are():
    image, plan = scan((40, 20, 20)), plan_for((8, 8, 8))
    forward, _ = network(plan)
    assert turn_to_thinnest(image, plan, (forward,)) == (image, plan, (forward,))
    flat = tiny_plan(ndim=2)
    assert turn_to_thinnest(scan((4, 40, 20)), flat, (forward,))[1] is flat


def test_a_patch_that_is_thin_where_the_network_does_not_halve_it_can_be_turned():
    plan = plan_for((8, 8, 8))
    topology = replace(plan.network.topology, strides=((1, 1, 1), (1, 8, 8)), spacing_mm=(4.0, 0.5, 0.6))
    plan = replace(plan, network=replace(plan.network, topology=topology), sampling=Sampling((3, 16, 16), 2))
    turned, changed, _ = turn_to_thinnest(scan((6, 60, 20)), plan, (network(plan)[0],))
    assert turned.array.shape == (1, 60, 6, 20) and changed.sampling.patch == (16, 3, 16)
    assert changed.network.topology.divisor() == (8, 1, 8)
    assert changed.network.topology.spacing_mm == (0.5, 4.0, 0.6)


def test_a_turned_grid_has_its_voxels_at_the_same_places():
    grid = scan((4, 5, 6)).geometry
    for order in [(1, 0, 2), (2, 0, 1), (1, 2, 0)]:
        index = np.array([3, 1, 2, 1.0])
        there = turned_geometry(grid, order)
        np.testing.assert_allclose(there.affine() @ [*index[list(order)], 1], grid.affine() @ index)
        assert there.shape == tuple(grid.shape[axis] for axis in order)

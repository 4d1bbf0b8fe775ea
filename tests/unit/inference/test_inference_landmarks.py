"""Landmarks of whole images: places in mm, mirrors, sides, members, confidence."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.errors import BundleError, ImageError
from medseg.inference.landmarks import predict_whole, window, within_scan
from medseg.networks.landmark_heads import expectation, to_voxels
from medseg.types.geometry import Geometry
from medseg.types.image import Image
from medseg.types.labels import Label, Labels
from medseg.types.landmarks import Landmarks
from medseg.types.plan import (
    Budget,
    Inference,
    LossTerm,
    Network,
    Origin,
    Plan,
    Preprocess,
    Sampling,
    Step,
    Topology,
    Training,
)
from medseg.types.tensors import NetworkOutput

CPU = torch.device("cpu")
TURNED = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


def plan_of(ndim, patch, *, names=("a", "b"), head="dsnt", labels=(), **inference):
    flat = ndim == 2
    stride, kernel = ((1, 2, 2), (1, 3, 3)) if flat else ((2, 2, 2), (3, 3, 3))
    return Plan(
        "medseg.plan/1",
        "points",
        ("x",),
        Labels(tuple(Label(name, (value,)) for value, name in enumerate(labels, start=1))),
        Preprocess((1.0, 1.0, 1.0), (Step("z_score"),)),
        Network(
            "unet",
            Topology(ndim, (4, 8), ((1, 1, 1), stride), (kernel, kernel), (1, 1)),
            heads=(Step(head, {"points": len(names)}),),
        ),
        Sampling(patch, 1),
        Training((LossTerm(1.0, head),), Step("sgd"), Step("poly"), (), 1),
        Inference(**inference),
        (),
        Origin("0.1.0", "0" * 64, Budget(4.0), "unet"),
        {},
        landmarks=names,
    )


def image_with(points, shape, geometry=None):
    """Voxels 0 but for a bright one per point: 1, 2, ..."""
    array = np.zeros((1, *shape), np.float32)
    for value, point in enumerate(points, start=1):
        array[(0, *point)] = value
    return Image(array, geometry or Geometry(shape, (1.0, 1.0, 1.0)), ("x",))


def by_value(count, *, flat=False, offset=0.0):
    """A network that knows every point by its grey value."""

    def forward(image):
        seen = image[:, :, 0] if flat else image
        maps = torch.cat([(seen == value).float() for value in range(1, count + 1)], 1)
        maps = maps / maps.flatten(2).sum(2).reshape(*maps.shape[:2], *(1,) * (maps.dim() - 2)).clamp_min(1)
        return NetworkOutput(heatmaps=maps, points=to_voxels(expectation(maps), maps.shape[2:]) + offset)

    return forward


def by_side(image):
    """A network that calls the bright voxel at the larger x "left" and the other "right"."""
    spots = image[0, 0].nonzero()
    spots = spots[spots[:, 2].argsort(descending=True)]
    maps = torch.zeros(1, 2, *image.shape[2:])
    for number, spot in enumerate(spots):
        maps[(0, number, *spot)] = 1
    left = maps[:, :1]
    logits = torch.cat([torch.zeros_like(left), left, maps[:, 1:]], 1)
    return NetworkOutput((logits,), heatmaps=maps, points=spots[None].float())


@pytest.mark.parametrize("shape", [(9, 12, 7), (20, 17, 31)])
def test_places_are_those_of_the_voxels_in_the_patient(shape):
    points = [(1, 2, 3), (8, 11, 6)]
    geometry = Geometry(shape, (3.0, 0.5, 2.0), (10.0, -4.0, 7.0), TURNED)
    plan = plan_of(3, (12, 16, 16), mirror_axes=(0, 1, 2))
    found = predict_whole([by_value(2)], image_with(points, shape, geometry), plan, device=CPU)
    expected = [(geometry.affine() @ [*point, 1.0])[:3] for point in points]
    np.testing.assert_allclose(found.landmarks.points_mm, expected, atol=1e-4)
    assert found.landmarks.names == ("a", "b") and found.logits is None and list(found.slabs()) == []
    np.testing.assert_allclose(found.landmarks.confidence, 1.0)


def test_a_flat_network_finds_points_in_flat_images_only():
    plan = plan_of(2, (1, 16, 16), mirror_axes=(1, 2))
    geometry = Geometry((1, 9, 20), (1.0, 0.5, 0.25), (1.0, 2.0, 3.0))
    image = image_with([(0, 2, 3), (0, 8, 19)], (1, 9, 20), geometry)
    found = predict_whole([by_value(2, flat=True)], image, plan, device=CPU).landmarks
    np.testing.assert_allclose(found.points_mm, [[1.75, 3.0, 3.0], [5.75, 6.0, 3.0]], atol=1e-5)
    with pytest.raises(ImageError, match="2 slices"):
        predict_whole([by_value(2, flat=True)], image_with([], (2, 9, 20)), plan, device=CPU)


def test_the_window_is_the_image_padded_on_both_sides_to_what_the_network_takes():
    plan = plan_of(3, (12, 16, 16))
    assert window((9, 16, 15), plan) == ((12, 16, 16), (1, 0, 0))
    assert window((13, 16, 21), plan) == ((14, 16, 22), (0, 0, 0))
    seen = []

    def watched(image):
        seen.append(tuple(image.shape))
        return by_value(2)(image)

    predict_whole([watched], image_with([(0, 0, 0), (1, 1, 1)], (13, 16, 21)), plan, device=CPU)
    assert seen == [(1, 1, 14, 16, 22)]


def test_mirroring_between_the_sides_exchanges_left_and_right():
    names, labels = ("left", "right"), ("l", "r")
    swaps = {"swap_axis": 2, "swap_points": (("left", "right"),), "swap_labels": (("l", "r"),)}
    image = image_with([(1, 2, 14), (6, 5, 3)], (8, 8, 16))
    plan = plan_of(3, (8, 8, 16), names=names, labels=labels, mirror_axes=(1, 2), **swaps)
    found = predict_whole([by_side], image, plan, device=CPU)
    np.testing.assert_allclose(found.landmarks.points_mm, [[14, 2, 1], [3, 5, 6]], atol=1e-5)
    np.testing.assert_allclose(found.landmarks.confidence, 1.0)
    one = predict_whole([by_side], image, plan_of(3, (8, 8, 16), names=names, labels=labels), device=CPU)
    np.testing.assert_array_equal(found.logits, one.logits)
    wrong = replace(plan, inference=Inference(mirror_axes=(2,)))
    mixed = predict_whole([by_side], image, wrong, device=CPU).landmarks
    assert np.abs(mixed.points_mm - found.landmarks.points_mm).max() > 5
    assert mixed.confidence.max() < 0.6


def test_members_are_averaged_and_their_disagreement_lowers_confidence():
    image = image_with([(4, 4, 4), (4, 4, 8)], (9, 9, 13))
    other = image_with([(4, 4, 4), (4, 4, 0)], (9, 9, 13))
    plan = plan_of(3, (10, 10, 14))

    def elsewhere(_):
        padded = np.pad(other.array, [(0, 0), (0, 1), (0, 1), (0, 1)])
        return by_value(2)(torch.from_numpy(padded)[None])

    found = predict_whole([by_value(2), elsewhere], image, plan, device=CPU).landmarks
    np.testing.assert_allclose(found.points_mm, [[4, 4, 4], [4, 4, 4]], atol=1e-5)
    np.testing.assert_allclose(found.confidence, [1.0, 0.0], atol=1e-6)


def test_confidence_is_the_mass_within_three_sigma_in_mm():
    size, spacing, sigma = (6, 12, 14), (2.0, 1.0, 0.5), 0.8
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(1, 1, *size)).astype(np.float32))
    maps = (2 * scores).flatten(2).softmax(2).reshape(scores.shape)
    point = torch.tensor([[[2.3, 5.6, 7.1]]])
    plan = plan_of(3, size, names=("a",))
    terms = (LossTerm(1.0, "dsnt", {"sigma_mm": sigma}),)
    plan = replace(plan, training=replace(plan.training, losses=terms))
    image = image_with([(0, 0, 0)], size, Geometry(size, spacing))
    found = predict_whole([lambda _: NetworkOutput(heatmaps=maps, points=point)], image, plan, device=CPU).landmarks
    mass = 0.0
    for voxel in itertools.product(*map(range, size)):
        steps = zip(voxel, point[0, 0].tolist(), spacing, strict=True)
        if sum(((i - p) / max(3 * sigma / s, 1.0)) ** 2 for i, p, s in steps) <= 1:
            mass += float(maps[(0, 0, *voxel)])
    assert 0.01 < mass < 0.9
    assert found.confidence[0] == pytest.approx(mass, abs=1e-5)


@pytest.mark.parametrize(("values", "height", "expected"), [("gaussian", 0.7, 0.7), ("logit", 2.0, 0.8807971)])
def test_confidence_of_a_heat_map_head_is_the_height_at_the_point(values, height, expected):
    maps = torch.zeros(1, 1, 8, 8, 8) - 5
    maps[0, 0, 3, 4, 5] = height
    plan = plan_of(3, (8, 8, 8), names=("a",), head="heatmap", mirror_axes=())
    heads = (Step("heatmap", {"points": 1, "values": values}),)
    plan = replace(plan, network=replace(plan.network, heads=heads))
    output = NetworkOutput(heatmaps=maps, points=torch.tensor([[[3.2, 3.9, 5.4]]]))
    found = predict_whole([lambda _: output], image_with([], (8, 8, 8)), plan, device=CPU).landmarks
    assert found.confidence[0] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(found.points_mm, [[5.4, 3.9, 3.2]], atol=1e-5)


def test_landmarks_outside_of_the_scan_are_missing_and_named():
    scan = Geometry((4, 5, 6), (2.0, 1.0, 1.0), (10.0, 0.0, 0.0), unit="px")
    points = np.array([[10.0, 0.0, 0.0], [9.5, -0.5, 7.0], [9.4, 0.0, 0.0], [12.0, 2.0, 7.1]])
    given = Landmarks(("in", "edge", "before", "above"), points, np.array([0.9, 0.05, 0.9, 0.9]), ("so said",))
    kept = within_scan(given, scan)
    assert np.isnan(kept.points_mm).all(axis=1).tolist() == [False, False, True, True]
    first, outside, unsure, unit = kept.warnings
    assert first == "so said" and "pixels" in unit
    assert '"before", "above"' in outside and "missing" in outside
    assert '"edge"' in unsure and '"in"' not in unsure


def test_what_a_network_must_not_return_is_refused():
    image, plan = image_with([], (8, 8, 8)), plan_of(3, (8, 8, 8))
    maps, points = torch.zeros(1, 2, 8, 8, 8), torch.zeros(1, 2, 3)
    for output, said in (
        (NetworkOutput(heatmaps=maps[:, :1], points=points[:, :1]), "finds 1 landmarks"),
        (NetworkOutput((maps,)), "finds no landmarks"),
        (NetworkOutput(heatmaps=maps, points=points * torch.nan), "NaN"),
        (NetworkOutput((maps + torch.inf,), heatmaps=maps, points=points), "NaN or Inf"),
    ):
        with pytest.raises(BundleError, match=said):
            predict_whole([lambda _, output=output: output], image, plan, device=CPU)
    with pytest.raises(ImageError, match="channels"):
        predict_whole([by_value(2)], replace(image, array=np.zeros((2, 8, 8, 8), np.float32)), plan, device=CPU)

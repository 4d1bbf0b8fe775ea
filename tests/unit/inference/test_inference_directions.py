"""Scans predicted along several axes: whole slices as reference, weights, memory, mirroring, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import tiny_plan
from toy_bundles import make_bundle

from medseg.errors import DicomError, ImageError, PlanError
from medseg.inference.directions import predict_directions, thin_window, weighted_mean
from medseg.inference.ensemble import network_forward, predict_scores
from medseg.networks.build import build_network
from medseg.types.geometry import Geometry
from medseg.types.image import Image, Slab
from medseg.types.plan import Inference, Sampling
from medseg.types.result import ModelBundle
from medseg.workflow.check_plan import check_plan
from medseg.workflow.cine import check_cine
from medseg.workflow.model import PredictOptions, predict_image

CPU = torch.device("cpu")


def _plan(patch=(1, 16, 16), *, ndim=2, **inference):
    plan = tiny_plan(ndim=ndim)
    return replace(plan, sampling=Sampling(patch, 3), inference=Inference(**inference))


def _scan(shape, spacing=(1.0, 1.0, 1.0), seed=0):
    array = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
    return Image(array, Geometry(shape, spacing), ("MR",))


def _member(plan, seed=0):
    torch.manual_seed(seed)
    return network_forward(build_network(plan.network, channels=1, outputs=3), plan, CPU)


def _pointwise(seed=0):
    """A 2D network that sees one voxel at a time, so that neither windows nor directions change what it says."""
    layer = torch.nn.Conv3d(1, 3, 1).requires_grad_(False)
    torch.manual_seed(seed)
    return lambda windows: layer(windows).tanh()


def _gathered(slabs, rows):
    found = list(slabs)
    assert [slab.start for slab in found] == list(np.cumsum([0] + [s.scores.shape[1] for s in found[:-1]]))
    joined = np.concatenate([slab.scores for slab in found], axis=1)
    assert joined.shape[1] == rows and joined.dtype == np.float32
    return joined


@pytest.mark.parametrize("directions", ["z", "y", "x", "zyx", "zzx", "xyzy"])
def test_it_is_the_weighted_mean_of_whole_slices_along_each_axis(directions):
    plan, image = _plan((1, 16, 16)), _scan((16, 16, 16))
    member = _member(plan)
    expected = 0
    for name in directions:
        axis = "zyx".index(name)
        for i in range(16):
            part = np.zeros((3, 16, 16, 16), np.float32)
            index = [slice(None)] * 4
            index[1 + axis] = i
            plane = torch.from_numpy(image.array[tuple(index)][None, :, None].copy())
            part[tuple(index)] = member(plane)[0, :, 0].numpy()
            expected = expected + part / len(directions)
    found = _gathered(predict_directions((member,), image, plan, tuple(directions), device=CPU), 16)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 33, 18), (5, 40, 21), (40, 9, 10)])
def test_scans_of_any_shape_are_covered_by_windows_in_every_direction(shape):
    plan, image, member = _plan((1, 12, 16), overlap=0.5), _scan(shape), _pointwise()
    found = _gathered(predict_directions((member,), image, plan, ("z", "y", "x"), device=CPU), shape[0])
    direct = member(torch.from_numpy(image.array[None]))[0].numpy()
    np.testing.assert_allclose(found, direct, atol=1e-5)


def test_a_network_that_reads_lines_reads_them_in_the_order_of_the_axes():
    plan, image = _plan((1, 8, 8), overlap=0.0), _scan((8, 8, 8))

    def down(windows):  # the sum over the rows above, within a slice (b, 1, 1, rows, columns)
        assert windows.shape[2:] == (1, 8, 8)
        return windows.cumsum(3).expand(-1, 3, -1, -1, -1)

    for name, axis in (("z", 1), ("y", 0), ("x", 0)):
        found = _gathered(predict_directions((down,), image, plan, (name,), device=CPU), 8)
        np.testing.assert_allclose(found[0], np.cumsum(image.array[0], axis=axis), atol=1e-5)


def test_slices_are_mirrored_along_the_plans_axes_that_lie_in_them():
    plan, seen = _plan((1, 8, 8), mirror_axes=(2,)), []
    image = _scan((8, 8, 8))

    def member(windows):
        seen.append(len(windows))
        return windows[:, :1].expand(-1, 3, -1, -1, -1)

    for name, passes in (("z", 2), ("y", 2), ("x", 1)):
        seen.clear()
        list(predict_directions((member,), image, plan, (name,), device=CPU))
        assert sum(seen) == passes * 8


def test_sums_are_held_for_one_windows_depth_and_a_slab_per_direction(monkeypatch):
    from medseg.inference import sliding_window as module

    plan, image = _plan((1, 8, 8)), _scan((64, 12, 12))
    held, rows, zeros = [], [], torch.zeros
    monkeypatch.setattr(module.torch, "zeros", lambda size, **kw: held.append(size) or zeros(size, **kw))
    monkeypatch.setattr(module, "_SLAB_BYTES", 4 * 3 * 12 * 12 * 2)
    for slab in predict_directions((_pointwise(),), image, plan, ("z", "y", "x"), device=CPU):
        rows.append(slab.scores.shape[1])
    assert held == [(3, 1, 12, 12), (3, 8, 12, 12), (3, 8, 12, 12)]
    assert sum(rows) == 64 and max(rows) <= 2


def test_streams_with_different_slabs_are_joined_row_by_row():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 3, 10, 4, 5)).astype(np.float32)

    def cut(scores, *stops):
        return (Slab(a, scores[:, a:b]) for a, b in zip((0, *stops), (*stops, 10), strict=True))

    found = _gathered(weighted_mean([cut(one, 3, 4, 9), cut(two, 6)], [0.25, 0.75]), 10)
    np.testing.assert_allclose(found, 0.25 * one + 0.75 * two, rtol=1e-5)
    with pytest.raises(ValueError, match="different rows"):
        list(weighted_mean([cut(one, 5), (Slab(0, two[:, :5]) for _ in range(1))], [0.5, 0.5]))


def test_a_3d_network_stays_upright_and_its_windows_are_thinnest_along_each_axis():
    plan = _plan((4, 8, 8), ndim=3)
    assert [thin_window(plan, axis) for axis in range(3)] == [(4, 8, 8), (8, 4, 8), (8, 8, 4)]
    image, member = _scan((12, 12, 12), (3.0, 1.0, 1.0)), _member(plan)
    parts = [
        _gathered(predict_scores((member,), image, plan, device=CPU, patch=thin_window(plan, axis)), 12)
        for axis in range(3)
    ]
    found = _gathered(predict_directions((member,), image, plan, ("x", "y", "z"), device=CPU), 12)
    np.testing.assert_allclose(found, sum(parts) / 3, atol=1e-5)
    assert not np.allclose(parts[0], parts[1], atol=1e-3)
    with pytest.raises(PlanError, match="alike in every direction"):
        predict_directions((member,), image, _plan((8, 8, 8), ndim=3), ("z",), device=CPU)


@pytest.mark.parametrize(
    ("image", "directions", "error", "says"),
    [
        (_scan((8, 8, 8), (2.1, 1.0, 1.0)), ("z", "y"), ImageError, "anisotropic"),
        (_scan((1, 8, 8)), ("z", "y"), ImageError, "single slice"),
        (_scan((8, 8, 8)), (), PlanError, "name some of z, y, x"),
    ],
)
def test_what_has_no_directions_is_refused_before_anything_is_predicted(image, directions, error, says):
    with pytest.raises(error, match=says):
        predict_directions((), image, _plan(), directions, device=CPU)


def test_landmarks_and_cines_have_no_directions(tmp_path):
    plan = replace(_plan(), landmarks=("tip",))
    with pytest.raises(PlanError, match="landmarks"):
        predict_directions((), _scan((8, 8, 8)), plan, ("z",), device=CPU)
    with pytest.raises(DicomError, match="leave out --directions"):
        check_cine(tmp_path, _plan(), (), PredictOptions(directions=("z", "y")))


def test_a_scan_is_predicted_along_its_axes_on_request(tmp_path):
    plan, image = _plan((1, 16, 16)), _scan((16, 16, 16))
    root = make_bundle(tmp_path / "bundle", plan)
    bundle, member = ModelBundle(root, plan, (), {}), _member(plan)
    options = PredictOptions(directions=("z", "y", "x"), save_probabilities=True)
    made = predict_image(image, bundle, (member,), device=CPU, options=options)
    plain = predict_image(image, bundle, (member,), device=CPU, options=replace(options, directions=()))
    assert made.labels.geometry == image.geometry
    assert made.probabilities is not None and plain.probabilities is not None
    assert not np.allclose(made.probabilities.array, plain.probabilities.array, atol=1e-3)
    own = replace(plan, sampling=replace(plan.sampling, directions=("z", "y", "x")))
    asked = predict_image(
        image, replace(bundle, plan=own), (member,), device=CPU, options=replace(options, directions=())
    )
    np.testing.assert_array_equal(asked.probabilities.array, made.probabilities.array)
    planned = replace(plan, inference=replace(plan.inference, directions=("z", "y", "x")))
    along = predict_image(
        image, replace(bundle, plan=planned), (member,), device=CPU, options=replace(options, directions=())
    )
    np.testing.assert_array_equal(along.probabilities.array, made.probabilities.array)
    assert plain.warnings == asked.warnings == () and along.warnings == made.warnings
    assert any("across y x, but the model learnt slices across z only" in warning for warning in made.warnings)
    flat = _scan((1, 16, 16))
    single = predict_image(flat, replace(bundle, plan=own), (member,), device=CPU)
    assert np.array_equal(single.labels.array, predict_image(flat, bundle, (member,), device=CPU).labels.array)


def test_directions_of_a_plan_must_suit_its_patch():
    thick = replace(tiny_plan(ndim=3), inference=Inference(directions=("z", "x")))
    check_plan(replace(thick, sampling=replace(thick.sampling, patch=(8, 16, 16))))
    with pytest.raises(PlanError, match=r"inference\.directions.*alike in every direction"):
        check_plan(replace(thick, sampling=replace(thick.sampling, patch=(16, 16, 16))))

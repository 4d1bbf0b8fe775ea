from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import fill_cache, tiny_plan

from medseg.errors import TrainingError
from medseg.io.cache import CachedCase, open_case, write_case
from medseg.training import batches as module
from medseg.training.batches import batches, draw_sample, encode_target, validation_batches
from medseg.training.focus import uniform_classes
from medseg.training.sampling import (
    TRAIN,
    centred_box,
    draw_box,
    draw_point,
    draw_voxel,
    generators,
    grow,
    is_forced,
    read_patch,
)
from medseg.types.geometry import Box, Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import Step

CPU = torch.device("cpu")
TWO = Labels((Label("a", (1,)), Label("b", (2,))))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return [open_case(folder, name) for name in fill_cache(folder, 3, shape=(12, 20, 18))]


def first(plan, cases, count=3, **options):
    stream = batches(plan, cases, device=CPU, **options)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def same(ones, others):
    return all(
        torch.equal(a.image, b.image) and torch.equal(a.target, b.target) for a, b in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize("ndim", [2, 3])
def test_batches_are_the_same_for_any_number_of_workers(cases, ndim):
    plan = tiny_plan(ndim=ndim)
    alone = first(plan, cases)
    assert alone[0].image.shape == (2, 1, *plan.sampling.patch[3 - ndim :])
    assert alone[0].target.shape == alone[0].image.shape
    assert same(alone, first(plan, cases, workers=1))
    assert same(alone, first(plan, cases, workers=2))
    assert not same(alone, first(tiny_plan(ndim=ndim, seed=1), cases))


def test_a_stream_begun_at_step_n_yields_the_batches_of_step_n(cases):
    plan = tiny_plan()
    assert same(first(plan, cases, 4)[2:], first(plan, cases, 2, start=2))


def test_batches_of_different_steps_and_samples_differ(cases):
    plan = tiny_plan(augment=(Step("noise", {"p": 1.0}),))
    images = [image for batch in first(plan, cases, 3) for image in batch.image]
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_validation_batches_repeat_and_go_round_all_cases(cases, monkeypatch):
    plan = tiny_plan()
    seen = []
    read = module.read_patch
    monkeypatch.setattr(
        module, "read_patch", lambda case, box, **more: (seen.append(case.case_id), read(case, box, **more))[1]
    )
    once = list(validation_batches(plan, cases, steps=3, device=CPU))
    assert same(once, list(validation_batches(plan, cases, steps=3, device=CPU, workers=2)))
    assert seen[:6] == ["a", "b", "c", "a", "b", "c"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_patch_that_cannot_be_read_names_its_case(cases, workers, monkeypatch):
    def broken(self, box):
        raise OSError("disk on fire")

    monkeypatch.setattr(CachedCase, "read", broken)
    with pytest.raises(TrainingError, match=r"^[abc]: cannot read a patch \(OSError: disk on fire\)"):
        first(tiny_plan(), cases, workers=workers)


def test_labels_become_class_indices():
    labels = torch.tensor([[[[0, 7, 3], [255, 3, 0]]]], dtype=torch.int16)
    meaning = Labels((Label("x", (3,)), Label("y", (7,))), ignore=255)
    target = encode_target(labels, meaning)
    assert target.tolist() == [[[[0, 2, 1], [-1, 1, 0]]]]
    assert target.dtype == torch.int64


def test_regions_get_one_channel_each_and_share_voxels():
    labels = torch.tensor([[[0, 1, 2, 9]]], dtype=torch.int32)
    meaning = Labels((Label("whole", (1, 2)), Label("core", (2,))), ignore=9)
    assert encode_target(labels, meaning).tolist() == [[[0, 1, 1, -1], [0, 0, 1, -1]]]


def test_the_last_third_of_a_batch_is_forced():
    counts = [sum(is_forced(0, i, batch, 0.33) for i in range(batch)) for batch in (1, 2, 3, 9, 12)]
    assert counts == [0, 1, 1, 3, 4]
    assert is_forced(0, 8, 9, 0.33) and not is_forced(0, 5, 9, 0.33)
    assert not is_forced(0, 1, 2, 0.0)
    alone = [is_forced(step, 0, 1, 0.33) for step in range(300)]
    assert sum(alone) == 99 and max(len(gap) for gap in "".join("F-"[not f] for f in alone).split("F")) <= 3


def test_classes_are_drawn_evenly_however_large():
    foreground = {1: np.zeros((5000, 3), np.int32), 2: np.ones((3, 3), np.int32)}
    rng = np.random.default_rng(0)
    drawn = [draw_voxel(rng, foreground, TWO) for _ in range(1000)]
    assert 440 < drawn.count((1, 1, 1)) < 560
    assert draw_voxel(rng, {}, TWO) is None
    assert draw_voxel(rng, {9: np.ones((2, 3), np.int32)}, TWO) is None


def test_regions_are_drawn_evenly():
    foreground = {1: np.zeros((10, 3), np.int32), 2: np.ones((10, 3), np.int32)}
    regions = Labels((Label("whole", (1, 2)), Label("core", (2,))))
    rng = np.random.default_rng(0)
    core = sum(draw_voxel(rng, foreground, regions) == (1, 1, 1) for _ in range(1000))
    assert 690 < core < 810  # half as core, a quarter through the whole


def test_boxes_of_ultrasound_are_centred_in_the_fan_but_stay_within_the_scan():
    rng = np.random.default_rng(0)
    inside = np.array([[0, 4, 90], [0, 50, 60]], np.int32)
    boxes = {centred_box(rng, (1, 100, 100), (1, 32, 32), inside) for _ in range(50)}
    assert boxes == {Box((0, 0, 68), (1, 32, 100)), Box((0, 34, 44), (1, 66, 76))}
    assert centred_box(rng, (1, 20, 100), (1, 32, 32), inside).start[1] == -6


def test_samples_without_foreground_lie_in_the_fan(tmp_path):
    plan = tiny_plan(ndim=2, augment=())
    image = np.zeros((1, 1, 64, 64), np.float32)
    image[..., 40:44, 10:50] = 1.0
    grid = Geometry((1, 64, 64), (1.0, 1.0, 1.0))
    labels = LabelMap(np.zeros(grid.shape, np.uint8), grid, plan.labels)
    write_case(tmp_path, "a", Image(image, grid, ("US",)), labels, patch=(1, 16, 16), inside=image[0] != 0)
    case = open_case(tmp_path, "a")
    assert len(case.inside) == 160 and case.foreground == {}
    assert all(
        draw_sample(plan, uniform_classes([case], plan.labels), step, 0)[0].image.max() == 1 for step in range(40)
    )


def test_a_box_holds_its_voxel_and_lies_inside_where_it_can():
    rng = np.random.default_rng(0)
    for _ in range(200):
        voxel = tuple(int(v) for v in rng.integers(0, (30, 40, 50)))
        box = draw_box(rng, (30, 40, 50), (16, 16, 16), voxel)
        assert all(a <= v < b for a, v, b in zip(box.start, voxel, box.stop, strict=True))
        assert min(box.start) >= 0
        free = draw_box(rng, (30, 40, 50), (16, 16, 16), None)
        assert min(free.start) >= 0 and all(b <= n for b, n in zip(free.stop, (30, 40, 50), strict=True))


def test_random_boxes_reach_both_ends():
    rng = np.random.default_rng(0)
    starts = {draw_box(rng, (8, 6, 6), (6, 6, 6), None).start[0] for _ in range(100)}
    assert starts == {0, 1, 2}


def test_a_small_scan_is_centred():
    box = draw_box(np.random.default_rng(0), (8, 9, 20), (16, 16, 16), None)
    assert box.start[:2] in {(-4, -3), (-4, -4)}
    assert box.shape == (16, 16, 16)


def test_a_flat_box_takes_the_slice_of_the_voxel():
    box = draw_box(np.random.default_rng(0), (30, 40, 50), (1, 16, 16), (17, 20, 20))
    assert (box.start[0], box.stop[0]) == (17, 18)


def test_a_grown_box_gives_the_patch_back_after_a_centre_crop():
    box = Box((3, 4, 5), (13, 14, 15))
    grown = grow(box, (15, 10, 18))
    offset = [(n - m) // 2 for n, m in zip(grown.shape, box.shape, strict=True)]
    assert tuple(a + o for a, o in zip(grown.start, offset, strict=True)) == box.start


def test_outside_of_the_scan_a_patch_is_zero(cases):
    patch = read_patch(cases[0], Box((-2, 0, 10), (10, 20, 26)), ndim=3)
    image, labels = cases[0].read(Box((0, 0, 10), (10, 20, 18)))
    assert torch.equal(patch.image[:, 2:, :, :8], torch.from_numpy(image))
    assert np.array_equal(patch.labels[0, 2:, :, :8].numpy(), labels)
    assert not patch.image[:, :2].any() and not patch.labels[..., 8:].any()


def test_generators_depend_on_every_part_of_the_key():
    keys = [(0, TRAIN, 0, 0), (1, TRAIN, 0, 0), (0, 1, 0, 0), (0, TRAIN, 1, 0), (0, TRAIN, 0, 1)]
    drawn = {generators(*key)[0].integers(2**40) for key in keys}
    torch_drawn = {float(torch.rand(1, generator=generators(*key)[1])) for key in keys}
    assert len(drawn) == len(torch_drawn) == 5
    assert generators(*keys[0])[0].integers(2**40) in drawn


def test_forced_patches_show_foreground_in_both_dimensions(cases):
    for ndim in (2, 3):
        for batch in first(tiny_plan(ndim=ndim, augment=()), cases, 10):
            assert (batch.target[1] > 0).any()


def landmark_plan(*, ndim=3, names=("tip", "lost", "edge"), **training):
    """A plan without labels whose patch holds the scans of `landmark_case`."""
    plan = replace(tiny_plan(ndim=ndim, **training), labels=Labels(()), landmarks=names)
    preprocess = replace(plan.preprocess, spacing_mm=(2.0, 0.5, 0.25))
    return replace(plan, preprocess=preprocess, sampling=replace(plan.sampling, patch=(1 if ndim == 2 else 16, 24, 32)))


def landmark_case(folder, *, shape=(14, 24, 30), points, ndim=3):
    """A scan that is bright at its points only: a point's grey value is its number + 1."""
    if ndim == 2:
        shape = (1, *shape[1:])
    image = np.zeros((1, *shape), np.float32)
    for number, point in enumerate(points):
        if all(0 <= value < n for value, n in zip(point, shape, strict=True)):
            image[(0, *(int(v) for v in point))] = number + 1
    grid = Geometry(shape, (2.0, 0.5, 0.25))
    labels = LabelMap(np.zeros(shape, np.uint8), grid, Labels(()))
    write_case(folder, "a", Image(image, grid, ("MR",)), labels, patch=(16, 16, 16), points=np.array(points, float))
    return open_case(folder, "a")


@pytest.mark.parametrize("ndim", [2, 3])
def test_points_of_a_batch_are_where_the_scan_is_bright_in_it(tmp_path, ndim):
    z = 6.0 if ndim == 3 else 0.0
    case = landmark_case(tmp_path, points=[[z, 5, 7], [np.nan] * 3, [z + (ndim == 3), 20, 28]], ndim=ndim)
    mirror = Step("mirror", {"axes": [1, 2], "swap_axis": 2, "swap_points": [0, 2]})
    plan = landmark_plan(ndim=ndim, augment=(mirror,))
    swapped = 0
    for batch in first(plan, [case], 8):
        assert batch.spacing == (2.0, 0.5, 0.25)[3 - ndim :]
        assert batch.points.shape == (2, 3, ndim) and batch.points.dtype == torch.float32
        assert not batch.target.any() and batch.target.shape[1] == 1
        for image, points in zip(batch.image[:, 0], batch.points, strict=True):
            assert points[1].isnan().all()
            values = [float(image[tuple(points[number].int())]) for number in (0, 2)]
            assert sorted(values) == [1.0, 3.0]
            swapped += values == [3.0, 1.0]
    assert 2 < swapped < 14


def test_small_scans_of_landmark_plans_are_centred_and_whole(tmp_path):
    case = landmark_case(tmp_path, points=[[13, 23, 29], [0, 0, 0], [3, 4, 5]])
    for step in range(10):
        for index in (0, 1):
            plan = landmark_plan(augment=())
            patch, _ = draw_sample(plan, uniform_classes([case], plan.labels), step, index)
            assert patch.points.tolist() == [[14, 23, 30], [1, 0, 1], [4, 4, 6]]


def test_patches_of_larger_scans_stay_within_them_and_forced_ones_hold_a_point(tmp_path):
    case = landmark_case(tmp_path, shape=(40, 24, 90), points=[[39, 20, 89], [np.nan] * 3, [500, 0, 0]])
    plan = landmark_plan(augment=())
    for step in range(12):
        forced, _ = draw_sample(plan, uniform_classes([case], plan.labels), step, 1)
        assert forced.points[0].tolist() == [15, 20, 31]
        free, _ = draw_sample(plan, uniform_classes([case], plan.labels), step, 0)
        assert free.points[0].min() >= 0
    batch = next(iter(validation_batches(plan, [case], steps=1, device=CPU)))
    assert batch.points[1, 0].tolist() == [15, 20, 31]
    assert batch.points[:, 1:].isnan().all()


def test_points_that_augmentation_moves_out_of_the_patch_are_unknown(tmp_path):
    case = landmark_case(tmp_path, points=[[7, 0, 0], [7, 12, 15], [7, 23, 29]])
    zoom = Step("affine", {"p": 1.0, "degrees": 0.0, "scale_low": 0.5, "scale_high": 0.5})
    (batch,) = first(landmark_plan(augment=(zoom,)), [case], 1)
    assert batch.points[:, [0, 2]].isnan().all() and batch.points[:, 1].isfinite().all()


def test_a_slice_knows_only_the_points_that_lie_in_it(tmp_path):
    case = landmark_case(tmp_path, points=[[7.4, 3, 4], [6.4, 5, 6], [8, 1, 1]])
    patch = read_patch(case, Box((7, 0, 0), (8, 24, 30)), ndim=2)
    assert patch.points[0].tolist() == pytest.approx([3, 4])
    assert patch.points[1:].isnan().all()


def test_points_are_drawn_only_where_they_lie_in_the_scan(tmp_path):
    case = landmark_case(tmp_path, points=[[-3, 0, 0], [2.6, 3.2, 4], [np.nan] * 3])
    assert {draw_point(np.random.default_rng(seed), case) for seed in range(9)} == {(3, 3, 4)}
    assert draw_point(np.random.default_rng(0), replace(case, points=case.points[[0, 2]])) is None
    assert draw_point(np.random.default_rng(0), replace(case, points=None)) is None

"""A fingerprint on phantoms whose numbers are known, in every stored orientation."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import DatasetError
from medseg.io.datasets import read_dataset
from medseg.io.images import write_labels, write_scores
from medseg.io.landmarks import write_landmarks
from medseg.io.records import format_record, read_record, to_plain
from medseg.planning.atlas import label_atlas, mirror_correlation, mirror_overlap, pooled, standardised
from medseg.planning.fingerprint import common_orientation, measure_case, measure_dataset
from medseg.planning.intensity_stats import intensity_stats, sample_voxels
from medseg.planning.near_duplicates import find_look_alikes, thumbnail
from medseg.preprocess.orientation import reorient
from medseg.types.fingerprint import Fingerprint
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap, Probabilities
from medseg.types.labels import Label, Labels
from medseg.types.landmarks import Landmarks

LABELS = Labels((Label("organ", (1,)), Label("both", (1, 2), write=2)), ignore=9)


def phantom(seed: int = 0, shape=(6, 20, 16), spacing=(3.0, 1.0, 1.0)) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """A box off centre along x, symmetric along y; values 100 inside and noise of mean 10 outside."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    z, y, x = shape
    labels[1 : z - 1, y // 4 : y - y // 4, x // 2 : x - 2] = 1
    labels[2, y // 4 : y - y // 4, x // 2] = 2
    image = np.where(labels > 0, 100, rng.normal(10, 2, shape)).astype(np.float32)[None]
    return image, labels, Geometry(shape, spacing)


def write_dataset(folder: Path, codes, labels=LABELS, suffix=".nii.gz", **changes) -> Path:
    (folder / "imagesTr").mkdir(parents=True)
    table = {item.name: list(item.values) for item in labels.items} | {"ignore": labels.ignore}
    content = {"channel_names": {"0": "CT"}, "labels": table, "file_ending": suffix, "regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(content))
    for seed, code in enumerate(codes):
        image, values, grid = phantom(seed, **changes)
        array, geometry = reorient(image, grid, code)
        target, _ = reorient(values, grid, code)
        write_scores(
            Probabilities(np.ascontiguousarray(array), geometry, labels), folder / f"imagesTr/c{seed}_0000{suffix}"
        )
        write_labels(LabelMap(np.ascontiguousarray(target), geometry, labels), folder / f"labelsTr/c{seed}{suffix}")
    return folder


def test_numbers_are_those_of_the_phantom_however_it_is_stored(tmp_path):
    dataset = read_dataset(write_dataset(tmp_path / "d", ["LPS", "RAS", "PSL", "SRA"]))
    found = measure_dataset(dataset, workers=2)
    assert (found.ndim, found.unit, found.orientation) == (3, "mm", "LPS")
    for case in found.cases:
        assert case.shape == (6, 20, 16)
        assert case.cropped_shape == (6, 20, 16)
        assert case.spacing_mm == pytest.approx((3.0, 1.0, 1.0))
        assert case.class_voxels == (4 * 10 * 6 - 10, 4 * 10 * 6)
        assert case.intensity[0].mean == 100
        assert case.intensity[0].std == 0
    assert [case.stored_orientation for case in found.cases] == ["LPS", "RAS", "PSL", "SRA"]
    assert found.intensity[0].median == 100
    assert found.mirror_labels[1] == 1
    assert found.mirror_labels[0] > found.mirror_labels[2]
    assert found.mirror_labels[2] == 0
    assert found.mirror_image[1] > 0.95
    assert found.mirror_image[2] < 0.5


@pytest.mark.parametrize(
    ("shape", "spacing", "code"), [((20, 6, 16), (1, 4, 1), "LSP"), ((20, 16, 6), (1, 1, 4), "PSL")]
)
def test_the_coarsest_axis_becomes_z(tmp_path, shape, spacing, code):
    dataset = read_dataset(write_dataset(tmp_path / "d", ["LPS"], shape=shape, spacing=spacing))
    found = measure_dataset(dataset, workers=1)
    image, values, grid = phantom(0, shape, spacing)
    view, turned = reorient(image, grid, code)
    assert found.orientation == code
    assert found.cases[0].shape == turned.shape
    assert found.cases[0].spacing_mm == pytest.approx(turned.spacing_mm)
    target, _ = reorient(values, grid, code)
    atlas = label_atlas(target, ((1,), (1, 2)), (32, 32, 32))
    assert found.mirror_labels == pytest.approx(mirror_overlap(atlas), abs=1e-6)
    assert found.mirror_image == pytest.approx(mirror_correlation(pooled(view[0], (32, 32, 32))), abs=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.2, 1.0), (1.0, 1.4, 1.3), (5.0, 1.0, 1.0)])
def test_nearly_isotropic_and_axial_scans_stay_axial(spacing):
    assert common_orientation([spacing] * 3) == "LPS"


def test_flat_images_stay_as_stored(tmp_path):
    labels = Labels((Label("lesion", (255,)),))
    folder = tmp_path / "us"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "us"}, "labels": {"lesion": 255}, "file_ending": ".png"})
    )
    for i in range(3):
        mask = np.zeros((1, 40, 50), np.uint8)
        mask[0, 5:15, 20:30] = 255
        grid = Geometry(mask.shape, (1.0, 1.0, 1.0), unit="px")
        write_labels(LabelMap(mask // 2 + 20 * i, grid, labels), folder / f"imagesTr/c{i}_0000.png")
        write_labels(LabelMap(mask, grid, labels), folder / f"labelsTr/c{i}.png")
    found = measure_dataset(read_dataset(folder))
    assert (found.ndim, found.unit, found.orientation) == (2, "px", "stored")
    assert found.cases[0].shape == (1, 40, 50)
    assert found.cases[0].class_voxels == (100,)
    assert found.cases[0].cropped_shape == (1, 10, 10)
    assert found.mirror_labels == (1.0, 0.0, 1.0)
    assert found.mirror_image[0] == 1.0


def test_a_single_slice_among_volumes_follows_the_volumes(tmp_path):
    folder = write_dataset(tmp_path / "d", ["LPS", "LPS"])
    image, values, grid = phantom(5)
    part = replace(grid, shape=(1, 20, 16))
    write_scores(Probabilities(image[:, 2:3], part, LABELS), folder / "imagesTr/c1_0000.nii.gz")
    write_labels(LabelMap(values[2:3], part, LABELS), folder / "labelsTr/c1.nii.gz")
    found = measure_dataset(read_dataset(folder))
    assert (found.ndim, found.orientation) == (3, "LPS")
    assert [case.shape for case in found.cases] == [(6, 20, 16), (1, 20, 16)]
    assert found.mirror_labels[1] == 1


def test_text_is_the_same_for_any_number_of_workers(tmp_path):
    dataset = read_dataset(write_dataset(tmp_path / "d", ["LPS", "RAS", "LPI", "PSR", "LPS"]))
    seen = []
    texts = {format_record(measure_dataset(dataset, workers=n, report=seen.append)) for n in (1, 2, 4)}
    assert len(texts) == 1
    assert [(p.stage, p.done, p.total) for p in seen[:5]] == [("measure", i, 5) for i in range(1, 6)]


def test_cases_without_foreground_count_only_for_themselves(tmp_path):
    folder = write_dataset(tmp_path / "d", ["LPS", "LPS"])
    _, values, grid = phantom(1)
    write_labels(LabelMap(np.where(values > 0, 9, 0).astype(np.uint8), grid, LABELS), folder / "labelsTr/c1.nii.gz")
    found = measure_dataset(read_dataset(folder))
    assert found.cases[1].class_voxels == (0, 0)
    assert found.cases[1].intensity[0].median < 20
    assert found.intensity[0].minimum == 100


def test_a_repaired_grid_is_a_warning_and_every_bad_case_is_named(tmp_path):
    folder = write_dataset(tmp_path / "d", ["LPS"] * 4)
    _, values, grid = phantom(0)
    for case, shift in (("c1", 0.005), ("c2", 5.0)):
        moved = replace(grid, origin_mm=(shift, 0.0, 0.0))
        write_labels(LabelMap(values, moved, LABELS), folder / f"labelsTr/{case}.nii.gz")
    (folder / "labelsTr/c3.nii.gz").write_bytes(b"no image")
    dataset = read_dataset(folder)
    with pytest.raises(DatasetError) as caught:
        measure_dataset(dataset)
    assert "2 faults" in str(caught.value)
    assert "c2" in str(caught.value)
    assert "c3" in str(caught.value)
    good = measure_dataset(replace(dataset, cases=dataset.cases[:2]))
    assert [len(case.warnings) for case in good.cases] == [0, 1]


def test_scans_with_and_without_spacing_do_not_mix(tmp_path):
    folder = write_dataset(tmp_path / "d", ["LPS", "LPS"])
    image, values, grid = phantom(1)
    bare = replace(grid, unit="px")
    write_scores(Probabilities(image, bare, LABELS), folder / "imagesTr/c1_0000.nii.gz")
    write_labels(LabelMap(values, bare, LABELS), folder / "labelsTr/c1.nii.gz")
    with pytest.raises(DatasetError, match="no spacing in mm"):
        measure_dataset(read_dataset(folder))


def test_a_dataset_without_cases_is_refused(tmp_path):
    dataset = read_dataset(write_dataset(tmp_path / "d", ["LPS"]))
    with pytest.raises(DatasetError, match="no cases"):
        measure_dataset(replace(dataset, cases=()))


def test_samples_are_small_foreground_only_and_spread():
    array = np.arange(2 * 30 * 40 * 50, dtype=np.float32).reshape(2, 30, 40, 50)
    mask = np.zeros((30, 40, 50), bool)
    mask[10:20] = True
    found = sample_voxels(array, mask, name="a", size=500)
    inside = array[:, mask]
    assert found.shape == (2, 500)
    assert np.isin(found[0], inside[0]).all()
    assert (found[1] - found[0] == 60_000).all()
    assert len(np.unique(found[0])) == 500
    assert abs(found[0].mean() / inside[0].mean() - 1) < 0.01
    assert np.array_equal(sample_voxels(array, mask, name="a", size=10**6), inside)
    assert np.array_equal(sample_voxels(array, None, name="a", size=10**6), array.reshape(2, -1))
    assert not np.array_equal(sample_voxels(array, mask, name="b", size=500), found)
    assert sample_voxels(array, mask & False, name="a").shape == (2, 0)


def test_statistics_are_numpys():
    values = np.random.default_rng(0).normal(50, 20, 5000).astype(np.float32)
    found = intensity_stats(values)
    assert found.mean == pytest.approx(values.mean(), rel=1e-5)
    assert found.std == pytest.approx(values.std(), rel=1e-5)
    assert (found.p005, found.p995) == pytest.approx(tuple(np.percentile(values, (0.5, 99.5))), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), boxes=st.tuples(*[st.integers(1, 6)] * 3))
def test_pooling_keeps_the_mean_and_commutes_with_mirrors(shape, boxes):
    volume = np.random.default_rng(0).random(shape)
    small = pooled(volume, boxes)
    assert small.shape == boxes
    assert small.mean() == pytest.approx(volume.mean())
    for axis in range(3):
        np.testing.assert_allclose(pooled(np.flip(volume, axis), boxes), np.flip(small, axis))
    repeated = volume
    for axis, n in enumerate(boxes):
        repeated = np.repeat(repeated, n, axis)
    blocks = repeated.reshape([n for pair in zip(boxes, shape, strict=True) for n in pair])
    np.testing.assert_allclose(small, blocks.mean(axis=(1, 3, 5)))


def test_label_atlas_is_the_pooled_one_hot():
    labels = np.random.default_rng(0).integers(0, 4, (5, 7, 9)).astype(np.uint8)
    labels[:2] = 0
    atlas = label_atlas(labels, ((1,), (2, 3), (7,)), (4, 4, 4))
    np.testing.assert_allclose(atlas[0], pooled(labels == 1, (4, 4, 4)), atol=1e-12)
    np.testing.assert_allclose(atlas[1], pooled(labels > 1, (4, 4, 4)), atol=1e-12)
    assert not atlas[2].any()


def test_mirror_measures_of_known_pictures():
    rng = np.random.default_rng(0)
    half = rng.random((1, 8, 8, 4))
    even = np.concatenate([half, half[..., ::-1]], axis=-1)
    assert mirror_overlap(even)[2] == pytest.approx(1)
    assert mirror_correlation(even[0])[2] == pytest.approx(1)
    assert mirror_correlation(np.concatenate([half, -half[..., ::-1]], axis=-1)[0])[2] == pytest.approx(-1)
    onesided = np.concatenate([half, 0 * half], axis=-1)
    assert mirror_overlap(onesided)[2] == 0
    assert mirror_overlap(np.concatenate([even, even, onesided]))[2] == 0, "one sided class decides"
    assert mirror_overlap(0 * even) == (0.0, 0.0, 0.0)
    assert mirror_correlation(even[0, :1])[0] == pytest.approx(1)
    noise = standardised(rng.random((16, 16, 16)))
    z, y, x = mirror_correlation(noise)
    assert (z, y, x) == pytest.approx(
        tuple(np.corrcoef(noise.ravel(), np.flip(noise, a).ravel())[0, 1] for a in (0, 1, 2))
    )


def test_measuring_one_case_reads_no_files():
    image, values, grid = phantom()
    one, pictures = measure_case("a", Image(image, grid, ("CT",)), LabelMap(values, grid, LABELS))
    assert one.case.case_id == "a"
    assert one.sample.shape == (1, 240)
    assert pictures.classes.shape == (2, 32, 32, 32)
    assert pictures.classes[1].mean() == pytest.approx(240 / values.size)


def test_look_alikes_survive_scaling_gain_and_noise_and_leave_others_alone():
    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.random((12, 12)), np.ones((10, 10)))[None, None] for _ in range(6)]
    shown = {f"p{i}": thumbnail(picture) for i, picture in enumerate(pictures)}
    again = np.kron(pictures[2][0, 0], np.ones((2, 2)))[None, None] * 40 + 7
    shown["again"] = thumbnail(again + rng.normal(0, 4, again.shape))
    shown["chain"] = thumbnail(again)
    shown["flat"] = thumbnail(np.zeros((1, 1, 9, 9)))
    shown["flat2"] = thumbnail(np.ones((1, 1, 9, 9)))
    shown["volume"] = thumbnail(rng.random((1, 4, 9, 9)))
    (found,) = find_look_alikes(shown)
    assert found.case_ids == ("again", "chain", "p2")
    assert found.correlation > 0.999


@pytest.mark.parametrize("code", ["LPS", "RSP"])
def test_left_and_right_count_as_exchanged_between_the_sides_only(tmp_path, code):
    names = Labels((Label("kidney_left", (1,)), Label("kidney_right", (2,)), Label("spine", (3,))))
    shape, grid = (8, 12, 20), Geometry((8, 12, 20), (1.0, 1.0, 1.0))
    values = np.zeros(shape, np.uint8)
    values[2:6, 3:9, 13:17], values[2:6, 3:9, 3:7], values[:, 4:8, 9:11] = 1, 2, 3
    image = np.where(values, 100, np.random.default_rng(0).normal(0, 1, shape)).astype(np.float32)[None]
    (tmp_path / "imagesTr").mkdir()
    table = {"background": 0} | {item.name: item.values[0] for item in names.items}
    content = {"channel_names": {"0": "CT"}, "labels": table, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    array, geometry = reorient(image, grid, code)
    target, _ = reorient(values, grid, code)
    write_scores(Probabilities(np.ascontiguousarray(array), geometry, names), tmp_path / "imagesTr/a_0000.nii.gz")
    write_labels(LabelMap(np.ascontiguousarray(target), geometry, names), tmp_path / "labelsTr/a.nii.gz")
    found = measure_dataset(read_dataset(tmp_path))
    assert found.mirror_labels == pytest.approx((1, 1, 1), abs=1e-6)
    table["pelvis_left"] = table.pop("kidney_left")
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "labels": table}))
    assert measure_dataset(read_dataset(tmp_path)).mirror_labels == pytest.approx((1, 1, 0), abs=1e-6)


def test_landmarks_are_counted_where_they_lie_in_the_scan_and_old_fingerprints_have_none(tmp_path):
    folder = write_dataset(tmp_path / "d", ["RAS", "LPS"], spacing=(2.0, 1.0, 0.5))
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "landmarks": {}}))
    (folder / "landmarksTr").mkdir()
    points = np.array([[7.6, 0.0, 10.0], [8.1, 0.0, 0.0], [np.nan] * 3])  # the last column's centre is 7.5
    write_landmarks(Landmarks(("in", "out", "unknown"), points), folder / "landmarksTr/c0.csv")
    found = measure_dataset(read_dataset(folder))
    assert found.landmarks == ("in", "out", "unknown")
    assert [case.landmarks for case in found.cases] == [("in",), ()]
    assert found.landmark_across == (0.9812, 1.0437, None), "places 15.7 and 16.7 of 16 columns, from the right"
    plain = {key: value for key, value in to_plain(found).items() if "landmark" not in key}
    plain["cases"] = [{k: v for k, v in case.items() if k != "landmarks"} for case in plain["cases"]]
    (tmp_path / "old.json").write_text(json.dumps(plain))
    old = read_record(tmp_path / "old.json", Fingerprint)
    assert old.landmarks == () and old.cases[0].landmarks == ()


def test_a_data_set_of_landmarks_alone_is_measured(tmp_path):
    folder = write_dataset(tmp_path / "d", ["LPS"])
    content = {"channel_names": {"0": "CT"}, "landmarks": {"names": ["tip"]}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "landmarksTr").mkdir()
    write_landmarks(Landmarks(("tip",), np.array([[1.0, 2.0, 3.0]])), folder / "landmarksTr/c0.csv")
    found = measure_dataset(read_dataset(folder))
    assert found.labels == Labels(()) and found.cases[0].class_voxels == ()
    assert found.cases[0].landmarks == ("tip",) and found.mirror_labels == (1.0, 1.0, 1.0)
    assert found.intensity[0].maximum == 100


def test_ignored_voxels_are_counted_where_the_scan_is_not_empty():
    labels = Labels((Label("a", (1,)),), ignore=9)
    image, target = np.zeros((1, 10, 8, 8), np.float32), np.full((10, 8, 8), 9, np.uint8)
    image[0, 2:6, 1:5, 1:5], target[3] = 5.0, 0
    target[3, 2, 2] = 1
    grid = Geometry((10, 8, 8), (1.0, 1.0, 1.0))
    one, _ = measure_case("a", Image(image, grid, ("MR",)), LabelMap(target, grid, labels))
    assert one.case.cropped_shape == (4, 4, 4) and one.case.ignored_voxels == 48
    assert one.case.lowest == (0.0,) and one.case.class_voxels == (1,)

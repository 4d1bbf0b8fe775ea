import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import blosc2
import numpy as np
import pytest
from full_disk import full_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import DatasetError, GeometryError
from medseg.io.cache import cache_key, is_complete, open_case, write_case
from medseg.types.geometry import Box, Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import Preprocess, Step

LABELS = Labels((Label("a", (1,)), Label("b", (2,))), ignore=9)
GRID = Geometry((20, 24, 18), (0.3, 0.4, 0.5), (1.0, 2.0, 3.0))
PATCH = (8, 8, 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rng = np.random.default_rng(0)
    image = Image(rng.normal(size=(2, *GRID.shape)).astype(np.float32), GRID, ("T1", "T2"))
    array = rng.choice([0, 1, 2, 9], p=[0.7, 0.15, 0.1, 0.05], size=GRID.shape).astype(np.uint8)
    folder = tmp_path_factory.mktemp("mit Lücke")
    write_case(folder, "Fall ä/1", image, LabelMap(array, GRID, LABELS), patch=PATCH)
    return folder, image, array


def test_a_case_comes_back_exactly(made):
    folder, image, array = made
    case = open_case(folder, "Fall ä/1")
    voxels, labels = case.read(Box((0, 0, 0), case.shape))
    np.testing.assert_array_equal(voxels, image.array)
    np.testing.assert_array_equal(labels, array)
    assert voxels.dtype == np.float32
    assert labels.dtype == np.uint8
    assert case.geometry == GRID
    assert case.channels == ("T1", "T2")
    assert sorted(p.name for p in folder.iterdir()) == [
        "Fall ä%2F1.foreground.safetensors", "Fall ä%2F1.image.b2nd", "Fall ä%2F1.json", "Fall ä%2F1.labels.b2nd"
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(-12, 30)] * 3), st.tuples(*[st.integers(1, 16)] * 3))
def test_any_box_is_the_slice_of_a_zero_padded_case(made, start, size):
    folder, image, array = made
    box = Box(start, tuple(a + n for a, n in zip(start, size, strict=True)))
    wide = 50
    slices = tuple(slice(a + wide, b + wide) for a, b in zip(box.start, box.stop, strict=True))
    voxels, labels = open_case(folder, "Fall ä/1").read(box)
    np.testing.assert_array_equal(voxels, np.pad(image.array, [(0, 0)] + [(wide, wide)] * 3)[(slice(None), *slices)])
    np.testing.assert_array_equal(labels, np.pad(array, wide)[slices])


def test_foreground_holds_all_voxels_of_each_value_but_not_ignored_ones(made):
    folder, _, array = made
    case = open_case(folder, "Fall ä/1")
    assert list(case.foreground) == [1, 2]
    for value, positions in case.foreground.items():
        np.testing.assert_array_equal(positions, np.argwhere(array == value))
        assert positions.dtype == np.int32
        assert case.foreground_voxels[value] == np.count_nonzero(array == value)


def test_large_labels_are_sampled_repeatably_without_repeats(tmp_path):
    grid = Geometry((30, 30, 30), (1.0, 1.0, 1.0))
    labels = LabelMap(np.full(grid.shape, 2, np.uint16), grid, LABELS)
    image = Image(np.zeros((1, *grid.shape), np.float32), grid, ("CT",))
    for name in ("a", "b"):
        write_case(tmp_path, name, image, labels, patch=(16, 16, 16))
    first, second = (open_case(tmp_path, name).foreground[2] for name in ("a", "b"))
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first, axis=0)) == 10_000
    np.testing.assert_allclose(first.mean(axis=0), 14.5, atol=0.5)
    assert open_case(tmp_path, "a").foreground_voxels == {2: 27_000}


def test_a_case_without_foreground_is_fine(tmp_path):
    image = Image(np.zeros((1, 1, 30, 40), np.float32), grid := Geometry((1, 30, 40), (1.0, 1.0, 1.0)), ("US",))
    write_case(tmp_path, "leer", image, LabelMap(np.zeros(grid.shape, np.uint8), grid, LABELS), patch=(1, 64, 64))
    case = open_case(tmp_path, "leer")
    assert case.foreground == {}
    assert case.read(Box((0, 0, 0), (1, 64, 64)))[0].shape == (1, 1, 64, 64)


def test_chunks_are_patches_and_blocks_are_small(tmp_path):
    grid = Geometry((70, 130, 90), (1.0, 1.0, 1.0))
    image = Image(np.zeros((1, *grid.shape), np.float32), grid, ("CT",))
    write_case(tmp_path, "a", image, LabelMap(np.zeros(grid.shape, np.uint8), grid, LABELS), patch=(64, 96, 96))
    array = blosc2.open(str(tmp_path / "a.image.b2nd"), mode="r")
    assert array.chunks == (1, 64, 96, 90)
    assert np.prod(array.blocks) <= 32**3


def test_incomplete_cases_are_seen_and_refused(made, tmp_path):
    _, image, array = made
    labels = LabelMap(array, GRID, LABELS)
    assert not is_complete(tmp_path, "a")
    with pytest.raises(DatasetError, match="prepare it again"):
        open_case(tmp_path, "a")
    write_case(tmp_path, "a", image, labels, patch=PATCH)
    assert is_complete(tmp_path, "a", verify=True)
    path = tmp_path / "a.labels.b2nd"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert not is_complete(tmp_path, "a")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert is_complete(tmp_path, "a")
    assert not is_complete(tmp_path, "a", verify=True)
    (tmp_path / "a.json").write_text("{")
    assert not is_complete(tmp_path, "a")


def test_a_crash_before_the_end_leaves_no_case(made, tmp_path, monkeypatch):
    _, image, array = made
    labels = LabelMap(array, GRID, LABELS)
    write_case(tmp_path, "a", image, labels, patch=PATCH)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("medseg.io.cache.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_case(tmp_path, "a", replace(image, array=image.array + 1), labels, patch=PATCH)
    assert not is_complete(tmp_path, "a")
    assert not list(tmp_path.glob(".part-*"))


def test_changed_inputs_are_seen(made, tmp_path):
    _, image, array = made
    source, series = tmp_path / "scan.nii", tmp_path / "dicom"
    source.write_bytes(b"12")
    series.mkdir()
    (series / "1").write_bytes(b"1")
    write_case(tmp_path, "a", image, LabelMap(array, GRID, LABELS), patch=PATCH, sources=(source, series))
    assert is_complete(tmp_path, "a", sources=(source, series))
    assert not is_complete(tmp_path, "a", sources=(source,))
    (series / "2").write_bytes(b"2")
    assert not is_complete(tmp_path, "a", sources=(source, series))
    assert not is_complete(tmp_path, "a", sources=(tmp_path / "gone", series))


def test_voxels_that_change_beside_their_header_are_seen(made, tmp_path):
    _, image, array = made
    header, voxels = tmp_path / "scan.mhd", tmp_path / "scan.raw"
    header.write_text("ElementDataFile = scan.raw\n")
    voxels.write_bytes(b"12")
    write_case(tmp_path, "a", image, LabelMap(array, GRID, LABELS), patch=PATCH, sources=(header,))
    assert is_complete(tmp_path, "a", sources=(header,))
    voxels.write_bytes(b"123")
    assert not is_complete(tmp_path, "a", sources=(header,))


def test_a_case_can_be_sent_to_workers_and_read_from_threads(made):
    folder, image, _ = made
    case = pickle.loads(pickle.dumps(open_case(folder, "Fall ä/1")))
    boxes = [Box((z, z, z), (z + 6, z + 6, z + 6)) for z in range(12)] * 4
    with ThreadPoolExecutor(4) as pool:
        for box, (voxels, _) in zip(boxes, pool.map(case.read, boxes), strict=True):
            np.testing.assert_array_equal(voxels, image.array[(slice(None), *box.slices())])


def test_grids_must_agree(made, tmp_path):
    _, image, array = made
    moved = replace(GRID, origin_mm=(0.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="different grids"):
        write_case(tmp_path, "a", image, LabelMap(array, moved, LABELS), patch=PATCH)


def test_the_key_depends_on_what_changes_the_voxels():
    plan = Preprocess((1.0, 1.0, 1.0), (Step("z_score"),))
    assert cache_key(plan, LABELS) == cache_key(replace(plan), LABELS)
    assert len({cache_key(plan, LABELS), cache_key(replace(plan, crop="nonzero"), LABELS),
                cache_key(plan, replace(LABELS, ignore=None))}) == 3  # fmt: skip


@pytest.mark.parametrize("limit", [20_000, 70_000])
def test_a_full_disk_is_an_error_with_a_remedy_and_no_case(tmp_path, limit):
    image = Image(np.random.default_rng(0).normal(size=(1, *GRID.shape)).astype(np.float32), GRID, ("T1",))
    labels = LabelMap(np.ones(GRID.shape, np.uint8), GRID, LABELS)
    with full_disk(limit), pytest.raises(DatasetError, match="cannot be written"):
        write_case(tmp_path, "a", image, labels, patch=PATCH)
    assert not is_complete(tmp_path, "a")
    assert not list(tmp_path.glob(".part-*"))


def test_landmarks_come_back_exactly_and_a_case_without_them_has_none(tmp_path, made):
    _, image, array = made
    points = np.array([[1.25, -3.5, 40.0], [np.nan] * 3])
    write_case(tmp_path, "a", image, LabelMap(array, GRID, LABELS), patch=PATCH, points=points)
    write_case(tmp_path, "b", image, LabelMap(array, GRID, LABELS), patch=PATCH)
    np.testing.assert_array_equal(open_case(tmp_path, "a").points, points)
    assert list(open_case(tmp_path, "a").foreground) == [1, 2]
    assert open_case(tmp_path, "b").points is None


def test_other_landmarks_need_another_cache_and_none_the_one_as_ever():
    plan = Preprocess((1.0, 1.0, 1.0), (Step("z_score"),))
    assert cache_key(plan, LABELS, ()) == cache_key(plan, LABELS)
    assert len({cache_key(plan, LABELS, names) for names in ((), ("a",), ("a", "b"), ("b", "a"))}) == 4

"""Data sets of points, beside label maps and instead of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from medseg.errors import DatasetError, ImageError
from medseg.io.dataset_points import on_grid, point_stem, read_points
from medseg.io.datasets import read_dataset, survey
from medseg.io.images import write_labels
from medseg.io.landmarks import write_landmarks
from medseg.io.nifti import write_nifti
from medseg.io.pairs import read_pair, read_scan
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.landmarks import Landmarks

NAMES = ("nasion", "menton")
POINTS = np.array([[1.5, 2.0, 0.0], [3.0, 0.6, 0.0]])


def describe(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "X-ray"}, **content}), encoding="utf-8")
    return folder


def grey(path, shape=(12, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)).save(path)


def points(path, names=NAMES, places=POINTS, unit="mm"):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_landmarks(Landmarks(tuple(names), np.array(places), unit=unit), path)


def cephalograms(folder, cases=("a", "b"), **content):
    describe(folder, landmarks={"names": list(NAMES)}, spacing_mm=[0.3, 0.5], **content)
    for case in cases:
        grey(folder / f"imagesTr/{case}.png")
        points(folder / f"landmarksTr/{case}.mrk.json")
    return folder


def errors(folder):
    return [f"{f.case} {f.file}: {f.what}" for f in survey(folder)[1] if f.severity == "error"]


def warnings(folder):
    return [f"{f.case} {f.file}: {f.what}" for f in survey(folder)[1] if f.severity == "warning"]


def test_blanks_around_names_of_landmarks_do_not_count(tmp_path):
    folder = cephalograms(tmp_path)
    describe(folder, landmarks={"names": [f" {name} " for name in NAMES]}, spacing_mm=[0.3, 0.5])
    assert survey(folder)[1] == () and read_dataset(folder).landmarks == NAMES
    describe(folder, landmarks={"names": ["tip", "tip "]}, spacing_mm=[0.3, 0.5])
    assert any("has no list of names" in what for what in errors(folder))


def test_a_data_set_of_points_alone_needs_no_labels(tmp_path):
    dataset = read_dataset(cephalograms(tmp_path))
    assert survey(tmp_path)[1] == ()
    assert dataset.landmarks == NAMES and dataset.labels == Labels(()) and dataset.spacing_mm == (0.3, 0.5)
    assert [(case.id, case.label) for case in dataset.cases] == [("a", None), ("b", None)]
    assert dataset.cases[0].landmarks == tmp_path / "landmarksTr/a.mrk.json"
    assert np.array_equal(read_points(dataset.cases[0], dataset), POINTS)


def test_flat_images_get_the_stated_spacing_and_an_empty_label_map(tmp_path):
    dataset = read_dataset(cephalograms(tmp_path))
    image, labels = read_pair(dataset.cases[0], dataset)
    assert image.geometry == Geometry((1, 12, 20), (1.0, 0.3, 0.5))
    assert read_scan(dataset.cases[0], dataset).geometry == image.geometry
    assert image.warnings == labels.warnings == ()
    assert labels.array.shape == (1, 12, 20) and not labels.array.any()
    assert image.geometry.to_voxels(POINTS) == pytest.approx(np.array([[0, 2 / 0.3, 3], [0, 2, 6]]))


@pytest.mark.parametrize("ending", [".csv", ".mrk.json"])
def test_pixels_of_flat_images_become_mm_from_the_middle_of_the_first_pixel(tmp_path, ending):
    folder = cephalograms(tmp_path)  # rows are 0.3 mm apart, columns 0.5
    (folder / "landmarksTr/a.mrk.json").unlink()
    points(folder / f"landmarksTr/a{ending}", places=[[0.0, 0.0, 0.0], [18.5, 11.0, 0.0]], unit="px")
    dataset = read_dataset(folder)
    places = read_points(dataset.cases[0], dataset)
    assert places == pytest.approx(np.array([[0.0, 0.0, 0.0], [18.5 * 0.5, 11 * 0.3, 0.0]]))
    grid = read_scan(dataset.cases[0], dataset).geometry
    assert grid.to_voxels(places) == pytest.approx(np.array([[0, 0, 0], [0, 11, 18.5]]))
    points(folder / f"landmarksTr/a{ending}", places=[[np.nan] * 3, [1.0, 1.0, 0.0]], unit="px")
    assert read_points(dataset.cases[0], dataset) == pytest.approx(np.array([[np.nan] * 3, [0.5, 0.3, 0]]), nan_ok=True)


def test_pixels_of_a_turned_slice_are_places_on_its_own_grid(tmp_path):
    folder = describe(tmp_path, landmarks={})
    turned = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    grid = Geometry((1, 4, 5), (1.0, 0.3, 0.5), (10.0, 20.0, 30.0), turned)
    (folder / "imagesTr").mkdir()
    write_nifti(np.zeros(grid.shape, np.uint8), grid, folder / "imagesTr/a.nii.gz")
    points(folder / "landmarksTr/a.csv", ["tip"], [[4.0, 2.0, 0.0]], unit="px")
    dataset = read_dataset(folder)
    places = read_points(dataset.cases[0], dataset)
    assert places == pytest.approx(np.array([[10 - 2 * 0.3, 20 + 4 * 0.5, 30.0]]), abs=1e-4)


def test_pixels_of_images_without_a_spacing_stay(tmp_path):
    folder = describe(tmp_path, landmarks={})
    grey(folder / "imagesTr/a.png")
    points(folder / "landmarksTr/a.csv", unit="px")
    dataset = read_dataset(folder)
    assert np.array_equal(read_points(dataset.cases[0], dataset), POINTS)


def test_mm_of_a_picture_without_a_spacing_are_pixels_and_those_of_a_volume_are_refused():
    found = Landmarks(("tip",), np.array([[2.0, 1.0, 0.0]]))
    flat, thick = (Geometry((n, 4, 5), (1.0, 1.0, 1.0), unit="px") for n in (1, 3))
    assert on_grid(found, flat).unit == "px" and on_grid(found, flat).placed() == found.placed()
    with pytest.raises(DatasetError, match=r"a\.csv: is in mm, but its scan states no spacing"):
        on_grid(found, thick, where="a.csv")


def test_pixels_of_a_volume_in_mm_are_refused(tmp_path):
    folder = describe(tmp_path, landmarks={})
    (folder / "imagesTr").mkdir()
    write_nifti(np.zeros((3, 4, 5), np.uint8), Geometry((3, 4, 5), (2.0, 1.0, 1.0)), folder / "imagesTr/a.nii.gz")
    points(folder / "landmarksTr/a.csv", unit="px")
    dataset = read_dataset(folder)
    with pytest.raises(DatasetError, match=r"a\.csv: is in pixels.*a volume in mm\. give the points in mm"):
        read_points(dataset.cases[0], dataset)


def test_label_maps_without_spacing_belong_to_images_with_the_stated_one(tmp_path):
    folder = describe(tmp_path, labels={"background": 0, "head": 1}, spacing_mm=0.2)
    grey(folder / "imagesTr/a_0000.png")
    grid = Geometry((1, 12, 20), (1.0, 1.0, 1.0), unit="px")
    (folder / "labelsTr").mkdir()
    labels = Labels((Label("head", (1,)),))
    write_labels(LabelMap(np.ones((1, 12, 20), np.uint8), grid, labels), folder / "labelsTr/a.png")
    dataset = read_dataset(folder)
    image, labels = read_pair(dataset.cases[0], dataset)
    assert labels.geometry == image.geometry == Geometry((1, 12, 20), (1.0, 0.2, 0.2))
    assert labels.warnings == ()


def test_points_beside_labels_are_optional_per_case(tmp_path):
    folder = describe(tmp_path, labels={"background": 0, "head": 1}, landmarks={})
    for case in ("a", "b"):
        grey(folder / f"imagesTr/{case}_0000.png")
        grey(folder / f"labelsTr/{case}.png")
    points(folder / "landmarksTr/b.csv")
    dataset = read_dataset(folder)
    assert [case.landmarks for case in dataset.cases] == [None, folder / "landmarksTr/b.csv"]
    assert dataset.landmarks == NAMES
    assert np.isnan(read_points(dataset.cases[0], dataset)).all()


def test_names_that_are_not_stated_are_those_of_all_files_in_order(tmp_path):
    folder = describe(tmp_path, landmarks={}, spacing_mm=0.3)
    for case, names in (("b", ("menton", "gonion")), ("a", NAMES)):
        grey(folder / f"imagesTr/{case}.png")
        points(folder / f"landmarksTr/{case}.csv", names)
    dataset = read_dataset(folder)
    assert dataset.landmarks == ("nasion", "menton", "gonion")
    places = read_points(dataset.cases[1], dataset)
    assert np.isnan(places[0]).all() and np.array_equal(places[1:], POINTS)


def test_the_stated_names_choose_and_order_what_is_read(tmp_path):
    folder = cephalograms(tmp_path)
    describe(folder, landmarks={"names": ["menton", "sella"]})
    dataset = read_dataset(folder)
    places = read_points(dataset.cases[0], dataset)
    assert np.array_equal(places[0], POINTS[1]) and np.isnan(places[1]).all()
    describe(folder, landmarks={"names": ["sella"]})
    dataset = read_dataset(folder)
    with pytest.raises(DatasetError, match=r"a\.mrk\.json.*no landmark of the data set.*names are sella"):
        read_points(dataset.cases[0], dataset)


def test_listed_cases_find_their_points_by_the_case_id(tmp_path):
    folder = describe(tmp_path, landmarks={}, dataset={"x": {"images": ["scans/1.png"]}})
    grey(folder / "scans/1.png")
    points(folder / "landmarksTr/x.fcsv")
    (case,) = read_dataset(folder).cases
    assert (case.id, case.images, case.landmarks) == (
        "x", (folder / "scans/1.png",), folder / "landmarksTr/x.fcsv"
    )  # fmt: skip


def test_an_image_whose_name_ends_like_a_channel_is_a_case_of_its_own_if_its_points_are(tmp_path):
    assert [case.id for case in read_dataset(cephalograms(tmp_path, ("x_0001", "x_0002"))).cases] == [
        "x_0001", "x_0002"
    ]  # fmt: skip


def test_missing_extra_and_double_files_are_named(tmp_path):
    folder = cephalograms(tmp_path, ("a", "b", "c"))
    (folder / "landmarksTr/a.mrk.json").unlink()
    (folder / "imagesTr/b.png").unlink()
    points(folder / "landmarksTr/c.csv")
    (folder / "landmarksTr/notes.txt").write_text("x")
    assert errors(folder) == [
        "c landmarksTr/c.mrk.json: has two landmark files, c.csv too",
        "b landmarksTr/b.mrk.json: image is missing for these landmarks",
        "a landmarksTr/a.mrk.json: landmark file is missing",
    ]
    assert warnings(folder) == [" landmarksTr/notes.txt: is no landmark file and is left out"]


def test_images_beyond_the_stated_number_are_left_out_with_a_warning(tmp_path):
    folder = cephalograms(tmp_path, numTraining=2)
    grey(folder / "imagesTr/extra.png")
    assert errors(folder) == []
    assert warnings(folder) == ["extra imagesTr/extra.png: image without landmarks is left out"]


def test_a_missing_folder_and_unreadable_files_are_errors(tmp_path):
    folder = describe(tmp_path, landmarks={})
    grey(folder / "imagesTr/a.png")
    assert " landmarksTr: no such folder" in errors(folder)
    (folder / "landmarksTr").mkdir()
    (folder / "landmarksTr/a.csv").write_text("x,y\n1,2\n")
    assert any(line.startswith("a landmarksTr/a.csv: has no columns name") for line in errors(folder))
    with pytest.raises(DatasetError, match="no columns name"):
        read_dataset(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"landmarks": ["nasion"]}, "no list of names"),
        ({"landmarks": {"names": ["a", "a"]}}, "no list of names"),
        ({"landmarks": {"names": [1]}}, "no list of names"),
        ({"landmarks": {}, "spacing_mm": [0.3]}, "spacing_mm is"),
        ({"landmarks": {}, "spacing_mm": [0.3, -1]}, "spacing_mm is"),
        ({"landmarks": {}, "spacing_mm": "0.3"}, "spacing_mm is"),
        ({"labels": {"background": 0}}, "at least one"),
        ({}, 'has no "labels"'),
    ],
)
def test_bad_descriptions_are_faults(tmp_path, content, message):
    folder = describe(tmp_path, **content)
    grey(folder / "imagesTr/a.png")
    points(folder / "landmarksTr/a.csv")
    assert any(message in line for line in errors(folder))


def test_names_of_landmark_files():
    assert [point_stem(path) for path in map(Path, ("a.MRK.JSON", "b.landmarks.csv", "c.json"))] == [
        "a", "b", ""
    ]  # fmt: skip


def test_a_file_that_cannot_be_read_raises_with_its_name(tmp_path):
    dataset = read_dataset(cephalograms(tmp_path))
    dataset.cases[0].landmarks.write_text("{")
    with pytest.raises(ImageError, match=r"a\.mrk\.json"):
        read_points(dataset.cases[0], dataset)

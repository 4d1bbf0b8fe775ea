"""Every fault of landmarks that `medseg check` knows, planted and found."""

import json

import numpy as np
import pytest
from phantoms import write_scan
from PIL import Image as Pillow

from medseg.io.landmarks import write_landmarks
from medseg.io.nifti import write_nifti
from medseg.types.geometry import Geometry
from medseg.types.landmarks import Landmarks
from medseg.workflow.check_dataset import check_dataset

NAMES = ("condyle_left", "condyle_right", "menton")
PLACES = {"condyle_left": (9.0, 3.0, 4.0), "condyle_right": (2.0, 3.0, 4.0), "menton": (5.0, 1.0, 8.0)}


def dataset(folder, cases=("a", "b"), names=NAMES, **content):
    """Noise of 6 x 10 x 12 voxels of 2 x 1 x 1 mm, with landmarks."""
    for seed, case in enumerate(cases):
        image = np.random.default_rng(seed).normal(size=(6, 10, 12)).astype(np.float32)
        write_scan(image, folder / f"imagesTr/{case}_0000.nii.gz")
        place(folder, case)
    content = {"channel_names": {"0": "CT"}, "landmarks": {"names": list(names)}, "file_ending": ".nii.gz", **content}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def place(folder, case="a", **changes):
    """The usual places of a case, some of them changed or (None) without a place."""
    points = {**PLACES, **changes}
    array = np.array([(np.nan,) * 3 if point is None else point for point in points.values()], float)
    (folder / "landmarksTr").mkdir(exist_ok=True)
    write_landmarks(Landmarks(tuple(points), array), folder / f"landmarksTr/{case}.mrk.json")


def found(folder):
    return [(f.severity, f.case, f.file, f.what) for f in check_dataset(folder, workers=1)]


def test_a_good_data_set_of_landmarks_has_no_faults(tmp_path):
    assert found(dataset(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "severity", "what"),
    [
        ({"menton": (5.0, 1.0, 14.0)}, "warning", "landmarks lie up to 3 mm outside of the scan: menton"),
        ({"menton": (11.5, 9.5, 11.0)}, None, ""),  # on the outer edge of the last voxel
        ({"gonion": (1.0, 1.0, 1.0)}, "warning", "unknown landmarks are left out: gonion"),
        ({"menton": (9.0, 3.0, 4.0)}, "warning", "landmarks lie in one place: condyle_left and menton"),
        (
            {"condyle_left": (2.0, 3.0, 4.0), "condyle_right": (9.0, 3.0, 4.0)},
            "warning",
            "the left landmark lies to the right of its partner: condyle_left and condyle_right",
        ),
        (dict.fromkeys(NAMES), "warning", "no landmark is placed"),
        (
            {name: (-x, -y, z) for name, (x, y, z) in PLACES.items()},
            "error",
            "landmarks lie in the scan only if they are RAS: condyle_left, condyle_right, menton",
        ),
        (
            {name: (x + 100, y, z) for name, (x, y, z) in PLACES.items()},
            "error",
            "landmarks lie up to 97.5 mm outside of the scan: condyle_left, condyle_right, menton",
        ),
    ],
)
def test_a_fault_of_one_file_is_named_with_its_file(tmp_path, changes, severity, what):
    folder = dataset(tmp_path)
    place(folder, **changes)
    expected = [] if severity is None else [(severity, "a", "landmarksTr/a.mrk.json", what)]
    assert found(folder) == expected


def test_files_of_other_names_only_and_unreadable_ones_are_errors(tmp_path):
    folder = dataset(tmp_path)
    points = Landmarks(("x", "y"), np.zeros((2, 3)))
    write_landmarks(points, folder / "landmarksTr/a.mrk.json")
    assert found(folder)[0] == ("error", "a", "landmarksTr/a.mrk.json", "holds no landmark of the data set, but x, y")
    (folder / "landmarksTr/a.mrk.json").write_text("{}")
    ((severity, case, file, what),) = found(folder)
    assert (severity, case, file) == ("error", "a", "landmarksTr/a.mrk.json") and "no landmark file" in what
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "landmarks": {}}))
    assert [line for line in found(folder) if line[1] == "a"] == [(severity, case, file, what)], "said once"


def test_names_that_are_never_placed_or_have_no_partner_are_named(tmp_path):
    folder = dataset(tmp_path, names=(*NAMES, "gonion_left"))
    assert found(folder) == [
        ("warning", "", "dataset.json", 'landmark "gonion_left" is placed in no case'),
        ("warning", "", "dataset.json", "names say left or right, but no other name is the partner: gonion_left"),
    ]


def test_cases_of_labels_without_landmarks_are_counted(tmp_path):
    folder = dataset(tmp_path, labels={"background": 0, "bone": 1})
    for case in ("a", "b"):
        write_scan(np.ones((6, 10, 12), np.uint8), folder / f"labelsTr/{case}.nii.gz")
    assert found(folder) == []
    (folder / "landmarksTr/b.mrk.json").unlink()
    assert found(folder) == [("warning", "", "landmarksTr", "1 of 2 cases have no landmark file: b")]


def test_pictures_with_a_stated_spacing_are_no_mixture_of_units(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    for seed, case in enumerate("ab"):
        pixels = np.random.default_rng(seed).integers(0, 255, (30, 40)).astype(np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / f"imagesTr/{case}.png")
        place(tmp_path, case, **{name: (x, y, 0.0) for name, (x, y, _) in PLACES.items()})
    content = {"channel_names": {"0": "X-ray"}, "landmarks": {}, "spacing_mm": [0.3, 0.3]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert found(tmp_path) == []
    flat = {name: (x, y, 0.0) for name, (x, y, _) in PLACES.items()}
    place(tmp_path, **{**flat, "menton": (12.2, 3.0, 0.0)})
    assert found(tmp_path)[0][3] == "landmarks lie up to 0.35 mm outside of the scan: menton"
    in_pixels = {"condyle_left": (9.0, 29.0, 0.0), "condyle_right": (39.0, 3.0, 0.0), "menton": (5.0, 1.0, 0.0)}
    place(tmp_path, **in_pixels)
    assert found(tmp_path)[0][1:] == (
        "a",
        "landmarksTr/a.mrk.json",
        "landmarks lie in the picture only if they are pixels: condyle_left, condyle_right",
    )
    place(tmp_path, **{**in_pixels, "condyle_left": (9.0, 31.0, 0.0)})
    assert "up to 27.15 mm outside" in found(tmp_path)[0][3], "not in the picture, whatever the unit"


def test_landmarks_that_the_data_set_does_not_know_place_none_of_its_own(tmp_path):
    folder = dataset(tmp_path)
    place(folder, **{name: (x + 100, y, z) for name, (x, y, z) in PLACES.items()}, gonion=(1.0, 1.0, 1.0))
    ((case, what),) = [(case, what) for severity, case, _, what in found(folder) if severity == "error"]
    assert case == "a" and "condyle_left, condyle_right, menton" in what and "gonion" not in what


def test_pixels_of_a_flat_scan_away_from_the_origin_are_recognised(tmp_path):
    content = {"channel_names": {"0": "CT"}, "landmarks": {"names": list(NAMES)}, "file_ending": ".nii.gz"}
    (tmp_path / "imagesTr").mkdir()
    grid = Geometry((1, 30, 40), (1.0, 0.3, 0.3), (50.0, 60.0, 0.0))
    for seed, case in enumerate("ab"):
        write_nifti(
            np.random.default_rng(seed).normal(size=grid.shape).astype(np.float32),
            grid,
            tmp_path / f"imagesTr/{case}_0000.nii.gz",
        )
        place(tmp_path, case, **{name: (x + 50, y + 60, 0.0) for name, (x, y, _) in PLACES.items()})
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert found(tmp_path) == []
    place(tmp_path, **{name: (3 * x, 3 * y, 0.0) for name, (x, y, _) in PLACES.items()})
    assert "only if they are pixels: condyle_left, condyle_right, menton" in found(tmp_path)[0][3]

"""Trees of everything: what is found, where it lies, what is said of whom."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_phantoms import AXIAL, OBLIQUE, SAGITTAL, grid, write_dicom

from medseg.cli import main
from medseg.errors import DatasetError
from medseg.io.nifti import write_nifti
from medseg.io.scans import find_cases
from medseg.types.geometry import Geometry
from medseg.workflow.inspect import inspect

PIXELS = np.random.default_rng(0).integers(-100, 1000, (5, 6, 7)).astype(np.int16)
PLANES = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal, 37 deg oblique": OBLIQUE}


@pytest.fixture
def tree(tmp_path):
    """Three good series, one with a gap, one truncated, one cut into copies, an image and other things."""
    root = tmp_path / "DOE^JANE"
    for number, axes in enumerate(PLANES.values()):
        write_dicom(
            root / "Meier" / f"{number}", PIXELS, grid(PIXELS.shape, axes=axes), study="1.2", series=f"1.2.{number}"
        )
    write_dicom(root / "Huber" / "gap", PIXELS, grid(PIXELS.shape), study="1.3", series="1.3.1")
    (root / "Huber" / "gap" / "003.dcm").unlink()
    write_dicom(
        root / "Huber" / "cut", PIXELS, grid(PIXELS.shape), study="1.3", series="1.3.2", SeriesDescription="Doe"
    )
    cut = root / "Huber" / "cut" / "002.dcm"
    cut.write_bytes(cut.read_bytes()[:-20])
    write_dicom(root / "Huber" / "twice", PIXELS, grid(PIXELS.shape), study="1.3", series="1.3.3")
    write_dicom(root / "Huber" / "twice" / "b", PIXELS[:1], grid((1, 6, 7)), study="1.3", series="1.3.3")
    write_dicom(root / "Huber" / "other", PIXELS, grid(PIXELS.shape), study="1.3", series="1.3.4")
    write_dicom(root / "Huber" / "other" / "b", PIXELS[1:2], grid((1, 6, 7)), study="1.3", series="1.3.4")
    write_dicom(root / "Huber" / "sr", PIXELS[:2], grid((2, 6, 7)), series="1.3.5", Modality="SR")
    write_nifti(PIXELS, grid(PIXELS.shape), root / "Huber" / "brain.nii.gz")
    (root / "Huber" / "bad.nii.gz").write_bytes(b"no image")
    (root / "Huber" / "Letter to Huber.txt").write_text("Dear")
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to(root)
    return root


def test_geometry_is_that_of_a_second_reader(tree):
    found = {scan.series_uid: scan for scan in inspect(tree).scans}
    for number, plane in enumerate(PLANES):
        scan = found[f"1.2.{number}"]
        assert scan.error is None and scan.files == 5 and scan.study_uid == "1.2" and scan.plane == plane
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tree / "Meier" / str(number))))
        other = reader.Execute()
        x, y, z = other.GetSpacing()
        assert scan.geometry.shape == other.GetSize()[::-1]
        same = Geometry(
            scan.geometry.shape, (z, y, x), other.GetOrigin(), tuple(np.reshape(other.GetDirection(), (3, 3)).tolist())
        )
        assert same.same_grid(scan.geometry)
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(other.GetDirection())
        assert scan.orientation == code


def test_what_cannot_be_read_says_why(tree):
    found = inspect(tree)
    errors = {scan.series_uid or scan.id: scan.error for scan in found.scans if scan.error}
    assert set(errors) == {"1.3.1", "1.3.2", "1.3.4", "bad"}
    assert "1 missing" in errors["1.3.1"] and "truncated" in errors["1.3.2"] and "other pixels" in errors["1.3.4"]
    (twice,) = [scan for scan in found.scans if scan.series_uid == "1.3.3"]
    assert any("1 identical duplicates" in warning for warning in twice.warnings)
    assert sorted((other.files, other.reason.split(",")[0]) for other in found.left_out) == [
        (1, "is no regular file"),
        (1, "is not a DICOM file"),
        (2, "is a structured report (SR)"),
    ]


def test_ids_are_those_of_predict(tree):
    cases, _ = find_cases([tree], ("CT",))
    assert {case.series_uids[0]: case.id for case in cases if case.series_uids} == {
        scan.series_uid: scan.id for scan in inspect(tree).scans if scan.series_uid
    }


def test_nobody_is_named_unless_asked(tree, capsys):
    assert main(["inspect", str(tree), "--json"]) == 1
    text = capsys.readouterr().out
    for name in ("DOE", "JANE", "Meier", "Huber", "Phantom", "P-1", "20200102", "Doe"):
        assert name not in text, name
    stored = json.loads(text)
    assert stored["schema"] == "medseg.inspect/1" and len(stored["scans"]) == 9
    assert {scan["study_uid"] for scan in stored["scans"]} == {"1.2", "1.3", ""}
    assert main(["inspect", str(tree), "--json", "--keep-identifiers"]) == 1
    kept = {scan["series_uid"]: scan for scan in json.loads(capsys.readouterr().out)["scans"]}
    assert kept["1.3.2"]["path"] == "Huber/cut" and kept["1.3.2"]["description"] == "Doe"


def test_the_table_says_the_same(tree, capsys):
    assert main(["inspect", str(tree)]) == 1
    text = capsys.readouterr().out
    assert "7 x 6 x 5" in text and "0.4 x 0.7 x 2.5 mm" in text and "study 1.2\n" in text
    assert "cannot be read" in text and "5 can be read, 4 cannot, 4 other files" in text
    assert "Huber" not in text and "--keep-identifiers" in text
    assert main(["inspect", str(tree / "Meier")]) == 0


def test_archives_and_single_files_are_looked_into(tree, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "study"), "zip", tree / "Meier")
    folder, archive = inspect(tree / "Meier"), inspect(packed)
    assert [scan.id for scan in archive.scans] == [scan.id for scan in folder.scans]
    assert [scan.geometry for scan in archive.scans] == [scan.geometry for scan in folder.scans]
    (one,) = inspect(tree / "Huber" / "gap" / "001.dcm").scans
    assert one.series_uid == "1.3.1" and one.files == 4
    (brain,) = inspect(tree / "Huber" / "brain.nii.gz").scans
    assert brain.geometry.shape == PIXELS.shape and brain.error is None
    with pytest.raises(DatasetError, match="no such"):
        inspect(tmp_path / "nothing")


def test_many_image_files_are_read_apart(tmp_path):
    for number in range(10):
        write_nifti(PIXELS, grid(PIXELS.shape), tmp_path / f"s{number}.nii.gz")
    (tmp_path / "s3.nii.gz").write_bytes(b"bad")
    scans = inspect(tmp_path).scans
    assert [scan.id for scan in scans] == [f"s{number}" for number in range(10)]
    assert [scan.error is None for scan in scans] == [number != 3 for number in range(10)]


def test_free_text_of_tags_is_not_repeated(tmp_path, capsys):
    tags = {"Modality": "GEHEIM", "study": "Geheim-study", "SequenceName": "Geheim"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dicom(tmp_path / "a", PIXELS, grid(PIXELS.shape, frame="Geheim-frame"), series="Geheim-series", **tags)
        write_dicom(tmp_path / "a/b", PIXELS, grid(PIXELS.shape, frame="Geheim-frame"), series="Geheim-series",
                    **(tags | {"SequenceName": "FL3D"}))  # fmt: skip
        write_dicom(tmp_path / "c", PIXELS, grid(PIXELS.shape), PhotometricInterpretation="GEHEIM")
    scans = inspect(tmp_path).scans
    assert sorted(scan.part for scan in scans if not scan.error) == ["SequenceName FL3D", "SequenceName text d768cc"]
    assert {scan.modality for scan in scans} == {"unknown", "CT"}
    assert all(scan.series_uid.startswith("invalid-") for scan in scans if scan.modality == "unknown")
    assert any("PhotometricInterpretation (0028,0004) is unknown" in (scan.error or "") for scan in scans)
    for options in ([], ["--json"]):
        main(["inspect", str(tmp_path), *options])
        said = "".join(capsys.readouterr()).replace(str(tmp_path), "")
        assert "eheim" not in said.casefold()

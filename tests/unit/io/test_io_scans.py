"""DICOM scans as cases; files of other formats are tested with the data sets."""

import os
import sys

import numpy as np
import pytest
from dicom_phantoms import grid, write_dicom

from medseg.io.images import read_image
from medseg.io.scans import find_cases

PIXELS = np.random.default_rng(0).integers(-100, 1000, (4, 6, 7)).astype(np.int16)


def test_volumes_of_one_series_are_cases_of_their_own(tmp_path):
    for number, echo in enumerate((4.6, 9.2)):
        study = {"study": "1.2", "series": "1.2.3", "Modality": "MR", "EchoTime": echo}
        write_dicom(tmp_path / "all" / str(number), PIXELS + number, grid(PIXELS.shape), **study)
    cases, refused = find_cases([tmp_path], ("MR",))
    assert not refused and len({case.id for case in cases}) == 2
    assert all(case.id.startswith("MR-") and case.series_uids == ("1.2.3",) for case in cases)
    found = [read_image(case.images, files=case.files, volumes=case.volumes).array[0] for case in cases]
    first, second = sorted(found, key=lambda array: int(array[0, 0, 0]))
    assert np.array_equal(first, PIXELS) and np.array_equal(second, PIXELS + 1)


def test_folders_of_equal_names_are_told_apart(tmp_path):
    for number, patient in enumerate(("DOE", "ROE")):
        write_dicom(tmp_path / patient / "CT", PIXELS, grid(PIXELS.shape), series=f"1.2.{number}")
    named, _ = find_cases([tmp_path], ("CT",), keep_identifiers=True)
    assert [case.id for case in named] == ["DOE_CT", "ROE_CT"]
    hashed, _ = find_cases([tmp_path], ("CT",))
    assert not any("OE" in case.id for case in hashed)


def test_a_copy_of_a_series_elsewhere_has_the_same_id(tmp_path):
    for folder in ("a/CT", "b/deeper/x"):
        write_dicom(tmp_path / folder, PIXELS, grid(PIXELS.shape), series="1.2.7")
    ids = {find_cases([tmp_path / folder], ("CT",))[0][0].id for folder in ("a", "b")}
    assert len(ids) == 1


def test_series_without_a_uid_are_named_by_what_they_hold(tmp_path):
    write_dicom(tmp_path / "a", PIXELS, grid(PIXELS.shape), SeriesInstanceUID="")
    write_dicom(tmp_path / "b", PIXELS, grid(PIXELS.shape), series="1.2.7")
    cases, _ = find_cases([tmp_path], ("CT",))
    assert len({case.id for case in cases}) == 2 and {case.series_uids for case in cases} == {(), ("1.2.7",)}


def test_links_to_studies_are_followed(tmp_path):
    write_dicom(tmp_path / "store" / "x", PIXELS, grid(PIXELS.shape), series="1.2.7")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "store" / "x")
    (case,), refused = find_cases([tmp_path / "in"], ("CT",))
    assert case.series_uids == ("1.2.7",) and not refused


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def ids(folder, **options):
    return [case.id for case in find_cases([folder], ("CT",), **options)[0]]


def test_equal_names_get_as_many_folders_as_identifiers_allow_then_a_number(tmp_path):
    touch(tmp_path / "in", "p01/CT/ct.nii.gz", "p02/CT/ct.nii.gz", "p02/MR/ct.nii.gz", "p02/MR/ct.mha", "other.nii.gz")
    assert ids(tmp_path / "in") == ["other", "CT_ct", "CT_ct-2", "MR_ct", "MR_ct-2"]
    assert ids(tmp_path / "in", keep_identifiers=True) == ["other", "p01_CT_ct", "p02_CT_ct", "MR_ct", "MR_ct-2"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_ids_of_names_that_are_no_utf_8_can_be_written(tmp_path):
    touch(tmp_path / "in", os.fsdecode(b"sc\xe4n.nii.gz"), os.fsdecode(b"sc\xf6n.nii.gz"), "scän.nii.gz")
    found = ids(tmp_path / "in")
    assert sorted(found) == ["sc%E4n", "sc%F6n", "scän"]
    assert "".join(found).encode()

"""What tells the scan of a result from another one under the same name."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.io.scan_sources import source_sha256
from medseg.types.dataset import Case


def write(path: Path, data: bytes, time_ns=10**18) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(time_ns, time_ns))
    return path


def test_a_source_is_told_by_name_size_time_and_a_sample_and_not_by_its_folder(tmp_path):
    first = source_sha256(Case("ct", (write(tmp_path / "P1/ct.nii.gz", b"abc"),)))
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert source_sha256(Case("other id", (write(tmp_path / "P2/ct.nii.gz", b"abc"),))) == first
    for name, data, time_ns in (
        ("ct.nii.gz", b"abcd", 10**18),
        ("ct.nii.gz", b"abc", 2 * 10**18),
        ("c.mha", b"abc", 10**18),
        ("ct.nii.gz", b"xyz", 10**18),
    ):
        assert source_sha256(Case("ct", (write(tmp_path / "P3" / name, data, time_ns),))) != first


def test_files_of_one_run_are_told_by_their_content(tmp_path):
    case = Case("ct", (write(tmp_path / "a/ct.nii.gz", b"abc"),))
    first = source_sha256(case, lasting=False)
    again = Case("ct", (write(tmp_path / "b/other.nii.gz", b"abc", 2 * 10**18),))
    assert source_sha256(again, lasting=False) == first
    write(tmp_path / "a/ct.nii.gz", b"xyz")
    assert source_sha256(case, lasting=False) != first


def test_series_volumes_and_every_file_count(tmp_path):
    files = tuple(write(tmp_path / "s" / f"{number}.dcm", b"abc") for number in range(3))
    case = Case("CT-1", (tmp_path / "s",), files=(files,), volumes=(0,), series_uids=("1.2",))
    first = source_sha256(case)
    assert source_sha256(replace(case, files=(files[::-1],))) == first
    for other in (
        replace(case, volumes=(1,)),
        replace(case, series_uids=("1.3",)),
        replace(case, files=(files[:2],)),
    ):
        assert source_sha256(other) != first
    write(files[1], b"abc", 2 * 10**18)
    assert source_sha256(case) != first


def test_channels_are_told_in_their_order(tmp_path):
    one, two = (write(tmp_path / f"x_000{number}.mha", b"abc") for number in range(2))
    assert source_sha256(Case("x", (one, two))) != source_sha256(Case("x", (two, one)))


@pytest.mark.parametrize(("header", "voxels"), [("a.hdr", "a.img"), ("a.HDR.GZ", "a.img.gz")])
def test_voxels_beside_a_header_count(tmp_path, header, voxels):
    case = Case("a", (write(tmp_path / header, b"header"),))
    write(tmp_path / voxels, b"abc")
    first = source_sha256(case)
    write(tmp_path / voxels, b"abcd")
    assert source_sha256(case) != first


@pytest.mark.parametrize(
    ("header", "text", "voxels"),
    [
        ("ct.mhd", b"NDims = 3\nElementDataFile = data/v.bin\n", "data/v.bin"),
        ("ct.nhdr", b"NRRD0004\ndata file: v.bin\n\n", "v.bin"),
        ("SCAN.HDR", b"x", "SCAN.IMG"),
    ],
)
def test_voxels_that_a_header_names_count(tmp_path, header, text, voxels):
    case = Case("ct", (write(tmp_path / header, text),))
    write(tmp_path / voxels, b"abc")
    first = source_sha256(case)
    write(tmp_path / voxels, b"abcd")
    assert source_sha256(case) != first


def test_every_file_of_a_folder_counts(tmp_path):
    case = Case("ct", (tmp_path / "series",))
    write(tmp_path / "series/1.dcm", b"abc")
    first = source_sha256(case)
    write(tmp_path / "series/deeper/2.dcm", b"abc")
    assert source_sha256(case) != first


def test_a_file_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(OSError, match="gone"):
        source_sha256(Case("a", (tmp_path / "gone.nii.gz",)))


def test_the_sample_lies_in_the_middle_of_the_middle_file(tmp_path):
    size = 3 << 20
    files = [write(tmp_path / f"{number}.dcm", bytes(size)) for number in range(3)]
    case = Case("CT-1", (tmp_path,), files=(tuple(files),), volumes=(0,))
    first = source_sha256(case)
    write(files[1], bytes(size // 2) + b"x" + bytes(size - size // 2 - 1))
    assert source_sha256(case) != first

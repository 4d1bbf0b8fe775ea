import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile

import pytest

from medseg.errors import ImageError
from medseg.io.archives import ArchiveLimits, unpacked

FILES = {"study ü/1.dcm": b"first" * 300, "study ü/deeper/2.dcm": b"second", "empty": b"", "block": b"x" * 1024}


def write_zip(path, members=FILES, **changes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("a folder")
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


def tar_bytes(members=FILES, **changes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("study ü")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in changes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def refused(path, match, **limits):
    """Refused with `match`, and nothing left behind or beside it."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(ImageError, match=match) as caught, unpacked(path, ArchiveLimits(**limits)):
        pytest.fail("was unpacked")
    assert path.name in str(caught.value) and caught.value.hint
    assert sorted(path.parent.rglob("*")) == before


@pytest.fixture(autouse=True)
def temporary_here(tmp_path, monkeypatch):
    """Temporary folders in `tmp_path`/tmp, so that leftovers are seen."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.zip", None),
        ("a.TAR", bytes),
        ("a.tar.gz", gzip.compress),
        ("a.tgz", gzip.compress),
        ("a.tar.bz2", bz2.compress),
        ("a.tar.xz", lzma.compress),
    ],
)
def test_files_come_out_as_they_went_in_and_are_removed(tmp_path, name, pack):
    path = tmp_path / name
    write_zip(path) if pack is None else path.write_bytes(pack(tar_bytes()))
    with unpacked(path) as folder:
        found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert found == FILES
    assert list((tmp_path / "tmp").iterdir()) == []


def test_other_paths_are_handed_on(tmp_path):
    for path in (tmp_path, tmp_path / "gone.zip", tmp_path / "scan.nii.gz"):
        with unpacked(path) as same:
            assert same == path


@pytest.mark.parametrize("name", ["../out", "/tmp/medseg-escaped", "a/../../out", "C:/out", "a\\..\\out"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    refused(write_zip(tmp_path / "a.zip", {"good": b"1", name: b"out"}), "outside|plain relative")
    (tmp_path / "a.tar").write_bytes(tar_bytes({"good": b"1", name: b"out"}))
    refused(tmp_path / "a.tar", "outside|plain relative")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    (tmp_path / "a.tar").write_bytes(tar_bytes({"x": b""}, type=kind, linkname="/etc/passwd"))
    refused(tmp_path / "a.tar", "link or device")
    refused(write_zip(tmp_path / "a.zip", {"x": b"/etc"}, external_attr=(stat.S_IFLNK | 0o777) << 16), "link or device")


def test_bombs_are_refused_by_what_comes_out(tmp_path):
    bomb = {"scan.raw": bytes(300 << 20)}
    limits = {"ratio_from_bytes": 10 << 20}
    refused(write_zip(tmp_path / "a.zip", bomb), "unpacks to more", **limits)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        compressed = archive.infolist()[1].compress_size
    for header, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # sizes that lie
        at = data.rindex(header) + offset
        data[at : at + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "lies.zip").write_bytes(data)
    assert compressed < 1 << 20
    refused(tmp_path / "lies.zip", "cannot be unpacked|unpacks to more", **limits)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar_bytes(bomb)))
    refused(tmp_path / "a.tgz", "unpacks to more", **limits)


def test_a_tar_header_cannot_ask_for_memory(tmp_path):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "a.tgz").write_bytes(gzip.compress(info.tobuf() + bytes(1 << 20)))
    refused(tmp_path / "a.tgz", "cannot be unpacked")


def test_numbers_and_sizes_are_limited(tmp_path):
    many = write_zip(tmp_path / "a.zip", {str(i): b"x" for i in range(20)})
    refused(many, "more than 10 members", members=10)
    (tmp_path / "a.tar").write_bytes(tar_bytes({str(i): b"x" for i in range(20)}))
    refused(tmp_path / "a.tar", "more than 10 members", members=10)
    refused(write_zip(tmp_path / "b.zip", {"x": b"12345" * 100}), "unpacks to more", total_bytes=400)


def test_damaged_doubled_and_encrypted_archives_are_refused(tmp_path):
    whole = write_zip(tmp_path / "whole.zip").read_bytes()
    for name, data in {
        "cut.zip": whole[:-40],
        "junk.zip": b"no archive",
        "junk.tar": b"no archive",
        "cut.tgz": gzip.compress(tar_bytes())[:-30],
    }.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "cannot be unpacked")
    flipped = bytearray(whole)
    flipped[flipped.index(b"PK\x03\x04", 10) + 60] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(flipped)
    refused(tmp_path / "flipped.zip", "cannot be unpacked")
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    refused(tmp_path / "twice.zip", "same name")
    refused(write_zip(tmp_path / "locked.zip", {"Geheim": b"1"}) and encrypted(tmp_path), "encrypted")


def encrypted(folder):
    """A zip whose members say they are encrypted."""
    data = bytearray((folder / "locked.zip").read_bytes())
    for header, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.rindex(header) + offset] |= 1
    (folder / "locked.zip").write_bytes(data)
    return folder / "locked.zip"

import os
import pickle
import struct
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, generate_uid

from medseg.io import dicom_headers
from medseg.io.dicom_headers import Header, read_header
from tests.dicom_slices import AXIAL, FRAME, ORIGIN, STUDY, UID, stored, write_slice


def one_slice(path, **changes):
    return write_slice(
        path, stored()[0], ORIGIN, InstanceNumber=7, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], **changes
    )


def test_a_header_says_what_the_tags_say_and_nothing_about_the_patient(tmp_path):
    path = one_slice(tmp_path / "a.dcm", EchoTime=4.6, SliceThickness=3)
    header = read_header(path)
    assert (header.path, header.kind, header.modality, header.number) == (path, "volume", "CT", 7)
    assert (header.study_uid, header.series_uid, header.frame_uid) == (STUDY, UID, FRAME)
    assert (header.pixels.rows, header.pixels.columns, header.pixels.signed) == (9, 11, True)
    (plane,) = header.planes
    assert plane.position == pytest.approx(tuple(ORIGIN))
    assert plane.orientation == tuple(AXIAL.ravel())
    assert (plane.spacing, plane.slope, plane.intercept, plane.thickness) == ((0.7, 0.4), (1,), (-1024,), (3,))
    assert dict(plane.keys)["EchoTime"] == "4.6"
    raw = path.read_bytes()
    assert raw[header.pixels.offset :][: header.pixels.length] == stored()[0].tobytes()
    assert pickle.loads(pickle.dumps(header)) == header
    assert "Geheim" not in repr(header)
    assert "Q4711Z" not in repr(header)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_say_the_same(tmp_path, syntax):
    path = one_slice(tmp_path / "a.dcm")
    ds = pydicom.dcmread(path)
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = stored()[0].astype(">i2").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    other = tmp_path / "b.dcm"
    pydicom.dcmwrite(other, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    one, two = read_header(path), read_header(other)
    assert two.syntax == syntax
    assert two.planes == one.planes
    assert (two.pixels.rows, two.pixels.length) == (one.pixels.rows, one.pixels.length)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "zeros.dcm").symlink_to("/dev/zero")
    (tmp_path / "loop.dcm").symlink_to("loop.dcm")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "folder.dcm").mkdir()
    reasons = {path.stem: read_header(path) for path in tmp_path.iterdir()}
    assert reasons["pipe"] == reasons["zeros"] == reasons["folder"] == "is no regular file"
    assert reasons["empty"] == "is empty"
    assert "cannot be opened" in reasons["loop"]
    assert "cannot be opened" in read_header(tmp_path / "missing.dcm")


@pytest.mark.parametrize("start", [b"", b"\x08\x00\x05\x00", b"\x02\x00\x10\x00UI", b"\0" * 128 + b"DICM"])
def test_junk_has_a_reason(tmp_path, start):
    for seed in range(20):
        path = tmp_path / f"{seed}.dcm"
        path.write_bytes(start + np.random.default_rng(seed).bytes(700))
        assert isinstance(read_header(path), str)


def test_every_cut_of_a_file_has_an_outcome(tmp_path):
    whole = one_slice(tmp_path / "a.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        assert isinstance(read_header(path), str | Header)


def test_absurdly_nested_sequences_are_a_reason_and_no_crash(tmp_path):
    path = one_slice(tmp_path / "a.dcm")
    whole = path.read_bytes()
    start = whole.index(b"\x08\x00\x08\x00CS")  # ImageType, the first element
    opening = struct.pack("<HH2sHI", 0x0008, 0x0006, b"SQ", 0, 0xFFFFFFFF)
    opening += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path.write_bytes(whole[:start] + opening * 20_000 + whole[start:])
    assert "cannot be read" in read_header(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"}, "segmentation"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.7", "Modality": "SEG"}, "segmentation"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3", "Modality": "RTSTRUCT"}, "RTSTRUCT"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2", "Modality": "RTDOSE"}, "RTDOSE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59", "Modality": "KO"}, "KO"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "Modality": "SR"}, "SR"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "Modality": "PR"}, "PR"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.9.1.1", "Modality": "ECG"}, "waveform"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Modality": "DOC"}, "document"),
        ({"SOPClassUID": "1.2.840.10008.1.3.10"}, "DICOMDIR"),
        ({"Modality": "RTPLAN"}, "RTPLAN"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"Rows": None}, "no pixels"),
        ({"PixelData": None, "SeriesInstanceUID": None}, "no pixels"),
    ],
)
def test_other_objects_are_called_by_their_name(tmp_path, change, words):
    path = write_slice(tmp_path / "a.dcm", stored()[0], ORIGIN, **change)
    assert words in read_header(path)


def test_kinds_of_images(tmp_path):
    lost = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    for modality, kind in [("PX", "projection"), ("DX", "projection"), ("US", "ultrasound"), ("MR", "volume")]:
        assert read_header(one_slice(tmp_path / modality, Modality=modality, **lost)).kind == kind
    assert read_header(one_slice(tmp_path / "c-arm", Modality="XA")).kind == "volume"
    panorama = write_slice(tmp_path / "p", stored()[0], ORIGIN, ImageType=["DERIVED", "SECONDARY", "PANORAMIC"], **lost)
    assert read_header(panorama).kind == "projection"


def test_a_damaged_value_is_no_missing_value(tmp_path):
    path = one_slice(tmp_path / "a.dcm")
    ds = pydicom.dcmread(path)
    ds.add_new("PixelSpacing", "LO", ["wide", "narrow"])
    ds.save_as(path)
    (plane,) = read_header(path).planes
    assert plane.spacing == ()
    assert plane.between is None


def test_no_text_of_a_file_talks_to_a_terminal(tmp_path):
    header = read_header(one_slice(tmp_path / "a.dcm", SeriesDescription="\x1b[31mred", SequenceName="\x07bell"))
    assert header.description == "?[31mred"
    assert dict(header.planes[0].keys)["SequenceName"] == "?bell"


def test_a_deflated_bomb_is_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_headers, "INFLATED_LIMIT", 1 << 20)
    path = one_slice(tmp_path / "a.dcm")
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=True)
    whole = path.read_bytes()
    start = 144 + struct.unpack("<I", whole[140:144])[0]
    body = zlib.decompress(whole[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(whole[:start] + packer.compress(body + b"\0" * (1 << 24)) + packer.flush())
    assert path.stat().st_size < 100_000
    assert "too large" in read_header(path)
    path.write_bytes(whole[: start + 40])
    assert "cut short" in read_header(path)


def test_series_uid_and_frames_of_odd_files(tmp_path):
    assert read_header(one_slice(tmp_path / "a", SeriesInstanceUID=None)).series_uid == ""
    assert read_header(one_slice(tmp_path / "b", SOPInstanceUID=generate_uid(), NumberOfFrames=12)).planes == ()

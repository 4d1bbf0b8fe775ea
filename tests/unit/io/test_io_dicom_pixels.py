import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medseg.errors import DicomError
from medseg.io.dicom_headers import Slice, read_header
from medseg.io.dicom_pixels import read_volume, same_pixels
from tests.dicom_slices import ORIGIN, stored, write_slice

TWELVE = {"BitsStored": 12, "HighBit": 11}
RAW = {"RescaleSlope": None, "RescaleIntercept": None}


def one(path, pixels, **changes):
    header = read_header(write_slice(path, pixels, ORIGIN, **changes))
    return Slice(header, header.planes[0])


def values(path, pixels, **changes):
    array, warnings = read_volume([one(path, pixels, **changes)])
    return array[0, 0], warnings


def table(first, entries, *, bits=16, signed=False, unit="HU"):
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries), first, bits])
    item.ModalityLUTType = unit
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return {"ModalityLUTSequence": Sequence([item]), **RAW}


def test_overlays_in_high_bits_are_masked(tmp_path):
    raw = stored(1, 0, 4096, np.uint16)[0]
    overlay = raw | (np.random.default_rng(2).integers(0, 2, raw.shape).astype(np.uint16) << 12)
    found, warnings = values(tmp_path / "a.dcm", overlay, RescaleIntercept=0, **TWELVE)
    assert np.array_equal(found, raw)
    assert any("BitsStored (0028,0101) are masked" in warning for warning in warnings)
    assert not read_volume([one(tmp_path / "b.dcm", raw, **TWELVE)])[1]


@pytest.mark.parametrize("extended", [True, False])
def test_signed_values_of_twelve_bits(tmp_path, extended):
    raw = stored(1, -2048, 2048)[0]
    written = raw if extended else (raw.view(np.uint16) & 0x0FFF).view(np.int16)
    found, warnings = values(tmp_path / "a.dcm", written, RescaleIntercept=0, **TWELVE)
    assert np.array_equal(found, raw)
    assert not warnings


def test_a_high_bit_at_the_top_shifts_values_down(tmp_path):
    raw = stored(1, 0, 4096, np.uint16)[0]
    found, _ = values(tmp_path / "a.dcm", raw << 4, RescaleIntercept=0, BitsStored=12, HighBit=15)
    assert np.array_equal(found, raw)


def test_a_modality_table_is_applied_and_clamped(tmp_path):
    raw = stored(1, 0, 300, np.uint16)[0]
    entries = np.arange(100) ** 2
    found, _ = values(tmp_path / "a.dcm", raw, **table(50, entries))
    assert np.array_equal(found, entries[np.clip(raw.astype(int) - 50, 0, 99)])
    signed = stored(1, -40, 40)[0]
    found, _ = values(tmp_path / "b.dcm", signed, **table(-20, entries, signed=True))
    assert np.array_equal(found, entries[np.clip(signed.astype(int) + 20, 0, 99)])


@pytest.mark.parametrize(
    ("modality", "unit", "inverted"),
    [("CT", "", False), ("PT", "", False), ("MR", "", True), ("MR", "mm2/s", False), ("DX", "OD", True)],
)
def test_white_is_low_turns_only_what_has_no_unit(tmp_path, modality, unit, inverted):
    raw = stored(1, 0, 4096, np.uint16)[0]
    named = {"RescaleType": unit} if unit else {}
    lost = {"ImagePositionPatient": None, "ImageOrientationPatient": None} if modality == "DX" else {}
    options = {"Modality": modality, "PhotometricInterpretation": "MONOCHROME1", "RescaleIntercept": 0}
    found, warnings = values(tmp_path / "a.dcm", raw, **options, **named, **lost, **TWELVE)
    assert np.array_equal(found, 4095 - raw if inverted else raw)
    assert any(("are inverted" if inverted else "not inverted") in warning for warning in warnings)


def test_a_table_is_turned_within_its_own_range(tmp_path):
    raw = stored(1, 0, 100, np.uint16)[0]
    entries = np.arange(100) * 3 + 5
    found, _ = values(
        tmp_path / "a", raw, Modality="MR", PhotometricInterpretation="MONOCHROME1", **table(0, entries, unit="US")
    )
    assert np.array_equal(found, entries.max() + entries.min() - entries[raw])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (RAW, r"lacks RescaleSlope \(0028,1053\), which other slices have"),
        ({"RescaleIntercept": None}, "lacks RescaleIntercept"),
        (table(0, np.arange(10)), r"has a ModalityLUTSequence \(0028,3000\), others a slope"),
        ({"RescaleType": "US"}, "RescaleType .* is US, missing in other slices"),
    ],
)
def test_slices_on_different_scales_are_refused(tmp_path, change, words):
    raw = stored(2, 0, 9)
    slices = [one(tmp_path / "0.dcm", raw[0]), one(tmp_path / "1.dcm", raw[1], **change)]
    for pair in (slices, slices[::-1]):
        with pytest.raises(DicomError, match=rf"1\.dcm: .*{words}|0\.dcm: .*"):
            read_volume(pair)
    with pytest.raises(DicomError, match=words):
        read_volume(slices)


def test_a_damaged_table_is_refused(tmp_path):
    broken = table(0, np.arange(10))
    broken["ModalityLUTSequence"][0].LUTDescriptor = [50, 0, 16]
    with pytest.raises(DicomError, match=r"ModalityLUTSequence .* is damaged"):
        values(tmp_path / "a.dcm", stored(1, 0, 9)[0], **broken)


def test_ct_without_a_scale_is_told(tmp_path):
    assert "perhaps not HU" in values(tmp_path / "a.dcm", stored()[0], **RAW)[1][0]


def test_deep_whole_numbers(tmp_path):
    raw = np.arange(99, dtype=np.uint32).reshape(9, 11) * 100_000
    bits = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}
    found, warnings = values(tmp_path / "a.dcm", raw, RescaleIntercept=0, **bits)
    assert np.array_equal(found, raw)
    assert not warnings
    found, warnings = values(tmp_path / "b.dcm", raw * 40, RescaleIntercept=0, **bits)
    np.testing.assert_allclose(found, raw * 40.0, rtol=1e-7)
    assert "rounded to single precision" in warnings[0]


def test_copies_are_known_by_values_and_scale(tmp_path):
    raw = stored(1, 0, 4000, np.uint16)[0]
    plain = one(tmp_path / "a.dcm", raw)
    assert same_pixels(plain, one(tmp_path / "b.dcm", raw, compress=True))
    assert not same_pixels(plain, one(tmp_path / "c.dcm", raw, RescaleIntercept=0))
    changed = raw.copy()
    changed[8, 10] += 1
    assert not same_pixels(plain, one(tmp_path / "d.dcm", changed))

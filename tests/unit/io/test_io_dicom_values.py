import struct

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medseg.io.dicom_values import items, numbers, text, whole


def raw(keyword, value, vr=None, *, little=True):
    """A data set with one element as it stands in a file."""
    tag = Tag(keyword)
    return Dataset({tag: RawDataElement(tag, vr, len(value), value, 0, vr is None, little)})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"0.5\\0.7", (0.5, 0.7)),
        (b" 1e-1 ", (0.1,)),
        (b"1.5\0", (1.5,)),
        (b"", None),
        (b"  ", None),
        (b"0,5\\0,7", ()),
        (b"wide", ()),
        (b"1\\\\2", ()),
        (b"nan\\1", ()),
        (b"inf", ()),
        (b"\xff\xfe", ()),
        (b"9" * 70_000, ()),
    ],
)
def test_decimal_strings(value, expected):
    assert numbers([raw("PixelSpacing", value, "DS")], "PixelSpacing") == expected
    assert numbers([raw("PixelSpacing", value)], "PixelSpacing") == expected


@pytest.mark.parametrize(
    ("vr", "kind", "value"), [("US", "H", 512), ("SS", "h", -3), ("FD", "d", 0.25), ("FL", "f", 2.5)]
)
@pytest.mark.parametrize("little", [True, False])
def test_binary_numbers_in_either_byte_order(vr, kind, value, little):
    packed = struct.pack(("<" if little else ">") + kind, value)
    assert numbers([raw("Rows", packed, vr, little=little)], "Rows", vr) == (value,)
    if little:
        assert numbers([raw("Rows", packed)], "Rows", vr) == (value,)
    assert numbers([raw("Rows", packed[:-1], vr, little=little)], "Rows", vr) == ()


def test_the_first_place_that_has_a_value_counts():
    near, far = raw("EchoTime", b"4.6", "DS"), raw("EchoTime", b"9.2", "DS")
    assert numbers([Dataset(), near, far], "EchoTime") == (4.6,)
    assert text([near, far], "EchoTime") == "4.6"
    assert text([Dataset()], "EchoTime") == ""


def test_whole_numbers():
    assert whole([raw("NumberOfFrames", b"12", "IS")], "NumberOfFrames", 1, "IS") == 12
    assert whole([Dataset()], "NumberOfFrames", 1, "IS") == 1
    for wrong in (b"1A", b"-4", b"2.5"):
        assert whole([raw("NumberOfFrames", wrong, "IS")], "NumberOfFrames", 1, "IS") == -1


def test_a_damaged_sequence_has_no_items():
    damaged = raw("PixelMeasuresSequence", b"\xfe\xff\xdd\xe0\x07\x00" + b"\1" * 9, "SQ")
    assert items([damaged], "PixelMeasuresSequence") == ()
    assert items([Dataset()], "PixelMeasuresSequence") == ()

from pathlib import Path

import pytest

from medseg.io.identifiers import is_neutral, masked, masked_text, series_id


@pytest.mark.parametrize(
    "name", ["I0", "IM000123", "1-001.dcm", "image_17", "CT.1.2.840.10008.1.2.3.dcm", "Slice 4", "DICOMDIR", "ST000001"]
)
def test_what_machines_name_is_neutral(name):
    assert is_neutral(name)


@pytest.mark.parametrize(
    "name", ["DOE", "Doe^John", "1953-07-28", "19530728", "MRN 0047113", "Müller CT", "a4711308.dcm", "JD", "x.doe"]
)
def test_what_people_name_is_not(name):
    assert not is_neutral(name)


def test_only_parts_below_the_given_folder_are_masked():
    root = Path("/home/doe/in")
    assert masked(root / "DOE^JOHN" / "CT" / "doe.pdf", root) == root / "*" / "CT" / "*.pdf"
    assert masked(Path("/elsewhere/DOE.dcm"), root) == Path("*.dcm")


def test_messages_are_masked_wherever_a_name_occurs():
    root = Path("in")
    paths = [root / "Doe John" / "I7", root / "Doe John" / "john.dcm"]
    text = f"{paths[1]}: lies at the place of Doe John/I7 (0020,0032)"
    assert masked_text(text, paths, root) == "in/*/*.dcm: lies at the place of */I7 (0020,0032)"


def test_ids_differ_by_series_and_hold_nothing_odd():
    one, other = series_id("MR", "1.2.3"), series_id("MR", "1.2.4")
    assert one != other and one.startswith("MR-") and len(one) == 15
    assert series_id("../x", "1.2.3").startswith("DICOM-")

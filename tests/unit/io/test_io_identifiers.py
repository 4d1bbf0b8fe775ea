from pathlib import Path, PureWindowsPath

import pytest

from medseg.io.identifiers import is_neutral, masked, masked_text, series_id, writable


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


def test_paths_are_given_from_the_folder_that_was_named():
    root = Path("/home/doe/in")
    assert masked(root / "DOE^JOHN" / "CT" / "doe.pdf", root) == "*/CT/*.pdf"
    assert masked(Path("/elsewhere/DOE.dcm"), root) == "*.dcm"
    assert masked(root, root) == "."


def test_messages_are_masked_wherever_a_name_occurs():
    root = Path("/data/Roe/in")
    paths = [root / "Doe John" / "I7", root / "Doe John" / "john.dcm", root / "la" / "I8"]
    text = f"{paths[1]}: lies at the place of Doe John/I7 (0020,0032), a label of la/I8"
    assert masked_text(text, paths, root) == "*/*.dcm: lies at the place of */I7 (0020,0032), a label of */I8"


def test_the_folder_of_one_patient_is_not_named_either():
    root = Path("/data/Roe Jane")
    text = f"{root / 'I1'}: differs from Roe Jane/I2 in {root}"
    assert masked_text(text, [root / "I1", root / "I2"], root) == "I1: differs from */I2 in scan"


def test_folders_named_like_words_do_not_hide_the_words():
    root = Path("/in")
    text = "/in/other/a/I7: other pixels than a/I8 has"
    assert masked_text(text, [root / "other" / "a" / "I7", root / "other" / "a" / "I8"], root) == (
        "*/*/I7: other pixels than */I8 has"
    )


@pytest.mark.parametrize("root", ["in", ".", "/"])
def test_short_roots_leave_other_text_alone(root):
    text = "in/I7: 0.5 min/max within 1 mm. export in peace"
    expected = text.removeprefix("in/") if root == "in" else text
    assert masked_text(text, [Path(root) / "I7"], Path(root)) == expected


def test_ids_differ_by_series_and_hold_nothing_odd():
    one, other = series_id("MR", "1.2.3"), series_id("MR", "1.2.4")
    assert one != other and one.startswith("MR-") and len(one) == 15
    assert series_id("../x", "1.2.3").startswith("DICOM-")


def test_messages_with_paths_of_windows_are_masked_too():
    root = PureWindowsPath(r"C:\data\Roe\in")
    paths = [root / "doe" / "I7", root / "Doe John" / "I8"]
    text = rf"{paths[0]}: lies where doe\I7 lies, and Doe John\I8: [WinError 5] 'C:\\data\\Roe\\in\\doe\\I7' in {root}"
    masked = masked_text(text, paths, root)
    assert masked == r"*\I7: lies where *\I7 lies, and *\I8: [WinError 5] '*\\I7' in scan"
    home = PureWindowsPath(r"C:\data\Roe")
    assert masked_text(r"Roe\I7 is cut off", [home / "I7"], home) == r"*\I7 is cut off"


def test_names_that_are_no_utf_8_are_masked_and_can_be_written():
    name = "\udcc8\udce2\udce0\udced"  # a name in a Cyrillic code page
    assert not is_neutral(name) and masked(Path("/in") / name / "I7", Path("/in")) == "*/I7"
    assert writable(f"{name}/Müller") == "%C8%E2%E0%ED/Müller"
    assert series_id("CT", name) != series_id("CT", name[:2])

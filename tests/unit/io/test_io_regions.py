"""Regions whose label maps could not be read again are refused, and those that would never show are named."""

import json

import pytest

from medseg.errors import DatasetError
from medseg.io.dataset_json import read_header
from medseg.io.datasets import read_dataset, survey
from medseg.io.regions import region_faults
from medseg.types.labels import Label, Labels

BRAIN = {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": 4}
SIDES = {"both": [1, 2], "left": 1, "right": 2}


def describe(folder, labels, order):
    content = {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nii.gz", "regions_class_order": order}
    for part, name in (("imagesTr", "a_0000.nii.gz"), ("labelsTr", "a.nii.gz")):
        (folder / part).mkdir(exist_ok=True)
        (folder / part / name).write_bytes(b"x")
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("labels", "order", "what", "fix"),
    [
        (BRAIN, [1, 2, 3], 'voxels of "whole", written as 1, would count as "core" too', "[2, 1, 4]"),
        (BRAIN, [2, 2, 4], 'regions "whole" and "core" would both be written as 2', "[2, 1, 4]"),
        (BRAIN | {"ignore": 5}, [2, 1, 5], '"enhancing" would be written as 5, the ignore value', "[2, 1, 4]"),
        ({"whole": [1, 2], "core": 2}, [1, 7], 'written as 7, would be missing from "whole"', "[1, 2]"),
        ({"upper": [1, 2], "lower": [3, 4]}, [3, 4], 'written as 3, would count as "lower" too', "[1, 3]"),
        (SIDES, [1, 1, 2], '"both" and "left" would both be written as 1', "[3, 1, 2]"),
        ({"all": [1, 2, 3], **SIDES}, [3, 1, 1, 2], '"both" and "left" would both be', "leave out a region"),
    ],
)
def test_values_that_do_not_tell_regions_apart_are_an_error_with_values_that_do(tmp_path, labels, order, what, fix):
    describe(tmp_path, labels, order)
    header, faults = read_header(tmp_path)
    (fault,) = [fault for fault in faults if fault.severity == "error"]
    assert what in fault.what and fix in fault.fix and fault.file == "dataset.json"
    assert header is not None, "label maps that are there already can still be scored"
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (BRAIN, [2, 1, 4]),
        ({"whole": [1, 2, 3], "core": [2, 3], "ring": 3}, [1, 2, 3]),
        ({"kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}, [1, 3, 2]),
        (SIDES, [3, 1, 2]),
        ({"left": [1, 2], "right": [3, 4]}, [10, 20]),
        ({"organ": 1, "tumour": 2}, [5, 5]),
    ],
)
def test_what_can_be_read_again_has_no_fault(tmp_path, labels, order):
    describe(tmp_path, labels, order)
    assert survey(tmp_path)[1] == () and len(read_dataset(tmp_path).cases) == 1


def test_regions_that_overlap_in_part_are_a_warning(tmp_path):
    describe(tmp_path, {"front": [1, 2], "back": [2, 3]}, [1, 3])
    (fault,) = survey(tmp_path)[1]
    assert fault.severity == "warning" and '"front" and "back" overlap in part' in fault.what


def test_regions_that_later_ones_hide_are_a_warning(tmp_path):
    describe(tmp_path, {"enhancing": 4, "core": [1, 4], "whole": [1, 2, 4]}, [4, 1, 2])
    faults = survey(tmp_path)[1]
    assert [fault.severity for fault in faults] == ["warning", "warning"]
    assert '"enhancing" lies in "core", "whole"' in faults[0].what and '"core" lies in "whole"' in faults[1].what
    assert all("whole, core, enhancing" in fault.fix and "regions_class_order" in fault.fix for fault in faults)
    assert len(read_dataset(tmp_path).cases) == 1


def test_written_values_fit_a_label_map(tmp_path):
    describe(tmp_path, SIDES, [70000, 1, 2])
    with pytest.raises(DatasetError, match="3 whole numbers from 1 to 65535"):
        read_dataset(tmp_path)


def test_plain_classes_are_no_regions():
    assert region_faults(Labels((Label("a", (1,)), Label("b", (2,), write=1)), ignore=9)) == ()

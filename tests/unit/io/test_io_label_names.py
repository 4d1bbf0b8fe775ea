import numpy as np
import pytest

from medseg.errors import ImageError
from medseg.io.label_names import choose, numbered, paint, read_snap_labels
from medseg.types.labels import Label, Labels

ORGANS = Labels((Label("Liver", (1,)), Label("spleen", (3,))))


def test_names_match_without_case_and_in_label_order():
    found, warnings = choose(["SPLEEN ", "body", "liver"], ORGANS)
    assert [(index, label.name) for index, label in found] == [(2, "Liver"), (0, "spleen")]
    assert warnings == []


def test_a_missing_name_is_told_and_two_of_a_kind_are_refused():
    found, warnings = choose(["liver", "Milz"], ORGANS)
    assert [index for index, _ in found] == [0]
    assert warnings == ['holds no "spleen", taken as absent; it holds "liver", "Milz"']
    with pytest.raises(ImageError, match='no structure of the labels "Liver", "spleen"; it holds "Milz"'):
        choose(["Milz"], ORGANS)
    with pytest.raises(ImageError, match='2 structures named "Liver"'):
        choose(["liver", "LIVER"], ORGANS)
    assert choose(["liver", "Liver"], ORGANS)[0][0][0] == 1  # the exact one


def test_the_ignore_value_has_its_own_structure():
    labels = Labels((Label("a", (1,)),), ignore=9)
    found, _ = choose(["Ignore", "a"], labels)
    assert [(index, label.values) for index, label in found] == [(1, (1,)), (0, (9,))]
    assert choose(["a"], labels) == ([(0, labels.items[0])], [])


def mask(*rows):
    return np.array([[rows]], dtype=bool).reshape(1, 1, -1)


def test_overlap_is_counted_and_the_later_label_wins():
    array, warnings = paint(
        [(ORGANS.items[0], mask(1, 1, 1, 0)), (ORGANS.items[1], mask(0, 0, 1, 1))], ORGANS, (1, 1, 4)
    )
    assert array.tolist() == [[[1, 1, 3, 3]]] and array.dtype == np.uint8
    assert warnings == ['1 voxels lie in "Liver" and in "spleen" and count as the latter']


def test_nested_regions_lose_nothing_and_others_are_told():
    regions = Labels((Label("whole", (1, 2)), Label("core", (2,))))
    whole, core = regions.items
    assert paint([(whole, mask(1, 1, 1, 0)), (core, mask(0, 1, 0, 0))], regions, (1, 1, 4))[1] == []
    array, warnings = paint([(whole, mask(1, 1, 0, 0)), (core, mask(0, 1, 1, 0))], regions, (1, 1, 4))
    assert array.tolist() == [[[1, 2, 2, 0]]]
    assert warnings == [
        'region "whole" differs from its structure in 1 voxels, because regions overlap otherwise than their values say'
    ]
    assert paint([], Labels((Label("a", (300,)),)), (1, 1, 2))[0].dtype == np.uint16


def test_numbered_names_are_unique():
    assert numbered(["a", "a", " ", "a (2)"]).names() == ("a", "a (2)", "structure 3", "a (2) (2)")


SNAP = """################################################
# ITK-SnAP Label Description File
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "Upper skull"
   12     0  255    0      0.5  0  1    "Mandible ""
"""


def test_itk_snap_labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text(SNAP, "utf-8")
    assert [(label.name, label.values) for label in read_snap_labels(path)] == [
        ("Upper skull", (1,)),
        ('Mandible "', (12,)),
    ]
    for text, reason in (("", "describes no label"), ("1 2 3\n", "line 1 is no label description")):
        path.write_text(text)
        with pytest.raises(ImageError, match=reason):
            read_snap_labels(path)
    path.write_bytes(b"\xff\xff")
    with pytest.raises(ImageError, match="not UTF-8"):
        read_snap_labels(path)
    with pytest.raises(ImageError, match="cannot be opened"):
        read_snap_labels(tmp_path / "absent.txt")

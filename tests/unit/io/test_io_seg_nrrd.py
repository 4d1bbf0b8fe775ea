"""3D Slicer segmentations: what is written is what ITK reads and what the header says; files as Slicer has them."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import ImageError
from medseg.io.images import read_image
from medseg.io.seg_nrrd import read_seg_nrrd, write_seg_nrrd
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Code, Label, Labels

OBLIQUE = Geometry(
    (4, 6, 5), (2.5, 0.7, 0.4), (-20.0, 35.5, 101.25), ((0.0, 1.0, 0.0), (0.6, 0.0, -0.8), (-0.8, 0.0, -0.6))
)
THREE = Labels((Label("mandible", (3,)), Label("Zähne ~ oben|^", (1,)), Label("absent", (300,))))
NESTED = Labels((Label("whole", (1, 2), write=1), Label("core", (2,)), Label("cyst", (5,))))


def some(values=(3, 1)):
    array = np.zeros(OBLIQUE.shape, np.uint16 if max(values) > 255 else np.uint8)
    array[1:3, 2:5, 0:2], array[3, 0, 4] = values
    return array


def test_itk_and_the_own_reader_find_every_voxel_in_its_place(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    write_seg_nrrd(LabelMap(some(), OBLIQUE, THREE), path)
    theirs = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(theirs), some())
    for index in ((0, 0, 0), (3, 5, 4), (2, 0, 1)):
        point = (OBLIQUE.affine() @ [*index, 1])[:3]
        np.testing.assert_allclose(theirs.TransformIndexToPhysicalPoint(index[::-1]), point, atol=1e-9)
    found = read_seg_nrrd(path)
    assert found.geometry.same_grid(OBLIQUE, tol_mm=1e-9)
    assert [(item.name, item.value, item.layer) for item in found.items] == [
        ("mandible", 3, 0), ("Zähne ~ oben|^", 1, 0), ("absent", 300, 0),
    ]  # fmt: skip
    assert np.array_equal(found.mask(found.items[1]), some() == 1) and not found.mask(found.items[2]).any()
    assert found.items[0].code == Code("SCT", "91609006", "Mandible") and not found.warnings
    assert len({item.colour for item in found.items}) == 3 and None not in {item.colour for item in found.items}


def test_the_header_says_what_slicer_reads(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    write_seg_nrrd(LabelMap(some(), OBLIQUE, THREE), path)
    image = sitk.ReadImage(str(path))
    said = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert said["Segment0_Extent"] == "0 1 2 4 1 2" and said["Segment1_Extent"] == "4 4 0 0 3 3"
    assert said["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert (said["Segment0_Name"], said["Segment0_LabelValue"], said["Segment0_Layer"]) == ("mandible", "3", "0")
    entry = said["Segment0_Tags"]
    assert entry.startswith("TerminologyEntry:") and entry.endswith("|") and entry.count("~") == 6
    assert entry.split("~")[1:3] == ["SCT^91723000^Anatomical Structure", "SCT^91609006^Mandible"]
    assert said["Segment1_Tags"].count("~") == 6 and said["Segment1_Tags"].count("|") == 1
    assert all(0 <= float(part) <= 1 for part in said["Segment0_Color"].split())
    assert said["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"


def test_regions_overlap_in_layers(tmp_path):
    path, array = tmp_path / "a.seg.nrrd", some((1, 2))
    array[0, 0, 0] = 5
    write_seg_nrrd(LabelMap(array, OBLIQUE, NESTED), path)
    found = read_seg_nrrd(path)
    assert found.layers.shape == (2, *OBLIQUE.shape)
    assert [item.layer for item in found.items] == [0, 1, 0]
    assert np.array_equal(found.mask(found.items[0]), (array == 1) | (array == 2))
    assert np.array_equal(found.mask(found.items[1]), array == 2)
    assert np.array_equal(found.mask(found.items[2]), array == 5)
    assert found.warnings == ('1 voxels lie in "whole" and in "core"',)


def test_many_values_take_16_bits(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    write_seg_nrrd(LabelMap(some((300, 1)), OBLIQUE, THREE), path)
    found = read_seg_nrrd(path)
    assert found.layers.dtype == np.uint16 and np.array_equal(found.mask(found.items[2]), some((300, 1)) == 300)


def test_pixels_stay_pixels(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    flat = Geometry((1, 6, 5), (1.0, 1.0, 1.0), unit="px")
    write_seg_nrrd(LabelMap(some()[2:3], flat, THREE), path)
    assert read_seg_nrrd(path).geometry.unit == "px"


SLICER = """NRRD0004
# Complete NRRD file format specification at:
# http://teem.sourceforge.net/nrrd/format.html
type: unsigned char
dimension: 4
space: left-posterior-superior
sizes: 2 2 2 2
space directions: none (1,0,0) (0,1,0) (0,0,2)
kinds: list domain domain domain
encoding: gzip
space origin: (5,6,7)
Segment0_Color:=0.5 0.25 1
Segment0_ID:=Segment_3
Segment0_LabelValue:=1
Segment0_Layer:=0
Segment0_Name:=GTV
Segment0_Tags:=Segmentation.Status:inprogress|TerminologyEntry:x~SCT^49755003^M~SCT^108369006^Tumor~^^~y~^^~^^|
Segment2_ID:=Segment_4
Segment2_LabelValue:=1
Segment2_Layer:=1
Segment2_Name:=GTV
Segmentation_MasterRepresentation:=Binary labelmap

"""


def as_slicer(path, text=SLICER, voxels=b"\1\0\0\1\1\1" + bytes(10)):
    path.write_bytes(text.encode() + gzip.compress(voxels))
    return path


def test_layers_of_slicer_may_share_a_value(tmp_path):
    found = read_seg_nrrd(as_slicer(tmp_path / "s.seg.nrrd"))
    first, second = found.items
    assert (first.name, second.name) == ("GTV", "GTV (2)")
    assert first.colour == (128, 64, 255) and first.code == Code("SCT", "108369006", "Tumor") and second.code is None
    assert found.mask(first).ravel().tolist() == [True, False, True] + [False] * 5
    assert found.mask(second).ravel().tolist() == [False, True, True] + [False] * 5
    assert found.geometry.origin_mm == (5.0, 6.0, 7.0) and found.geometry.spacing_mm == (2.0, 1.0, 1.0)
    assert found.warnings == ('1 voxels lie in "GTV" and in "GTV (2)"',)


def test_files_older_than_layers_have_one_component_per_segment(tmp_path):
    text = "\n".join(line for line in SLICER.split("\n") if "LabelValue" not in line and "Layer" not in line)
    found = read_seg_nrrd(as_slicer(tmp_path / "s.seg.nrrd", text))
    assert [item.layer for item in found.items] == [0, 1]


def test_what_a_segment_list_leaves_open_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"values \[2\] that no segment has"):
        read_seg_nrrd(as_slicer(tmp_path / "a.seg.nrrd", voxels=b"\2" + bytes(15)))
    with pytest.raises(ImageError, match="no layer"):
        read_seg_nrrd(as_slicer(tmp_path / "b.seg.nrrd", SLICER.replace("Layer:=1", "Layer:=2")))
    with pytest.raises(ImageError, match="names no segments"):
        plain = "\n".join(line for line in SLICER.split("\n") if not line.startswith("Segment"))
        read_seg_nrrd(as_slicer(tmp_path / "c.seg.nrrd", plain))
    with pytest.raises(ImageError):
        read_seg_nrrd(as_slicer(tmp_path / "d.seg.nrrd", voxels=bytes(9)))


def test_a_segmentation_is_also_a_label_map_for_those_who_do_not_know_it(tmp_path):
    write_seg_nrrd(LabelMap(some(), OBLIQUE, THREE), tmp_path / "a.seg.nrrd")
    assert np.array_equal(read_image([tmp_path / "a.seg.nrrd"]).array[0], some())

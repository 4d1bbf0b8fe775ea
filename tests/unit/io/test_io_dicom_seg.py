"""DICOM SEG written on generated series and read back by highdicom, by the toolkit's own reader and by bits."""

import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_phantoms import AXIAL, FRAME, OBLIQUE, SAGITTAL, grid, write_dicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from medseg.errors import DicomError, GeometryError
from medseg.io.dicom_seg import write_seg
from medseg.io.dicom_seg_frames import open_seg
from medseg.io.dicom_seg_reader import read_seg, segment_sums
from medseg.io.images import read_image
from medseg.types.image import LabelMap
from medseg.types.labels import Code, Label, Labels
from medseg.types.result import Provenance

SHAPE = (6, 11, 13)  # 143 pixels a frame: no multiple of 8, so that frames begin within a byte
MADE_BY = Provenance("jaws-8gib", "c0ffee" * 10 + "abcd", {"overlap": "0.5"})
THREE = Labels((Label("mandible", (3,)), Label("condyle cap", (1,)), Label("kidney_left", (7,))))
NESTED = Labels((Label("whole", (1, 2), write=1), Label("core", (2,))))


def blobs(values=(3, 1, 7)):
    """Voxels of three classes at known places, no two alike in any mirror image."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:4, 2:5, 3:9] = values[0]
    array[3:6, 7:10, 1:3] = values[1]
    array[4, 0:2, 10:13] = values[2]
    return array


def scan(folder, axes=AXIAL, **changes):
    pixels = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
    write_dicom(folder, pixels, grid(SHAPE, axes=axes), **changes)
    return read_image([folder])


def written(tmp_path, image, array=None, labels=THREE, **options):
    path = tmp_path / "a.seg.dcm"
    array = blobs() if array is None else array
    write_seg(LabelMap(array, image.geometry, labels), image.source, path, MADE_BY, **options)
    return path


@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_every_voxel_comes_back_through_a_second_reader(tmp_path, axes, kind):
    image = scan(tmp_path / "ct", axes)
    path = written(tmp_path, image, kind=kind)
    theirs = highdicom.seg.segread(path)
    volume = theirs.get_volume(combine_segments=True, allow_missing_positions=True, rescale_fractional=False)
    placed = np.zeros(SHAPE, np.uint8)
    affine = np.linalg.inv(image.geometry.affine())
    for index in np.argwhere(volume.array):
        point = volume.affine @ [*index, 1]
        z, y, x = np.rint((affine @ point)[:3]).astype(int)
        placed[z, y, x] = volume.array[tuple(index)]
    assert np.array_equal(placed, np.choose(np.searchsorted([0, 1, 3, 7], blobs()), [0, 2, 1, 3]))


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_own_reader_gives_the_grid_of_the_images_or_its_own(tmp_path, kind):
    image = scan(tmp_path / "ct", OBLIQUE)
    path = written(tmp_path, image, kind=kind)
    found = read_seg(path, image.geometry)
    assert [item.name for item in found.items] == list(THREE.names())
    for item, label in zip(found.items, THREE.items, strict=True):
        assert np.array_equal(found.mask(item), blobs() == label.written)
    own = read_seg(path)
    assert own.geometry.shape == (5, 11, 13)
    np.testing.assert_allclose(own.geometry.affine()[:3, :3], image.geometry.affine()[:3, :3], atol=1e-4)
    np.testing.assert_allclose(own.geometry.origin_mm, (image.geometry.affine() @ [1, 0, 0, 1])[:3], atol=1e-4)
    assert own.series_uid == image.source.series_uid and own.geometry.frame_of_reference_uid == FRAME


def test_the_object_says_what_the_standard_and_a_viewer_need(tmp_path):
    image = scan(tmp_path / "ct")
    data = pydicom.dcmread(written(tmp_path, image))
    source = [pydicom.dcmread(file) for file in image.source.files]
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "AccessionNumber", "FrameOfReferenceUID"):
        assert data.get(name) == source[0].get(name), name
    referred = {item.ReferencedSOPInstanceUID for item in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {one.SOPInstanceUID for one in source}
    assert data.ReferencedSeriesSequence[0].SeriesInstanceUID == image.source.series_uid
    by_uid = {one.SOPInstanceUID: one for one in source}
    for frame in data.PerFrameFunctionalGroupsSequence:
        (drawn_on,) = frame.DerivationImageSequence[0].SourceImageSequence
        there = by_uid[drawn_on.ReferencedSOPInstanceUID].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == there
    mandible, cap, kidney = data.SegmentSequence
    assert mandible.SegmentedPropertyTypeCodeSequence[0].CodeValue == "91609006"
    assert cap.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99MEDSEG"
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert side.CodeMeaning == "Left"
    colours = {tuple(item.RecommendedDisplayCIELabValue) for item in data.SegmentSequence}
    assert len(colours) == 3
    algorithm = mandible.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "jaws-8gib" and MADE_BY.bundle_sha256 in algorithm.AlgorithmParameters
    assert data.SeriesDescription == "medseg jaws-8gib" and "Phantom" not in data.SeriesDescription
    assert data.SeriesInstanceUID != image.source.series_uid and data.SegmentsOverlap == "NO"


def test_a_class_brings_its_own_code_and_letters_beyond_ascii(tmp_path):
    image = scan(tmp_path / "ct", PatientName="Müller^Käthe", SpecificCharacterSet="ISO_IR 100")
    code = Code("99LAB", "17", "Läsion")
    labels = Labels((Label("Läsion 腫瘍", (3,), code), Label("b", (1,)), Label("c", (7,))))
    data = pydicom.dcmread(written(tmp_path, image, labels=labels))
    assert data.SegmentSequence[0].SegmentLabel == "Läsion 腫瘍" and str(data.PatientName) == "Müller^Käthe"
    kind = data.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodingSchemeDesignator, kind.CodeValue, kind.CodeMeaning) == ("99LAB", "17", "Läsion")
    assert read_seg(tmp_path / "a.seg.dcm").items[0].code == code


def test_regions_overlap_as_segments(tmp_path):
    image = scan(tmp_path / "ct")
    array = blobs((1, 2, 2))
    found = read_seg(written(tmp_path, image, array, NESTED), image.geometry)
    assert np.array_equal(found.mask(found.items[0]), array > 0)
    assert np.array_equal(found.mask(found.items[1]), array == 2)
    assert found.layers.shape[0] == 2 and any(f"{(array == 2).sum()} voxels" in note for note in found.warnings)
    theirs = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    assert theirs.SegmentsOverlap == "YES"
    with pytest.raises(DicomError, match="overlap"):
        written(tmp_path, image, array, NESTED, kind="labelmap")


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_empty_classes_are_described_and_an_empty_map_is_one_empty_plane(tmp_path, kind):
    image = scan(tmp_path / "ct")
    some = np.where(blobs() == 3, 3, 0).astype(np.uint8)
    found = read_seg(written(tmp_path, image, some, kind=kind), image.geometry)
    assert [int(found.mask(item).sum()) for item in found.items] == [int((some == 3).sum()), 0, 0]
    path = written(tmp_path, image, np.zeros(SHAPE, np.uint8), kind=kind)
    found = read_seg(path, image.geometry)
    assert len(found.items) == 3 and not found.layers.any() and pydicom.dcmread(path).NumberOfFrames <= 3


def test_a_grid_off_the_source_planes_states_its_own(tmp_path):
    image = scan(tmp_path / "ct")
    moved = replace(image.geometry, origin_mm=(-19.0, 35.5, 102.0), spacing_mm=(1.5, 0.7, 0.4))
    path = tmp_path / "a.seg.dcm"
    write_seg(LabelMap(blobs(), moved, THREE), image.source, path, MADE_BY)
    found = read_seg(path, moved)
    assert all(
        np.array_equal(found.mask(i), blobs() == v.written) for i, v in zip(found.items, THREE.items, strict=True)
    )
    with pytest.raises(GeometryError, match="does not lie on voxels"):
        read_seg(path, image.geometry)
    referred = pydicom.dcmread(path).ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert len(referred) == len(image.source.files)


def test_the_same_result_is_the_same_object_and_another_one_is_not(tmp_path):
    image = scan(tmp_path / "ct")

    def uids(array=None, made_by=MADE_BY):
        path = tmp_path / "u.dcm"
        write_seg(LabelMap(blobs() if array is None else array, image.geometry, THREE), image.source, path, made_by)
        data = pydicom.dcmread(path)
        return data.SeriesInstanceUID, data.SOPInstanceUID

    first = uids()
    assert uids() == first
    other = blobs()
    other[0, 0, 0] = 1
    assert uids(other)[0] == first[0] and uids(other)[1] != first[1]
    assert uids(made_by=replace(MADE_BY, settings={"overlap": "0.25"}))[0] != first[0]
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in first)


def enhanced(path, order):
    """One multi-frame CT file, its frames shuffled, orientation and spacing stated frame by frame."""
    geometry = grid(SHAPE, axes=OBLIQUE)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = generate_uid(), generate_uid(), FRAME
    ds.PatientName, ds.PatientID, ds.Modality, ds.ImageType = "Phantom^Only", "P-1", "CT", ["ORIGINAL", "PRIMARY"]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *SHAPE[1:], 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.NumberOfFrames = len(order)
    ds.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    frames = []
    for z in order:
        place, turn, size, frame = (pydicom.Dataset() for _ in range(4))
        place.ImagePositionPatient = [f"{v:.6f}" for v in (geometry.affine() @ [z, 0, 0, 1])[:3]]
        turn.ImageOrientationPatient = [f"{v:.6f}" for v in np.array(geometry.direction)[:, :2].T.ravel()]
        size.PixelSpacing, size.SliceThickness = list(geometry.spacing_mm[1:]), 1.0
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [place], [turn]
        frame.PixelMeasuresSequence = [size]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    ds.PixelData = np.zeros((len(order), *SHAPE[1:]), "<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return read_image([path])


def test_channels_from_several_multi_frame_series_refer_to_the_first(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        enhanced(tmp_path / name / "e.dcm", range(6))
    files = [tmp_path / name / "e.dcm" for name in ("1", "2")]
    image = read_image(files, channels=("early", "late"))
    assert image.source.files == tuple(files)
    referred = pydicom.dcmread(written(tmp_path, image)).ReferencedSeriesSequence[0]
    first = pydicom.dcmread(files[0])
    assert referred.SeriesInstanceUID == first.SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} == {first.SOPInstanceUID}


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_frames_of_a_multi_frame_image_are_referred_to_by_number(tmp_path, kind):
    order = (4, 0, 2, 1, 5, 3)
    image = enhanced(tmp_path / "e.dcm", order)
    path = written(tmp_path, image, kind=kind)
    found = read_seg(path, image.geometry)
    assert all(
        np.array_equal(found.mask(item), blobs() == label.written)
        for item, label in zip(found.items, THREE.items, strict=True)
    )
    for frame in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        (drawn_on,) = frame.DerivationImageSequence[0].SourceImageSequence
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        z = np.rint((np.linalg.inv(image.geometry.affine()) @ [*position, 1])[0])
        assert drawn_on.ReferencedFrameNumber == order.index(z) + 1
        assert drawn_on.SpatialLocationsPreserved == "YES"


def test_a_sheared_stack_that_was_straightened_gets_planes_of_its_own(tmp_path):
    geometry = grid(SHAPE, spacing_mm=(2.5, 0.7, 0.7))
    write_dicom(tmp_path / "ct", np.zeros(SHAPE, np.int16), geometry)
    for file in (tmp_path / "ct").iterdir():
        data = pydicom.dcmread(file)
        x, y, z = (float(v) for v in data.ImagePositionPatient)
        data.ImagePositionPatient = [x, round(y + 0.31 * (z - 101.25), 4), z]
        data.save_as(file)
    image = read_image([tmp_path / "ct"])
    assert image.geometry.shape != SHAPE and image.warnings
    array = np.zeros(image.geometry.shape, np.uint8)
    array[1:4, 2:5, 3:9], array[3:6, 7:10, 1:3] = 3, 1
    path = written(tmp_path, image, array)
    found = read_seg(path, image.geometry)
    assert np.array_equal(found.mask(found.items[0]), array == 3)
    assert np.array_equal(found.mask(found.items[1]), array == 1)
    data = pydicom.dcmread(path)
    assert len(data.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(image.source.files)
    preserved = {
        item.SpatialLocationsPreserved
        for frame in data.PerFrameFunctionalGroupsSequence
        for derived in frame.DerivationImageSequence
        for item in derived.SourceImageSequence
    }
    assert preserved <= {"NO"}


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_values_the_standard_does_not_allow_stay_out(tmp_path):
    image = scan(tmp_path / "ct", StudyDate="2020.01.02", PatientSex="X", SliceThickness=None)
    data = pydicom.dcmread(written(tmp_path, image))
    assert not data.StudyDate and not data.PatientSex and str(data.PatientName) == "Phantom^Only"


def test_the_distance_of_slices_is_that_of_their_positions_whatever_the_source_states(tmp_path):
    image = scan(tmp_path / "ct", SpacingBetweenSlices=0.5, SliceThickness=9)
    path = written(tmp_path, image)
    assert open_seg(path).step_mm == pytest.approx(2.5)
    assert float(highdicom.seg.segread(path).get_volume(allow_missing_positions=True).spacing[0]) == pytest.approx(2.5)


def test_characters_no_one_knows_become_utf8(tmp_path):
    image = scan(tmp_path / "ct")
    for file in image.source.files:
        file.write_bytes(file.read_bytes())
        data = pydicom.dcmread(file)
        data.SpecificCharacterSet = ""
        data.save_as(file)
    assert pydicom.dcmread(written(tmp_path, image)).PatientName == "Phantom^Only"


def test_a_source_of_an_unknown_class_is_refused_by_its_file(tmp_path):
    image = scan(tmp_path / "ct", SOPClassUID="1.2.3.4.5")
    with pytest.raises(DicomError, match="highdicom does not take it") as caught:
        written(tmp_path, image)
    assert caught.value.where == str(image.source.files[0])


def test_a_source_without_its_uids_is_refused_by_name(tmp_path):
    image = scan(tmp_path / "ct")
    first = pydicom.dcmread(image.source.files[0])
    del first.SOPInstanceUID
    first.save_as(image.source.files[0])
    with pytest.raises(DicomError, match="lacks SOPInstanceUID") as caught:
        written(tmp_path, image)
    assert caught.value.where == str(image.source.files[0]) and not (tmp_path / "a.seg.dcm").exists()


def test_without_highdicom_the_command_is_named(tmp_path, monkeypatch):
    image = scan(tmp_path / "ct")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(DicomError, match=r"pip install 'medseg\[dicom\]'"):
        written(tmp_path, image)


def own_planes(tmp_path):
    image = scan(tmp_path / "ct")
    moved = replace(image.geometry, origin_mm=(-19.0, 35.5, 102.0), spacing_mm=(1.5, 0.7, 0.4))
    write_seg(LabelMap(blobs(), moved, THREE), image.source, tmp_path / "a.seg.dcm", MADE_BY)
    return tmp_path / "a.seg.dcm"


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
@pytest.mark.parametrize(
    "make",
    [
        lambda folder: written(folder, scan(folder / "ct")),
        lambda folder: written(folder, scan(folder / "ct"), np.zeros(SHAPE, np.uint8)),
        lambda folder: written(folder, scan(folder / "ct"), blobs((1, 2, 2)), NESTED),
        lambda folder: written(folder, enhanced(folder / "e.dcm", (4, 0, 2, 1, 5, 3))),
        own_planes,
    ],
    ids=["filled", "empty", "regions", "multi-frame", "own planes"],
)
def test_a_validator_finds_no_error(tmp_path, make):
    found = subprocess.run(["dciodvfy", "-new", make(tmp_path)], capture_output=True, text=True, check=False)
    assert found.stderr.splitlines() and not [line for line in found.stderr.splitlines() if line.startswith("Error")]


def test_frames_are_summed_where_their_own_tags_place_them(tmp_path):
    image = scan(tmp_path / "ct", SAGITTAL)
    path = written(tmp_path, image)
    totals = np.zeros((4, 4))
    for number, sums in segment_sums(open_seg(path)):
        totals[number] += sums
    for number, label in enumerate(THREE.items, start=1):
        index = np.argwhere(blobs() == label.written)
        points = np.c_[index, np.ones(len(index))] @ image.geometry.affine().T
        np.testing.assert_allclose(totals[number], [len(index), *points[:, :3].sum(axis=0)], rtol=1e-6)


def test_fractions_and_unordered_sparse_frames_of_others(tmp_path):
    image = scan(tmp_path / "ct", OBLIQUE)
    fractions = np.zeros((*SHAPE, 2), np.float32)
    fractions[1, 2:5, 3:9, 0], fractions[4, 2:5, 3:9, 0], fractions[2, 1, 1, 1] = 0.8, 0.3, 1.0
    described = [
        highdicom.seg.SegmentDescription(
            n, name, highdicom.sr.CodedConcept("85756007", "SCT", "Tissue"),
            highdicom.sr.CodedConcept("10200004", "SCT", "Liver"), "MANUAL",
        )
        for n, name in ((1, "liver"), (2, "liver"))
    ]  # fmt: skip
    shuffled = [pydicom.dcmread(image.source.files[i]) for i in (4, 0, 2, 1, 5, 3)]
    theirs = highdicom.seg.Segmentation(
        shuffled, fractions[[4, 0, 2, 1, 5, 3]], "FRACTIONAL", described,
        "1.2.3", 1, "1.2.3.4", 1, "a", "b", "c", "d",
    )  # fmt: skip
    order = np.random.default_rng(2).permutation(theirs.NumberOfFrames)
    frames = theirs.pixel_array[order]
    groups = theirs.PerFrameFunctionalGroupsSequence
    theirs.PerFrameFunctionalGroupsSequence = [groups[i] for i in order]
    theirs.PixelData = np.ascontiguousarray(frames).tobytes()
    theirs.save_as(tmp_path / "f.dcm")
    half = read_seg(tmp_path / "f.dcm", image.geometry)
    assert [item.name for item in half.items] == ["liver", "liver (2)"]
    assert np.array_equal(half.mask(half.items[0]), fractions[..., 0] >= 0.5)
    assert np.array_equal(half.mask(half.items[1]), fractions[..., 1] >= 0.5)
    low = read_seg(tmp_path / "f.dcm", image.geometry, threshold=0.25)
    assert np.array_equal(low.mask(low.items[0]), fractions[..., 0] >= 0.25)
    assert any("fractions" in note for note in low.warnings)


def test_what_is_no_segmentation_of_the_image_is_refused(tmp_path):
    image = scan(tmp_path / "ct")
    path = written(tmp_path, image)
    with pytest.raises(GeometryError, match="frame of reference"):
        read_seg(path, replace(image.geometry, frame_of_reference_uid="1.2.3"))
    with pytest.raises(GeometryError, match="beyond"):
        read_seg(path, replace(image.geometry, shape=(3, 11, 13)))
    with pytest.raises(DicomError, match="no DICOM Segmentation"):
        read_seg(image.source.files[0])
    whole = path.read_bytes()
    for cut in (100, len(whole) // 2, len(whole) - 60):
        path.write_bytes(whole[:cut])
        with pytest.raises(DicomError):
            read_seg(path)


def test_promises_that_a_file_cannot_hold_cost_nothing(tmp_path):
    image = scan(tmp_path / "ct")
    lying = {
        "rows": ("binary", lambda data: setattr(data, "Rows", 60000)),
        "frames": ("binary", lambda data: setattr(data, "NumberOfFrames", 10**6)),
        "compressed": ("labelmap", lambda data: (setattr(data, "Rows", 8000), setattr(data, "Columns", 8000))),
        "far": ("binary", lambda data: move_last(data, 1e9)),
        "numbers": ("binary", lambda data: setattr(data.SegmentSequence[1], "SegmentNumber", 1)),
    }

    def move_last(data, millimetres):
        data.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0].ImagePositionPatient[2] = millimetres

    for name, (kind, change) in lying.items():
        data = pydicom.dcmread(written(tmp_path, image, kind=kind))
        change(data)
        data.save_as(tmp_path / "lie.dcm")
        tracemalloc.start()
        with pytest.raises((DicomError, GeometryError)):
            read_seg(tmp_path / "lie.dcm")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 50e6, name


@pytest.mark.parametrize("overlapping", [False, True])
def test_memory_does_not_grow_with_classes(tmp_path, overlapping):
    shape = (4, 256, 256)
    write_dicom(tmp_path / "ct", np.zeros(shape, np.int16), grid(shape))
    image = read_image([tmp_path / "ct"])
    array = np.zeros(shape, np.uint8)
    array[:, 4:8, :240] = np.arange(240) // 8 + 1
    items = [Label(f"c{n}", (n,)) for n in range(1, 31)]
    if overlapping:
        items = [*items[1:], Label("all", tuple(range(1, 31)), write=1)]
    labels = LabelMap(array, image.geometry, Labels(tuple(items)))
    write_seg(labels, image.source, tmp_path / "warm.dcm", MADE_BY)
    tracemalloc.start()
    write_seg(labels, image.source, tmp_path / "a.dcm", MADE_BY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    frames = pydicom.dcmread(tmp_path / "a.dcm", stop_before_pixels=True).NumberOfFrames
    assert frames == 4 * 30
    assert peak < array.nbytes * 30 / 2, "less than half of one array per class"


def test_no_error_quotes_the_patient(tmp_path, monkeypatch):
    image = scan(tmp_path / "ct")

    def refuses(*arguments, **options):
        raise ValueError("Phantom^Only is no name")

    monkeypatch.setattr(highdicom.seg, "Segmentation", refuses)
    with pytest.raises(DicomError, match=r"\(ValueError\)") as caught:
        written(tmp_path, image)
    assert "Phantom" not in str(caught.value)

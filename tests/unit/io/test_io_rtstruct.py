import warnings
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Outline
from scipy import ndimage

from medseg.errors import DicomError, GeometryError, ImageError, MedsegError
from medseg.io.images import read_image
from medseg.io.rtstruct import check_rtstruct, read_rtstruct, write_rtstruct
from medseg.types.image import LabelMap
from medseg.types.labels import Code, Label, Labels
from tests.dicom_phantoms import AXIAL, OBLIQUE, SAGITTAL, grid, write_dicom

SHAPE = (7, 30, 26)
BONES = Labels(
    (Label("mandible", (1,), Code("SCT", "91609006", "Mandible")), Label("zähne", (2,)), Label("GTV_1", (3,)))
)


def shapes(seed=0):
    """Three classes with holes and several parts; class 3 in no slice."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(SHAPE), (0.6, 2, 2))
    return np.digitize(smooth, np.quantile(smooth, [0.6, 0.85])).astype(np.uint8)


@pytest.fixture(params=[AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
def image(request, tmp_path):
    geometry = grid(SHAPE, axes=request.param)
    write_dicom(tmp_path / "ct", np.random.default_rng(0).integers(0, 900, SHAPE), geometry)
    read = read_image([tmp_path / "ct"])
    assert read.geometry.same_grid(geometry)
    return read


@pytest.fixture
def axial(tmp_path):
    write_dicom(tmp_path / "ct", np.zeros(SHAPE), grid(SHAPE))
    return read_image([tmp_path / "ct"])


def written(image, path, array=None, labels=BONES):
    array = shapes() if array is None else array
    write_rtstruct(LabelMap(array, image.geometry, labels), image, path)
    return pydicom.dcmread(path)


def edited(path, change):
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path)
    return path


def contours(ds):
    return [contour for roi in ds.ROIContourSequence for contour in roi.get("ContourSequence", [])]


def test_a_round_trip_gives_every_voxel_back(image, tmp_path):
    written(image, tmp_path / "rs.dcm")
    back = read_rtstruct(tmp_path / "rs.dcm", image, BONES)
    assert np.array_equal(back.array, shapes())
    assert back.geometry == image.geometry and back.labels == BONES and back.warnings == ()
    every = read_rtstruct(tmp_path / "rs.dcm", image)
    assert every.labels.names() == BONES.names() and np.array_equal(every.array, shapes())


def test_another_reader_finds_the_same_voxels(image, tmp_path):
    """pydicom's numbers, the plane of the image each contour names, and the winding rule of matplotlib."""
    ds = written(image, tmp_path / "rs.dcm")
    headers = {str(h.SOPInstanceUID): h for h in map(pydicom.dcmread, image.source.files)}
    slices = {str(pydicom.dcmread(file).SOPInstanceUID): i for i, file in enumerate(image.source.files)}
    found = np.zeros(SHAPE, np.uint8)
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    for value, roi in enumerate(ds.ROIContourSequence, start=1):
        for contour in roi.get("ContourSequence", []):
            (named,) = contour.ContourImageSequence
            header = headers[named.ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(header.ImagePositionPatient, float)
            row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
            assert np.abs(points @ np.cross(row, column)).max() < 1e-3
            pixels = np.c_[points @ row / header.PixelSpacing[1], points @ column / header.PixelSpacing[0]]
            inside = Outline(pixels, closed=False).contains_points(np.c_[x.ravel(), y.ravel()]).reshape(SHAPE[1:])
            found[slices[named.ReferencedSOPInstanceUID]][inside] = value
    assert np.array_equal(found, shapes())


def test_the_file_says_what_the_standard_asks_for(axial, tmp_path):
    ds = written(axial, tmp_path / "rs.dcm")
    header = pydicom.dcmread(axial.source.files[0])
    assert (ds.Modality, ds.SOPClassUID.name) == ("RTSTRUCT", "RT Structure Set Storage")
    assert (ds.PatientID, ds.StudyInstanceUID) == (header.PatientID, header.StudyInstanceUID)
    assert ds.SeriesInstanceUID != header.SeriesInstanceUID
    (frame,) = ds.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == ds.FrameOfReferenceUID == axial.geometry.frame_of_reference_uid
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == header.SeriesInstanceUID
    images = {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence}
    assert images == {pydicom.dcmread(file).SOPInstanceUID for file in axial.source.files}
    assert [roi.ROIName for roi in ds.StructureSetROISequence] == list(BONES.names())
    assert [roi.ReferencedROINumber for roi in ds.ROIContourSequence] == [1, 2, 3]
    kinds = [item.RTROIInterpretedType for item in ds.RTROIObservationsSequence]
    assert kinds == ["ORGAN", "ORGAN", "GTV"]
    assert ds.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence[0].CodeValue == "91609006"
    assert all(len(set(roi.ROIDisplayColor)) > 1 for roi in ds.ROIContourSequence)
    for contour in contours(ds):
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        assert contour.NumberOfContourPoints * 3 == len(contour.ContourData)
        assert max(len(str(value)) for value in contour.ContourData) <= 16


def test_regions_are_structures_that_overlap(axial, tmp_path):
    regions = Labels((Label("whole", (1, 2)), Label("core", (2,))))
    array = np.zeros(SHAPE, np.uint8)
    array[2:5, 4:20, 5:20] = 1
    array[3, 8:14, 8:12] = 2
    written(axial, tmp_path / "rs.dcm", array, regions)
    back = read_rtstruct(tmp_path / "rs.dcm", axial, regions)
    assert np.array_equal(back.array, array) and back.warnings == ()
    whole = read_rtstruct(tmp_path / "rs.dcm", axial, Labels((Label("WHOLE", (7,)),)))
    assert np.array_equal(whole.array == 7, array > 0)


def test_structures_are_chosen_by_name(axial, tmp_path):
    written(axial, tmp_path / "rs.dcm")
    chosen = Labels((Label("Zähne", (5,)), Label("tongue", (6,))))
    back = read_rtstruct(tmp_path / "rs.dcm", axial, chosen)
    assert np.array_equal(back.array == 5, shapes() == 2) and not (back.array == 6).any()
    assert back.warnings == ('holds no "tongue", taken as absent; it holds "mandible", "zähne", "GTV_1"',)
    with pytest.raises(ImageError, match='no structure of the labels "tongue"; it holds "mandible", "zähne"'):
        read_rtstruct(tmp_path / "rs.dcm", axial, Labels((Label("tongue", (6,)),)))


def test_inner_contours_without_keyholes_are_holes(axial, tmp_path):
    def hole(ds):
        (item,) = contours(ds)
        inner = pydicom.dataset.Dataset()
        inner.update(item)
        middle = np.mean(np.array(item.ContourData, float).reshape(-1, 3), axis=0)
        inner.ContourData = [
            round(v, 4) for v in (middle + (np.array(item.ContourData, float).reshape(-1, 3) - middle) / 2).ravel()
        ]
        ds.ROIContourSequence[0].ContourSequence.append(inner)

    array = np.zeros(SHAPE, np.uint8)
    array[3, 5:25, 6:22] = 1
    labels = Labels((Label("ring", (1,)),))
    written(axial, tmp_path / "rs.dcm", array, labels)
    back = read_rtstruct(edited(tmp_path / "rs.dcm", hole), axial, labels)
    assert back.array.sum() == 20 * 16 - 10 * 8
    assert not back.array[3, 11:19, 11:17].any()


@pytest.mark.parametrize("change", ["frame", "absent", "elsewhere", "between", "beyond", "twice", "damaged"])
def test_contours_that_are_not_the_images(axial, tmp_path, change):
    path = tmp_path / "rs.dcm"
    written(axial, path)
    dz = axial.geometry.spacing_mm[0]

    def move(contour, mm):
        points = np.array(contour.ContourData, float).reshape(-1, 3) + [0, 0, mm]
        contour.ContourData = [f"{v:.4f}" for v in points.ravel()]

    def alter(ds):
        for roi in ds.StructureSetROISequence if change in ("frame", "between") else []:
            roi.ReferencedFrameOfReferenceUID = "1.2.3"
        items = contours(ds)
        for contour in items:
            if change in ("beyond", "between", "frame"):
                del contour.ContourImageSequence
            if change in ("beyond", "elsewhere"):
                move(contour, 4 * dz)
            if change == "damaged":
                contour.ContourData = contour.ContourData[:-1]
        if change == "absent":
            items[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
        if change == "twice":
            ds.ROIContourSequence[0].ContourSequence.append(items[0])

    edited(path, alter)
    if change == "twice":
        back = read_rtstruct(path, axial, BONES)
        assert np.array_equal(back.array, shapes())
        assert back.warnings == ('"mandible": 1 contours are there twice and count once',)
        return
    expected = {
        "frame": (GeometryError, "another frame of reference"),
        "between": (GeometryError, "another frame of reference"),
        "absent": (DicomError, 'contours of "mandible" lie on images that are not in the series'),
        "elsewhere": (DicomError, "mm from the image that it names|beyond the slices"),
        "beyond": (DicomError, "beyond the slices"),
        "damaged": (DicomError, "no list of points"),
    }[change]
    with pytest.raises(expected[0], match=expected[1]):
        read_rtstruct(path, axial, BONES)


def test_a_wrong_frame_of_reference_counts_for_less_than_the_images_named(axial, tmp_path):
    def alter(ds):
        for roi in ds.StructureSetROISequence:
            roi.ReferencedFrameOfReferenceUID = "1.2.3"

    written(axial, tmp_path / "rs.dcm")
    back = read_rtstruct(edited(tmp_path / "rs.dcm", alter), axial, BONES)
    assert np.array_equal(back.array, shapes())
    assert "states another frame of reference" in back.warnings[0]


@pytest.mark.parametrize(("mm", "warned"), [(0.005, False), (1.2, True)])
def test_contours_beside_a_plane_count_for_the_nearest(axial, tmp_path, mm, warned):
    def alter(ds):
        for contour in contours(ds):
            points = np.array(contour.ContourData, float).reshape(-1, 3) + [0, 0, mm]
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]

    array = shapes()
    array[-1] = 0
    written(axial, tmp_path / "rs.dcm", array)
    back = read_rtstruct(edited(tmp_path / "rs.dcm", alter), axial, BONES)
    assert np.array_equal(back.array, array)
    assert bool(back.warnings) == warned
    assert all("lie up to 1.2 mm off the image planes" in note for note in back.warnings)


def test_contours_denser_than_the_slices_do_not_cancel_each_other(axial, tmp_path):
    def alter(ds):
        roi = ds.ROIContourSequence[0]
        for contour in list(roi.ContourSequence):
            for mm in (-0.8, 0.8):
                between = pydicom.dataset.Dataset()
                points = np.array(contour.ContourData, float).reshape(-1, 3) + [0, 0, mm]
                between.ContourGeometricType, between.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
                between.ContourData = [f"{v:.4f}" for v in points.ravel()]
                roi.ContourSequence.append(between)

    array = (shapes() == 1).astype(np.uint8)
    written(axial, tmp_path / "rs.dcm", array, Labels((Label("a", (1,)),)))
    back = read_rtstruct(edited(tmp_path / "rs.dcm", alter), axial)
    assert np.array_equal(back.array, array)
    assert "lie between planes that have contours of their own" in back.warnings[0]


def test_other_planes_and_other_types_are_refused(axial, tmp_path):
    path = tmp_path / "rs.dcm"
    written(axial, path)
    write_dicom(tmp_path / "sagittal", np.zeros((26, 20, 30)), grid((26, 20, 30), axes=SAGITTAL))
    with pytest.raises(DicomError, match=r"not in the series|not parallel"):
        read_rtstruct(path, read_image([tmp_path / "sagittal"]), BONES)
    no_source = replace(read_image([tmp_path / "sagittal"]), source=None)
    with pytest.raises(DicomError, match="not parallel to the slices"):
        read_rtstruct(path, no_source, BONES)
    with pytest.raises(DicomError, match="no RT Structure Set"):
        read_rtstruct(axial.source.files[0], axial, BONES)
    (tmp_path / "text.dcm").write_text("nothing")
    with pytest.raises(DicomError):
        read_rtstruct(tmp_path / "text.dcm", axial, BONES)

    def points(ds):
        for contour in contours(ds):
            contour.ContourGeometricType = "POINT"

    with pytest.raises(DicomError, match="points or open lines only"):
        read_rtstruct(edited(path, points), axial, BONES)


def test_an_image_that_is_not_dicom_is_placed_by_coordinates(axial, tmp_path):
    written(axial, tmp_path / "rs.dcm")
    converted = replace(axial, source=None, geometry=replace(axial.geometry, frame_of_reference_uid=None))
    back = read_rtstruct(tmp_path / "rs.dcm", converted, BONES)
    assert np.array_equal(back.array, shapes())
    assert back.warnings == ("the image is not from DICOM; contours are placed by their coordinates alone",)


def test_writing_needs_the_images(axial, tmp_path):
    labels = LabelMap(shapes(), axial.geometry, BONES)
    with pytest.raises(DicomError, match="needs DICOM images"):
        write_rtstruct(labels, replace(axial, source=None), tmp_path / "a.dcm")
    with pytest.raises(GeometryError, match="grid of the image"):
        write_rtstruct(replace(labels, geometry=grid(SHAPE, origin_mm=(0.0, 0.0, 0.0))), axial, tmp_path / "a.dcm")
    finer = grid(SHAPE, spacing_mm=(1.7, 0.7, 0.4))
    with pytest.raises(DicomError, match="mm from the nearest source image"):
        write_rtstruct(replace(labels, geometry=finer), replace(axial, geometry=finer), tmp_path / "a.dcm")
    with pytest.raises(DicomError, match="not parallel to the source images"):
        tilted = grid(SHAPE, axes=OBLIQUE)
        write_rtstruct(replace(labels, geometry=tilted), replace(axial, geometry=tilted), tmp_path / "a.dcm")
    with pytest.raises(DicomError, match="no frame of reference"):
        bare = replace(axial.geometry, frame_of_reference_uid=None)
        write_rtstruct(replace(labels, geometry=bare), replace(axial, geometry=bare), tmp_path / "a.dcm")
    assert not (tmp_path / "a.dcm").exists()


def test_a_file_that_is_cut_off_is_not_taken_for_a_whole_one(axial, tmp_path):
    path = tmp_path / "rs.dcm"
    written(axial, path)
    check_rtstruct(path, BONES)
    with pytest.raises(DicomError, match="other structures"):
        check_rtstruct(path, Labels((Label("mandible", (1,)),)))
    whole = path.read_bytes()
    for part in (0.05, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(DicomError):
            check_rtstruct(path, BONES)


def test_contours_that_cross_are_told(axial, tmp_path):
    def alter(ds):
        roi = ds.ROIContourSequence[0]
        (item,) = roi.ContourSequence
        other = pydicom.dataset.Dataset()
        other.update(item)
        points = np.array(item.ContourData, float).reshape(-1, 3) + [4 * 0.4, 0, 0]
        other.ContourData = [f"{v:.4f}" for v in points.ravel()]
        roi.ContourSequence.append(other)

    array = np.zeros(SHAPE, np.uint8)
    array[3, 5:25, 6:16] = 1
    labels = Labels((Label("a", (1,)),))
    written(axial, tmp_path / "rs.dcm", array, labels)
    back = read_rtstruct(edited(tmp_path / "rs.dcm", alter), axial, labels)
    assert back.array.sum() == 2 * 4 * 20
    assert back.warnings == ('"a": contours cross each other on 1 slices; what two of them share is outside',)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_odd_values_of_the_source_do_not_stop_the_writing(tmp_path):
    odd = {"StudyDate": "2020-1-2", "PatientSex": "female", "StudyInstanceUID": "1.02.3", "PatientName": "Ä^Ö"}
    write_dicom(tmp_path / "ct", np.zeros(SHAPE), grid(SHAPE), SpecificCharacterSet="ISO_IR 100", **odd)
    image = read_image([tmp_path / "ct"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_rtstruct(LabelMap(shapes(), image.geometry, BONES), image, tmp_path / "rs.dcm")
        back = read_rtstruct(tmp_path / "rs.dcm", image, BONES)
    assert np.array_equal(back.array, shapes())
    assert str(pydicom.dcmread(tmp_path / "rs.dcm").PatientName) == "Ä^Ö"


def test_damaged_files_are_errors_never_crashes(axial, tmp_path):
    """Bytes changed anywhere: read as something, or refused with an error of medseg."""
    path = tmp_path / "rs.dcm"
    written(axial, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(150):
        broken = bytearray(whole)
        for place in rng.integers(200, len(whole), 4):
            broken[place] = rng.integers(256)
        path.write_bytes(broken if rng.random() < 0.7 else broken[: rng.integers(200, len(broken))])
        try:
            read_rtstruct(path, axial)
        except MedsegError:
            refused += 1
    assert refused > 20


def test_contours_on_a_tilted_gantry(tmp_path):
    """The reader straightens the stack; contours drawn on that still lie on the source planes, in mm."""
    write_dicom(tmp_path / "ct", np.zeros(SHAPE), grid(SHAPE))
    for file in (tmp_path / "ct").iterdir():
        ds = pydicom.dcmread(file)
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y + 0.25 * (z - 101.25), z]
        ds.save_as(file)
    image = read_image([tmp_path / "ct"])
    assert image.geometry.shape[1] > SHAPE[1] and "tilt" in image.warnings[0]
    array = np.zeros(image.geometry.shape, np.uint8)
    array[1:5, 8:20, 5:15] = 1
    ds = written(image, tmp_path / "rs.dcm", array, Labels((Label("a", (1,)),)))
    assert np.array_equal(read_rtstruct(tmp_path / "rs.dcm", image).array, array)
    places = {h.SOPInstanceUID: h.ImagePositionPatient for h in map(pydicom.dcmread, image.source.files)}
    for contour in contours(ds):
        named = places[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert np.allclose(points[:, 2], float(named[2]), atol=1e-3)
        dx, dy = image.geometry.spacing_mm[2], image.geometry.spacing_mm[1]
        first, last = (image.geometry.affine() @ [0, *corner, 1] for corner in ((8, 5), (19, 14)))
        assert np.allclose(points.min(axis=0)[:2], first[:2] - 0.49 * np.array([dx, dy]), atol=0.02)
        assert np.allclose(points.max(axis=0)[:2], last[:2] + 0.49 * np.array([dx, dy]), atol=0.02)


def test_contours_on_a_multi_frame_image_name_their_frame(tmp_path):
    def group(keyword, **values):
        outer, inner = pydicom.dataset.Dataset(), pydicom.dataset.Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        setattr(outer, keyword, [inner])
        return outer

    write_dicom(tmp_path / "ct", np.arange(np.prod(SHAPE)).reshape(SHAPE) % 900, grid(SHAPE))
    single = [pydicom.dcmread(file) for file in sorted((tmp_path / "ct").iterdir())]
    ds = pydicom.dcmread(single[0].filename)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    ds.NumberOfFrames = len(single)
    shared = group("PixelMeasuresSequence", PixelSpacing=ds.PixelSpacing, SliceThickness=2.5)
    shared.update(group("PlaneOrientationSequence", ImageOrientationPatient=ds.ImageOrientationPatient))
    scale = {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"}
    shared.update(group("PixelValueTransformationSequence", **scale))
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = [
        group("PlanePositionSequence", ImagePositionPatient=one.ImagePositionPatient) for one in single
    ]
    ds.PixelData = b"".join(one.PixelData for one in single)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(ds, keyword)
    del ds.RescaleIntercept
    ds.save_as(tmp_path / "frames.dcm")
    image = read_image([tmp_path / "frames.dcm"])
    assert image.geometry.shape == SHAPE
    made = written(image, tmp_path / "out" / "rs.dcm")
    assert np.array_equal(read_rtstruct(tmp_path / "out" / "rs.dcm", image, BONES).array, shapes())
    for contour in contours(made):
        (named,) = contour.ContourImageSequence
        position = single[named.ReferencedFrameNumber - 1].ImagePositionPatient
        assert np.allclose(np.array(contour.ContourData, float)[2::3], float(position[2]), atol=1e-3)

    def without_frames(ds):
        for contour in contours(ds):
            del contour.ContourImageSequence[0].ReferencedFrameNumber

    unnumbered = edited(tmp_path / "out" / "rs.dcm", without_frames)
    assert np.array_equal(read_rtstruct(unnumbered, image, BONES).array, shapes())

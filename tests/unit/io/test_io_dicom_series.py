from dataclasses import replace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import generate_uid
from scipy.ndimage import map_coordinates

from medseg.errors import DicomError
from medseg.io.dicom_series import Series, find_series, group_files, read_series, series_layout
from medseg.io.images import read_image
from tests.dicom_slices import AXIAL, FRAME, OBLIQUE, ORIGIN, UID, stored, write_series, write_slice


@pytest.mark.parametrize("axes", [AXIAL, OBLIQUE, -AXIAL], ids=["axial", "oblique", "turned"])
def test_shuffled_slices_come_in_order_with_the_known_geometry(tmp_path, axes):
    folder, affine = write_series(tmp_path / "Serie ü 1", axes=axes)
    found, refused = find_series(folder)
    assert not refused
    (series,) = found
    assert (series.uid, series.modality, series.description) == (UID, "CT", "phantom")
    image = read_series(series)
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array[0], stored() - 1024)
    np.testing.assert_allclose(image.geometry.affine(), affine, atol=1e-5)
    assert image.geometry.frame_of_reference_uid == FRAME
    assert (image.source.format, image.source.series_uid, image.source.files) == ("dicom", UID, series.files)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in series.files])
    theirs = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(theirs), image.array[0])
    np.testing.assert_allclose(
        theirs.TransformIndexToPhysicalPoint((10, 3, 5)), (image.geometry.affine() @ [5, 3, 10, 1])[:3], atol=1e-5
    )


def test_slices_stored_from_top_to_bottom_are_turned(tmp_path):
    heights = np.arange(6)[::-1] * 2.5
    folder, affine = write_series(tmp_path, heights=heights)
    image = read_image([folder], channels=("CT",))
    assert np.array_equal(image.array[0], stored()[::-1] - 1024)
    np.testing.assert_allclose(image.geometry.affine(), affine, atol=1e-5)
    assert image.channels == ("CT",)


def test_a_series_in_any_file_order_reads_the_same(tmp_path):
    (series,), _ = find_series(write_series(tmp_path)[0])
    backwards = read_series(replace(series, files=series.files[::-1]))
    assert np.array_equal(backwards.array, read_series(series).array)


def test_a_gap_names_the_file_after_it(tmp_path):
    folder, _ = write_series(tmp_path, heights=[0, 2.5, 5, 10, 12.5, 15])
    (series,), _ = find_series(folder)
    with pytest.raises(DicomError, match=r"lies 5 mm after .*, other slices 2\.5 mm apart; about 1 missing") as caught:
        read_series(series)
    assert caught.value.where == str(series.files[3])


def test_uneven_slices_are_refused_rounding_is_not(tmp_path):
    folder, _ = write_series(tmp_path / "uneven", heights=[0, 2.5, 5, 7.55, 10, 12.5])
    with pytest.raises(DicomError, match=r"other slices 2\.5 mm apart"):
        read_image([folder])
    thirds = np.round(np.arange(6) / 3, 2)
    image = read_image([write_series(tmp_path / "rounded", heights=thirds)[0]])
    assert image.geometry.spacing_mm[0] == pytest.approx(1 / 3, abs=2e-3)


def test_doubled_slices_are_refused(tmp_path):
    folder, _ = write_series(tmp_path, heights=[0, 2.5, 2.5, 5, 7.5, 10])
    with pytest.raises(DicomError, match="lies at the same position as"):
        read_image([folder])


def linear(x, y, z):
    return 100 + 3 * x + 5 * y + 7 * z


@pytest.mark.parametrize("step", [(0, 0.8, 2.5), (0.3, -0.5, 2.5)], ids=["rows", "both"])
def test_gantry_tilt_is_sheared_back(tmp_path, step):
    """A linear field keeps its value at every point in the patient that a slice has covered."""
    n, rows, columns = 6, 9, 11
    for i in range(n):
        x, y, z = ORIGIN + np.array(step) * i
        plane = linear(x + 0.4 * np.arange(columns)[None], y + 0.7 * np.arange(rows)[:, None], z)
        write_slice(tmp_path / f"{i}.dcm", np.rint(plane * 8).astype(np.int16), ORIGIN + np.array(step) * i,
                    RescaleIntercept=0, RescaleSlope=0.125)  # fmt: skip
    image = read_image([tmp_path])
    assert any("gantry tilt" in warning for warning in image.warnings)
    assert image.source.format == "dicom"
    assert image.geometry.spacing_mm == pytest.approx((2.5, 0.7, 0.4))
    for i in range(n):
        x, y, z = ORIGIN + np.array(step) * i + [0.4 * 5.3, 0.7 * 4.2, 0]
        index = np.linalg.solve(image.geometry.affine(), [x, y, z, 1])[:3]
        (here,) = map_coordinates(image.array[0], index[:, None], order=1)
        assert here == pytest.approx(linear(x, y, z), abs=0.1)


def test_uneven_shear_is_refused(tmp_path):
    for i, plane in enumerate(stored()):
        write_slice(tmp_path / f"{i}.dcm", plane, ORIGIN + [0, 0.1 * i**2, 2.5 * i])
    with pytest.raises(DicomError, match=r"is displaced by .* mm within its plane \(gantry tilt"):
        read_image([tmp_path])


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"])
def test_missing_geometry_names_file_and_tag(tmp_path, keyword):
    with pytest.raises(DicomError, match=rf"Bild.*\.dcm: {keyword} \([0-9A-F]{{4}},[0-9A-F]{{4}}\) is missing"):
        read_image([write_series(tmp_path, **{keyword: None})[0]])


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("PixelSpacing", [0.7, 0.0], "PixelSpacing.* is 0.7 x 0.0"),
        ("PixelSpacing", [0.7], "is not 2 numbers"),
        ("ImageOrientationPatient", [1, 0, 0, 0.5, 1, 0], "is no right angle"),
        ("RescaleSlope", 0, "RescaleSlope.* is 0"),
    ],
)
def test_impossible_geometry_names_the_tag(tmp_path, keyword, value, words):
    with pytest.raises(DicomError, match=words):
        read_image([write_series(tmp_path, **{keyword: value})[0]])


def test_slices_that_differ_are_refused(tmp_path):
    position = ORIGIN + [0, 0, 2.5]
    for name, change, words in [
        ("spacing", {"PixelSpacing": [0.7, 0.5]}, "PixelSpacing"),
        ("rescale", {"RescaleSlope": None, "RescaleIntercept": None}, "lacks RescaleSlope"),
        ("photometric", {"PhotometricInterpretation": "MONOCHROME1"}, "PhotometricInterpretation"),
    ]:
        write_slice(tmp_path / name / "0.dcm", stored()[0], ORIGIN)
        write_slice(tmp_path / name / "1.dcm", stored()[1], position, **change)
        with pytest.raises(DicomError, match=rf"1\.dcm: .*{words}"):
            read_image([tmp_path / name])
    files = (
        write_slice(tmp_path / "m" / "0.dcm", stored()[0], ORIGIN),
        write_slice(tmp_path / "m" / "1.dcm", stored()[1][:5], position),
    )
    with pytest.raises(DicomError, match=r"1\.dcm: Rows \(0028,0010\) differs"):
        read_series(Series(UID, "CT", "", files))
    assert len(find_series(tmp_path / "m")[0]) == 2


def test_rescale_is_applied_slice_by_slice(tmp_path):
    raw = stored(3, 0, 200)
    for i, slope in enumerate([1, 2, 3]):
        write_slice(tmp_path / "int" / f"{i}.dcm", raw[i], ORIGIN + [0, 0, i], RescaleSlope=slope, RescaleIntercept=-i)
        write_slice(tmp_path / "float" / f"{i}.dcm", raw[i], ORIGIN + [0, 0, i], RescaleSlope=slope / 4)
    image = read_image([tmp_path / "int"])
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array[0], np.stack([raw[i] * (i + 1) - i for i in range(3)]))
    image = read_image([tmp_path / "float"])
    assert image.array.dtype == np.float32
    assert np.array_equal(image.array[0], np.stack([raw[i] * np.float32((i + 1) / 4) - 1024 for i in range(3)]))


def test_values_beyond_int16_become_float_and_stay_exact(tmp_path):
    raw = stored(4, 0, 10, np.uint16)
    raw[2, 0, 0] = 65535
    image = read_image([write_series(tmp_path, raw, RescaleIntercept=0)[0]])
    assert image.array.dtype == np.float32
    assert np.array_equal(image.array[0], raw)


@pytest.mark.parametrize("change", [{}, {"RescaleSlope": 0.5}, {"PhotometricInterpretation": "MONOCHROME1"}])
@pytest.mark.parametrize("modality", ["MR", "CT"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_compressed_slices_read_as_plain_ones(tmp_path, modality, dtype, change):
    raw = stored(3, 0, 4000, np.uint16) if dtype == np.uint16 else stored(3, -2000, 2000)
    bits = 12 if dtype == np.uint16 else 16
    options = {"Modality": modality, "BitsStored": bits, "HighBit": bits - 1, **change}
    plain = read_image([write_series(tmp_path / "plain", raw, **options)[0]])
    packed = read_image([write_series(tmp_path / "packed", raw, compress=True, **options)[0]])
    np.testing.assert_allclose(packed.array, plain.array)
    slope = change.get("RescaleSlope", 1)
    inverted = modality == "MR" and "PhotometricInterpretation" in change
    values = ((4095 if dtype == np.uint16 else -1) - raw.astype(int) if inverted else raw.astype(int)) * slope - 1024
    np.testing.assert_allclose(plain.array[0], values)
    assert any("are inverted" in w for w in plain.warnings) == inverted


def test_single_slices_take_their_thickness(tmp_path):
    write_slice(tmp_path / "a" / "1.dcm", stored()[0], ORIGIN, SliceThickness=3)
    write_slice(tmp_path / "b" / "1.dcm", stored()[0], ORIGIN, SliceThickness=3, SpacingBetweenSlices=4)
    write_slice(tmp_path / "c" / "1", stored()[0], ORIGIN)
    assert read_image([tmp_path / "a" / "1.dcm"]).geometry.spacing_mm == (3.0, 0.7, 0.4)
    assert read_image([tmp_path / "b"]).geometry.spacing_mm[0] == 4.0
    image = read_image([tmp_path / "c" / "1"])
    assert image.geometry.spacing_mm[0] == 1.0
    assert "1 mm is assumed" in image.warnings[0]


def test_a_file_stands_for_its_series_in_the_folder(tmp_path):
    write_series(tmp_path)
    write_slice(tmp_path / "other.dcm", stored()[0], ORIGIN, SeriesInstanceUID=generate_uid(), SliceThickness=3)
    image = read_image([tmp_path / "Bild ü 3.dcm"])
    assert image.array.shape == (1, 6, 9, 11)
    assert "5 other files of its series" in image.warnings[0]
    assert read_image([tmp_path / "other.dcm"]).array.shape[1] == 1


def test_series_are_told_apart_and_listed_without_patient_data(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", axes=OBLIQUE)
    write_series(tmp_path / "c", FrameOfReferenceUID=generate_uid())
    write_series(tmp_path / "d", SeriesInstanceUID=generate_uid(), Modality="MR")
    found, refused = find_series(tmp_path)
    assert [len(series.files) for series in found] == [6] * 4
    assert not refused
    for series in found:
        assert len({file.parent for file in series.files}) == 1
    with pytest.raises(DicomError, match=r"holds 4 series: .*CT 9 x 11, 6 files") as caught:
        read_image([tmp_path])
    assert "Geheim" not in str(caught.value)
    assert "Q4711Z" not in str(caught.value)


def test_slightly_different_orientations_stay_together_until_read(tmp_path):
    for i, plane in enumerate(stored()):
        write_slice(tmp_path / f"{i}.dcm", plane, ORIGIN + [0, 0, i], AXIAL + [0, 0.0049 if i % 2 else 0.0051, 0])
    (series,), _ = find_series(tmp_path)
    assert len(series.files) == 6


def test_other_objects_are_refused_with_a_reason(tmp_path):
    write_series(tmp_path)
    write_slice(tmp_path / "seg.dcm", stored()[0], ORIGIN, Modality="SEG")
    write_slice(tmp_path / "sr.dcm", stored()[0], ORIGIN, Modality="SR", Rows=None, Columns=None, PixelData=None)
    write_slice(tmp_path / "raw.dcm", stored()[0], ORIGIN, Rows=None, Columns=None, PixelData=None)
    write_slice(tmp_path / "cine.dcm", stored()[0], ORIGIN, NumberOfFrames=3)
    whole = (tmp_path / "seg.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:300])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "._hidden.dcm").write_bytes(b"x")
    found, refused = find_series(tmp_path)
    assert [len(series.files) for series in found] == [6]
    reasons = {path.name: reason for path, reason in refused.items()}
    assert set(reasons) == {"seg.dcm", "sr.dcm", "raw.dcm", "cine.dcm", "cut.dcm", "notes.txt", "empty"}
    assert "(SEG)" in reasons["seg.dcm"]
    assert "(SR)" in reasons["sr.dcm"]
    assert "no pixels" in reasons["raw.dcm"]
    assert "3 frames" in reasons["cine.dcm"]
    assert reasons["notes.txt"] == "is not a DICOM file"
    assert reasons["empty"] == "is empty"
    assert "7 other files were left out" in read_image([tmp_path]).warnings[0]


def test_files_without_preamble_are_read(tmp_path):
    folder, _ = write_series(tmp_path)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        pydicom.dcmwrite(path, pydicom.Dataset(data), implicit_vr=True, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read_image([folder]).array[0], stored() - 1024)


@pytest.mark.parametrize("compress", [False, True])
def test_truncated_pixels_name_the_file(tmp_path, compress):
    folder, _ = write_series(tmp_path, compress=compress)
    broken = folder / "Bild ü 2.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(DicomError, match=r"Bild ü 2\.dcm") as caught:
        read_image([folder])
    assert caught.value.hint


def test_a_slice_without_its_pixels_is_not_left_out_in_silence(tmp_path):
    """It lies at the end of the stack, where no gap would tell."""
    write_series(tmp_path)
    write_slice(tmp_path / "last.dcm", stored()[0], ORIGIN + [0, 0, 15], PixelData=None)
    with pytest.raises(DicomError, match=r"last\.dcm: holds no pixels"):
        read_image([tmp_path])


def test_a_layout_tells_what_cannot_be_read_before_it_is_read(tmp_path):
    folder, affine = write_series(tmp_path)
    (series,), _ = find_series(folder)
    np.testing.assert_allclose(series_layout(series).geometry.affine(), affine, atol=1e-5)
    broken = folder / "Bild ü 2.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    (series,), _ = find_series(folder)
    with pytest.raises(DicomError, match=r"2\.dcm: pixel data are truncated"):
        series_layout(series)


def test_colours_are_channels_or_become_grey(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (9, 11, 3)).astype(np.uint8)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleSlope": None, "RescaleIntercept": None}
    path = write_slice(tmp_path / "c.dcm", rgb, ORIGIN, Modality="US", SliceThickness=1, **colour, **bits)
    image = read_image([path])
    assert np.array_equal(np.moveaxis(image.array[:, 0], 0, -1), rgb)
    grey = read_image([path], channels=("US",))
    assert grey.array.shape == (1, 1, 9, 11)
    assert "luminance" in grey.warnings[-1]


def test_a_modality_table_is_refused(tmp_path):
    with pytest.raises(DicomError, match=r"ModalityLUTSequence \(0028,3000\)"):
        read_image([write_series(tmp_path, ModalityLUTSequence=pydicom.Sequence([pydicom.Dataset()]))[0]])


def test_group_files_takes_files_from_anywhere(tmp_path):
    folder, _ = write_series(tmp_path)
    (series,), _ = group_files(sorted(folder.iterdir())[:3])
    assert len(series.files) == 3


def test_damaged_ultrasound_values_name_the_file(tmp_path):
    lost = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    path = write_slice(tmp_path / "us.dcm", stored()[0], ORIGIN, Modality="US", **lost)
    raw = path.read_bytes()
    path.write_bytes(
        raw.replace(
            b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0", b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.9.9\0"
        )
    )
    with pytest.raises(DicomError, match=r"us\.dcm: (is damaged|.*transfer syntax)"):
        read_image([path])

import shutil

import numpy as np
import pytest
from pydicom.uid import generate_uid

from medseg.errors import DicomError
from medseg.io.dicom_headers import read_header
from medseg.io.dicom_series import find_series, group_headers, read_series
from medseg.io.images import read_image
from tests.dicom_slices import AXIAL, ORIGIN, stored, write_series, write_slice

SAGITTAL = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])


def write_volumes(folder, keyword, values, *, slices=4, **changes):
    """One series whose positions repeat: a volume per value, its voxels the number of the volume."""
    for number, value in enumerate(values):
        for k in range(slices):
            plane = np.full((9, 11), 10 * number + k, np.int16)
            tags = {keyword: value, "Modality": "MR", "RescaleIntercept": 0, **changes}
            write_slice(folder / f"{number}-{k}.dcm", plane, ORIGIN + [0, 0, 2.0 * k], **tags)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoTime", ["4.6", "9.2"]),
        ("EchoNumbers", [1, 2, 3]),
        ("TemporalPositionIdentifier", [1, 2, 10]),
        ("DiffusionBValue", [0.0, 50.0, 1000.0]),
        ("AcquisitionNumber", [3, 4]),
        ("TriggerTime", ["0", "47.5"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]),
        ("ContentTime", ["101010", "101020"]),
    ],
)
def test_repeated_positions_are_split_by_what_tells_them_apart(tmp_path, keyword, values):
    write_volumes(tmp_path, keyword, values)
    found, refused = find_series(tmp_path)
    assert not refused
    assert [len(series.files) for series in found] == [4] * len(values)
    for number, series in enumerate(found):
        image = read_series(series)
        assert image.array[0, :, 0, 0].tolist() == [10 * number + k for k in range(4)]
        assert keyword in series.part
        assert series.part in series.summary
    with pytest.raises(DicomError, match=f"holds {len(values)} series: .*{keyword}"):
        read_image([tmp_path])


def test_gradients_beside_an_image_without_one(tmp_path):
    write_volumes(tmp_path / "b0", "DiffusionBValue", [0.0])
    for number, direction in enumerate(np.eye(3)):
        tags = {"DiffusionGradientOrientation": list(direction)}
        write_volumes(tmp_path / str(number), "DiffusionBValue", [1000.0], **tags)
    found, _ = find_series(tmp_path)
    assert [len(series.files) for series in found] == [4] * 4
    assert all(len({file.parent for file in series.files}) == 1 for series in found)


def test_two_attributes_together_tell_four_volumes_apart(tmp_path):
    for echo in ("4.6", "9.2"):
        for kind in ("M", "P"):
            write_volumes(tmp_path / (echo + kind), "EchoTime", [echo], ImageType=["ORIGINAL", "PRIMARY", kind])
    found, _ = find_series(tmp_path)
    assert len(found) == 4
    assert {len(series.files) for series in found} == {4}
    assert all(len({file.parent for file in series.files}) == 1 for series in found)


def test_a_value_of_its_own_in_every_slice_splits_nothing(tmp_path):
    for number in range(2):
        for k in range(4):
            tags = {"ContentTime": f"{number}{k}", "AcquisitionNumber": 1 + 4 * number + k}
            write_slice(tmp_path / f"{number}{k}", stored()[k] + number, ORIGIN + [0, 0, k], **tags)
    (series,), _ = find_series(tmp_path)
    with pytest.raises(DicomError, match=r"at the same position as .* other pixels"):
        read_series(series)


def test_slices_all_at_one_place_are_no_volume(tmp_path):
    for k in range(4):
        write_slice(tmp_path / str(k), stored()[k], ORIGIN, AcquisitionNumber=k, SliceThickness=2)
    with pytest.raises(DicomError, match="at the same position"):
        read_image([tmp_path])


@pytest.mark.parametrize("same_uid", [True, False])
def test_identical_copies_are_left_out(tmp_path, same_uid):
    folder, affine = write_series(tmp_path / "a")
    for name in (2, 4):
        source = folder / f"Bild ü {name}.dcm"
        if same_uid:
            shutil.copyfile(source, folder / f"copy {name}.dcm")
        else:
            header = read_header(source)
            plane = np.frombuffer(source.read_bytes()[header.pixels.offset :][:198], np.int16).reshape(9, 11)
            write_slice(folder / f"copy {name}.dcm", plane, header.planes[0].position)
    image = read_image([folder])
    assert np.array_equal(image.array[0], stored() - 1024)
    np.testing.assert_allclose(image.geometry.affine(), affine, atol=1e-5)
    assert len(image.source.files) == 6
    assert any("2 identical duplicates" in warning for warning in image.warnings)


def test_copies_in_every_volume_of_a_series_change_nothing(tmp_path):
    write_volumes(tmp_path / "a", "EchoTime", ["4.6", "9.2"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found, _ = find_series(tmp_path)
    assert [len(series.files) for series in found] == [8, 8]
    assert [read_series(series).array.shape for series in found] == [(1, 4, 9, 11)] * 2


def test_a_localizer_with_the_uid_of_the_stack_is_set_aside(tmp_path):
    folder, _ = write_series(tmp_path / "a", stored(9))
    write_series(tmp_path / "a" / "scouts", stored(3), axes=SAGITTAL)
    image = read_image([folder])
    assert image.array.shape == (1, 9, 9, 11)
    assert any("localizer" in warning for warning in image.warnings)


def test_two_stacks_of_a_like_number_are_two_series(tmp_path):
    write_series(tmp_path / "a", stored(4))
    write_series(tmp_path / "b", stored(4), axes=SAGITTAL)
    with pytest.raises(DicomError, match="holds 2 series"):
        read_image([tmp_path])


def test_projections_and_screen_shots_beside_a_volume(tmp_path):
    write_series(tmp_path / "a")
    lost = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "SeriesInstanceUID": generate_uid()}
    detector = {"PixelSpacing": None, "ImagerPixelSpacing": [0.1, 0.2]}
    panorama = write_slice(tmp_path / "p.dcm", stored()[0], ORIGIN, Modality="PX", **lost, **detector)
    shot = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"}
    write_slice(tmp_path / "s.dcm", stored()[0], ORIGIN, **shot, **lost)
    image = read_image([tmp_path])
    assert image.array.shape == (1, 6, 9, 11)
    assert any("without a position in the patient are left out (PX" in warning for warning in image.warnings)
    assert any("screen shot" in warning for warning in image.warnings)
    flat = read_image([panorama])
    assert flat.geometry.spacing_mm == (1.0, 0.1, 0.2)
    assert any("not corrected for magnification" in warning for warning in flat.warnings)


def test_a_protocol_page_beside_a_volume(tmp_path):
    write_series(tmp_path / "a")
    lost = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "SeriesInstanceUID": generate_uid()}
    write_slice(tmp_path / "page.dcm", stored()[0], ORIGIN, **lost)
    image = read_image([tmp_path])
    assert image.array.shape == (1, 6, 9, 11)
    assert any("without a position" in warning for warning in image.warnings)


def test_detector_spacing_is_no_spacing_of_a_volume(tmp_path):
    write_series(tmp_path, PixelSpacing=None, ImagerPixelSpacing=[0.1, 0.2])
    with pytest.raises(DicomError, match=r"PixelSpacing \(0028,0030\) is missing"):
        read_image([tmp_path])


def test_a_colour_rendering_in_a_grey_series_is_set_aside(tmp_path):
    write_series(tmp_path / "a")
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    write_slice(tmp_path / "b.dcm", np.zeros((9, 11, 3), np.uint8), ORIGIN, AXIAL, **colour, **bits)
    image = read_image([tmp_path])
    assert image.array.shape == (1, 6, 9, 11)
    assert any("rendering" in warning for warning in image.warnings)


def test_slices_in_another_frame_of_reference_are_never_dropped(tmp_path):
    write_series(tmp_path / "a", stored(9))
    write_slice(tmp_path / "b.dcm", stored()[0], ORIGIN + [0, 0, 22.5], FrameOfReferenceUID=generate_uid())
    with pytest.raises(DicomError, match="holds 2 series"):
        read_image([tmp_path])


def test_headers_are_grouped_without_their_files(tmp_path):
    folder, _ = write_series(tmp_path / "a")
    headers = [read_header(path) for path in sorted(folder.iterdir())]
    expected = find_series(folder)[0]
    shutil.rmtree(folder)
    assert group_headers(headers)[0] == expected


@pytest.mark.parametrize("same_uid", [True, False])
def test_folders_that_hold_a_volume_each_are_volumes_of_their_own(tmp_path, same_uid):
    """As after an export of one series with its values rescaled, beside the first."""
    write_series(tmp_path / "a", RescaleIntercept=0)
    if same_uid:
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        path = sorted((tmp_path / "b").iterdir())[3]
        data = bytearray(path.read_bytes())
        data[read_header(path).pixels.offset] ^= 1
        path.write_bytes(data)
    else:
        write_series(tmp_path / "b", stored() + 1, RescaleIntercept=0)
    found, refused = find_series(tmp_path)
    assert not refused and [series.part for series in found] == ["folder 1 of 2", "folder 2 of 2"]
    for series, folder in zip(found, ("a", "b"), strict=True):
        alone = read_image([tmp_path / folder]).array
        assert np.array_equal(read_series(series).array, alone)
        assert {file.parent.name for file in series.files} == {folder}


def test_a_copy_of_a_whole_series_is_left_out(tmp_path):
    write_series(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (series,), _ = find_series(tmp_path)
    assert not series.part and read_series(series).array.shape == (1, 6, 9, 11)


def test_a_stray_slice_of_another_folder_is_named_with_what_to_do(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", stored(2) + 1)
    next((tmp_path / "b").glob("*1.dcm")).unlink()
    with pytest.raises(DicomError, match=r"other pixels\. the files of this series come from 2 folders; give one"):
        read_image([tmp_path])

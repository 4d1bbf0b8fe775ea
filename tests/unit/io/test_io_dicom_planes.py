"""Multi-frame files through their functional groups."""

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, RLELossless, generate_uid

from medseg.errors import DicomError
from medseg.io.dicom_headers import read_header
from medseg.io.dicom_series import find_series, read_series
from medseg.io.images import read_image
from medseg.io.source_planes import match_planes, source_planes
from tests.dicom_slices import AXIAL, FRAME, OBLIQUE, ORIGIN, stored, write_slice

MOVED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")


def group(**sequences):
    """A functional group: a data set of sequences with one item each."""
    made = Dataset()
    for name, tags in sequences.items():
        item = Dataset()
        for keyword, value in tags.items():
            setattr(item, keyword, value)
        setattr(made, name, Sequence([item]))
    return made


def place(k, axes=AXIAL, step=2.5):
    return [round(float(v), 6) for v in ORIGIN + np.cross(axes[0], axes[1]) * step * k]


def frame(k, *, axes=AXIAL, time=1, stack="1", slope=None, echo=None, oriented=False):
    made = {
        "PlanePositionSequence": {"ImagePositionPatient": place(k, axes)},
        "FrameContentSequence": {
            "StackID": stack,
            "InStackPositionNumber": k + 1,
            "TemporalPositionIndex": time,
            "DimensionIndexValues": [int(stack), k + 1, time],
        },
    }
    if slope is not None:
        made["PixelValueTransformationSequence"] = {"RescaleSlope": slope, "RescaleIntercept": 3, "RescaleType": "US"}
    if echo is not None:
        made["MREchoSequence"] = {"EffectiveEchoTime": echo}
    if oriented:
        made["PlaneOrientationSequence"] = {"ImageOrientationPatient": [float(v) for v in axes.ravel()]}
    return group(**made)


def write_multi(path, pixels, frames, *, axes=AXIAL, oriented=True, scaled=True, modality="CT", compress=False, **tags):
    """One multi-frame file; what is not in `frames` is shared."""
    ds = pydicom.dcmread(write_slice(path, pixels[0], ORIGIN, NumberOfFrames=len(pixels)))
    for keyword in MOVED:
        delattr(ds, keyword)
    ds.Modality = modality
    ds.SOPClassUID = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    shared = {"PixelMeasuresSequence": {"PixelSpacing": [0.7, 0.4], "SliceThickness": 2.5}}
    if oriented:
        shared["PlaneOrientationSequence"] = {"ImageOrientationPatient": [float(v) for v in axes.ravel()]}
    if scaled:
        shared["PixelValueTransformationSequence"] = {
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            "RescaleType": "HU",
        }
    ds.SharedFunctionalGroupsSequence = Sequence([group(**shared)])
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.PixelData = pixels.tobytes()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    if compress:
        ds.compress(RLELossless)
    ds.save_as(path)
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("axes", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_frames_in_any_order_make_one_volume(tmp_path, axes, compress):
    order = [3, 0, 5, 1, 4, 2]
    path = write_multi(
        tmp_path / "a.dcm", stored()[order], [frame(k, axes=axes) for k in order], axes=axes, compress=compress
    )
    image = read_image([path])
    assert np.array_equal(image.array[0], stored() - 1024)
    expected = np.eye(4)
    expected[:3] = np.stack([np.cross(axes[0], axes[1]) * 2.5, axes[1] * 0.7, axes[0] * 0.4, ORIGIN], axis=1)
    np.testing.assert_allclose(image.geometry.affine(), expected, atol=1e-5)
    assert image.geometry.frame_of_reference_uid == FRAME
    assert (image.source.format, image.source.files) == ("dicom-enhanced", (path,))
    assert not image.warnings


def test_another_reader_sees_the_same(tmp_path):
    order = [3, 0, 5, 1, 4, 2]
    path = write_multi(tmp_path / "a.dcm", stored()[order], [frame(k, axes=OBLIQUE) for k in order], axes=OBLIQUE)
    image = read_image([path])
    volume = highdicom.imread(path).get_volume()
    here = np.stack(np.meshgrid(*map(np.arange, image.array.shape[1:]), [1], indexing="ij")).reshape(4, -1)
    there = np.linalg.inv(volume.affine) @ image.geometry.affine() @ here
    np.testing.assert_allclose(there, np.rint(there), atol=1e-3)
    i, j, k = np.rint(there[:3]).astype(int)
    assert np.array_equal(volume.array[i, j, k], image.array[0].ravel())


def test_slopes_frame_by_frame(tmp_path):
    raw = stored(4, 0, 300)
    frames = [frame(k, slope=k + 1) for k in range(4)]
    path = write_multi(tmp_path / "a.dcm", raw, frames, scaled=False, modality="MR")
    image = read_image([path])
    assert np.array_equal(image.array[0], np.stack([raw[k] * (k + 1) + 3 for k in range(4)]))


def test_times_and_echoes_are_volumes_of_their_own(tmp_path):
    raw = np.arange(8, dtype=np.int16)[:, None, None] * np.ones((9, 11), np.int16)
    times = [frame(k, time=t) for t in (1, 2) for k in range(4)]
    echoes = [frame(k, echo=e) for e in (4.6, 9.2) for k in range(4)]
    for name, frames, words in [("t", times, "TemporalPositionIndex 2"), ("e", echoes, "EffectiveEchoTime 9.2")]:
        path = write_multi(tmp_path / name / "a.dcm", raw, frames, modality="MR", SeriesInstanceUID=generate_uid())
        found, refused = find_series(path.parent)
        assert not refused
        assert [read_series(s).array[0, :, 0, 0].tolist() for s in found] == [
            [-1024, -1023, -1022, -1021],
            [-1020, -1019, -1018, -1017],
        ]
        assert found[1].part == words
        with pytest.raises(DicomError, match=f"holds 2 series: MR 9 x 11, 4 frames.*{words}"):
            read_image([path])


def test_slices_of_a_later_volume_are_its_own_frames(tmp_path):
    raw = stored(8, 0, 300)
    frames = [frame(k, time=t) for k in range(4) for t in (1, 2)]
    path = write_multi(tmp_path / "a.dcm", raw, frames, modality="MR")
    for series, wanted in zip(find_series(tmp_path)[0], ([1, 3, 5, 7], [2, 4, 6, 8]), strict=True):
        image = read_series(series)
        assert image.source.frames == (tuple(wanted),)
        assert [plane.frame for plane in match_planes(image.geometry, source_planes(image.source))] == wanted
        assert source_planes(image.source)[0].sop_instance == pydicom.dcmread(path).SOPInstanceUID


def test_stacks_of_several_orientations_are_split(tmp_path):
    frames = [frame(k, axes=AXIAL, stack="1", oriented=True) for k in range(3)]
    frames += [frame(k, axes=OBLIQUE, stack="2", oriented=True) for k in range(3)]
    path = write_multi(tmp_path / "a.dcm", stored(), frames, oriented=False)
    found, _ = find_series(tmp_path)
    axial, oblique = sorted(map(read_series, found), key=lambda image: -image.geometry.direction[0][0])
    assert np.array_equal(axial.array[0], stored()[:3] - 1024)
    assert np.array_equal(oblique.array[0], stored()[3:] - 1024)
    assert axial.source.files == oblique.source.files == (path,)


def test_a_missing_frame_is_a_gap_that_names_the_frame(tmp_path):
    path = write_multi(tmp_path / "a.dcm", stored()[:5], [frame(k) for k in (0, 1, 2, 4, 5)])
    with pytest.raises(DicomError, match=r"a\.dcm frame 4: lies 5 mm after .*frame 3, other slices 2\.5 mm apart"):
        read_image([path])


def test_groups_that_do_not_fit_the_frames_are_refused(tmp_path):
    path = write_multi(tmp_path / "a.dcm", stored(), [frame(k) for k in range(5)])
    assert read_header(path) == "holds 6 frames, but functional groups for 5"
    path = write_multi(tmp_path / "b.dcm", stored(), [frame(k) for k in range(6)], NumberOfFrames=4_000_000)
    assert "4000000 frames, but" in read_header(path)


def test_parts_of_a_concatenation_are_one_volume(tmp_path):
    uid = generate_uid()
    for name, part in [("b", range(3)), ("a", range(3, 6))]:
        write_multi(tmp_path / f"{name}.dcm", stored()[part], [frame(k) for k in part], ConcatenationUID=uid)
    image = read_image([tmp_path])
    assert np.array_equal(image.array[0], stored() - 1024)
    assert [file.name for file in image.source.files] == ["b.dcm", "a.dcm"]


def test_volumes_of_a_concatenation_are_their_own_frames_of_every_file(tmp_path):
    uid = generate_uid()
    for name, part in [("a", range(3)), ("b", range(3, 6))]:
        frames = [frame(k, time=t) for t in (1, 2) for k in part]
        write_multi(tmp_path / f"{name}.dcm", stored(6, 0, 300), frames, modality="MR", ConcatenationUID=uid)
    for series, wanted in zip(find_series(tmp_path)[0], ((1, 2, 3), (4, 5, 6)), strict=True):
        image = read_series(series)
        assert image.source.frames == (wanted, wanted)
        planes = match_planes(image.geometry, source_planes(image.source))
        assert tuple(plane.frame for plane in planes) == wanted + wanted
        assert len({plane.sop_instance for plane in planes}) == 2


def test_channels_that_are_volumes_of_one_file_name_it_once(tmp_path):
    frames = [frame(k, time=t) for t in (1, 2) for k in range(4)]
    path = write_multi(tmp_path / "a.dcm", stored(8, 0, 300), frames, modality="MR")
    image = read_image([path, path], channels=("early", "late"), files=[(path,)] * 2, volumes=[0, 1])
    assert image.source.files == (path,) and image.source.frames == ((1, 2, 3, 4),)
    assert image.array.shape[0] == 2 and (image.array[0] != image.array[1]).any()


def test_single_frames_with_functional_groups_are_a_series(tmp_path):
    for k in range(6):
        write_multi(tmp_path / f"{k}.dcm", stored()[[k]], [frame(k)], SOPInstanceUID=generate_uid())
    image = read_image([tmp_path])
    assert np.array_equal(image.array[0], stored() - 1024)
    assert image.source.format == "dicom"

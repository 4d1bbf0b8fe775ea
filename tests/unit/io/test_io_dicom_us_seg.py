"""SEG of ultrasound frames, read by highdicom; damage between writing and reading is noticed."""

import highdicom
import numpy as np
import pytest
from us_phantoms import save, us_dataset

from medseg.errors import DicomError
from medseg.io import dicom_us_seg as module
from medseg.io.dicom_us_seg import check_us_seg, is_us_seg, write_us_seg
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap, Source
from medseg.types.labels import Label, Labels
from medseg.types.result import Provenance

MADE_BY = Provenance("tiny", "ab" * 32, {})
REGIONS = Labels((Label("whole", (1, 2), write=1), Label("core", (2,))))


def example(folder, labels=REGIONS, count=3, shape=(13, 11)):
    """Frames of 143 pixels, so that masks end within a byte."""
    source = us_dataset(np.zeros((count, *shape), np.uint8))
    array = np.random.default_rng(0).integers(0, 3, (count, *shape)).astype(np.uint8)
    path = save(source, folder / "source.dcm")
    return LabelMap(array, Geometry((count, *shape), (1.0, 0.5, 0.5)), labels), Source((path,), "dicom-us"), source


def test_regions_overlap_as_segments_of_their_own(tmp_path):
    labels, source, data = example(tmp_path)
    write_us_seg(labels, source, tmp_path / "a.seg.dcm", MADE_BY)
    seg = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    found = seg.get_pixels_by_source_frame(data.SOPInstanceUID, [1, 2, 3], assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(found[..., 0], labels.array > 0)
    np.testing.assert_array_equal(found[..., 1], labels.array == 2)
    with pytest.raises(DicomError, match="overlap"):
        write_us_seg(labels, source, tmp_path / "b.seg.dcm", MADE_BY, kind="labelmap")


def test_the_same_result_is_the_same_object(tmp_path):
    labels, source, _ = example(tmp_path)
    uids = []
    for name, array in (("a", labels.array), ("b", labels.array), ("c", labels.array[::-1])):
        write_us_seg(LabelMap(array, labels.geometry, REGIONS), source, tmp_path / name, MADE_BY)
        seg = highdicom.seg.segread(tmp_path / name)
        uids.append((seg.SeriesInstanceUID, seg.SOPInstanceUID))
    assert uids[0] == uids[1]
    assert uids[0][0] == uids[2][0]
    assert uids[0][1] != uids[2][1]


def test_what_is_written_is_compared_before_it_gets_its_name(tmp_path, monkeypatch):
    labels, source, _ = example(tmp_path)
    honest = module._packed
    monkeypatch.setattr(module, "_packed", lambda masks: honest(np.roll(mask, 1) for mask in masks))
    with pytest.raises(DicomError, match="does not hold what was predicted"):
        write_us_seg(labels, source, tmp_path / "a.seg.dcm", MADE_BY)
    assert not (tmp_path / "a.seg.dcm").exists()


def test_a_cut_file_is_not_whole(tmp_path):
    labels, source, _ = example(tmp_path)
    path = tmp_path / "a.seg.dcm"
    write_us_seg(labels, source, path, MADE_BY)
    assert is_us_seg(path)
    check_us_seg(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DicomError, match="to its end"):
        check_us_seg(path)


def test_a_source_without_uids_is_refused(tmp_path):
    labels, source, data = example(tmp_path)
    data.StudyInstanceUID = ""
    save(data, tmp_path / "source.dcm")
    with pytest.raises(DicomError, match="lacks StudyInstanceUID"):
        write_us_seg(labels, source, tmp_path / "a.seg.dcm", MADE_BY)

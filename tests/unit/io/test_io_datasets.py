"""Dataset folders in both layouts, with and without faults, and cases to predict."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from pydicom.dataset import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medseg.errors import DatasetError, GeometryError
from medseg.io.dataset_json import read_header
from medseg.io.datasets import find_cases, read_dataset, survey
from medseg.io.images import read_image, write_labels
from medseg.io.pairs import in_order, read_pair
from medseg.types.dataset import Case
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels

PLAIN = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def describe(folder: Path, **content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({**PLAIN, **content}), encoding="utf-8")
    return folder


def faults_of(folder: Path, severity: str) -> list[str]:
    return [f"{f.case} {f.file} {f.what}" for f in survey(folder)[1] if f.severity == severity]


def test_reads_channels_labels_and_cases_of_the_v2_layout(tmp_path):
    folder = describe(
        tmp_path / "mit Leer & Ümlaut",
        name="Demo",
        channel_names={"0": "T1", "1": "T2"},
        labels={"background": 0, "tumour": 2, "organ": 1, "ignore": 3},
        numTraining=2,
    )
    touch(folder, *(f"imagesTr/{c}_{i:04d}.nii.gz" for c in ("b.1", "a_7") for i in (0, 1)))
    touch(folder, "labelsTr/b.1.nii.gz", "labelsTr/a_7.nii.gz", "imagesTr/._a_7_0000.nii.gz", "imagesTs/z_0000.nii.gz")
    dataset = read_dataset(folder)
    assert (dataset.name, dataset.channels) == ("Demo", ("T1", "T2"))
    assert dataset.labels == Labels((Label("organ", (1,)), Label("tumour", (2,))), ignore=3)
    assert [case.id for case in dataset.cases] == ["a_7", "b.1"]
    assert [p.name for p in dataset.cases[1].images] == ["b.1_0000.nii.gz", "b.1_0001.nii.gz"]
    assert dataset.cases[0].label == folder / "labelsTr" / "a_7.nii.gz"
    assert survey(folder)[1] == ()


def test_reads_the_decathlon_layout_with_all_channels_in_one_file(tmp_path):
    folder = tmp_path / "Task01"
    folder.mkdir()
    content = {
        "name": "BRATS",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "tumor"},
        "numTraining": 1,
        "training": [{"image": "./imagesTr/BRATS_457.nii.gz", "label": "./labelsTr/BRATS_457.nii.gz"}],
        "test": ["./imagesTs/BRATS_565.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    touch(folder, "imagesTr/BRATS_457.nii.gz", "labelsTr/BRATS_457.nii.gz")
    dataset = read_dataset(folder)
    assert dataset.channels == ("FLAIR", "T1w")
    assert dataset.labels.names() == ("edema", "tumor")
    assert dataset.cases[0] == Case(
        "BRATS_457", (folder / "imagesTr/BRATS_457.nii.gz",), folder / "labelsTr/BRATS_457.nii.gz"
    )


def test_files_beside_the_listed_ones_are_named(tmp_path):
    row = {"image": "./imagesTr/c.nii.gz", "label": "./labelsTr/c.nii.gz"}
    folder = describe(tmp_path / "v1", channel_names={"0": "a", "1": "b"}, training=[row])
    touch(folder, "imagesTr/c_0000.nii.gz", "imagesTr/c_0001.nii.gz", "labelsTr/c.nii.gz")
    touch(folder, "imagesTr/forgotten.nii.gz", "labelsTr/forgotten.nii.gz", "imagesTr/notes.txt", "imagesTr/.hidden")
    assert len(read_dataset(folder).cases) == 1
    found = [fault for fault in survey(folder)[1] if "not listed" in fault.what]
    assert {fault.severity for fault in found} == {"warning"}
    assert [f.file for f in found] == ["imagesTr/forgotten.nii.gz", "imagesTr/notes.txt", "labelsTr/forgotten.nii.gz"]


def test_an_empty_group_is_none(tmp_path):
    folder = describe(tmp_path / "v2", channel_names={"0": "CT"}, groups={"a": "", "b": " ", "c": "p"})
    touch(folder, *(f"imagesTr/{case}_0000.nii.gz" for case in "abc"), *(f"labelsTr/{case}.nii.gz" for case in "abc"))
    assert [case.group for case in read_dataset(folder).cases] == [None, None, "p"]
    assert any("2 cases have no group" in fault.what for fault in survey(folder)[1])


def test_listed_images_may_be_stored_one_file_per_channel(tmp_path):
    row = {"image": "./imagesTr/c.nii.gz", "label": "./labelsTr/c.nii.gz"}
    folder = describe(tmp_path / "v1", channel_names={"0": "a", "1": "b"}, training=[row])
    touch(folder, "imagesTr/c_0000.nii.gz", "imagesTr/c_0001.nii.gz", "labelsTr/c.nii.gz")
    assert [p.name for p in read_dataset(folder).cases[0].images] == ["c_0000.nii.gz", "c_0001.nii.gz"]


def test_explicit_map_names_cases_and_files_freely(tmp_path):
    cases = {"one": {"images": ["scans/x.mha"], "label": "truth/y.mha"}}
    folder = describe(tmp_path / "d", dataset=cases)
    touch(folder, "scans/x.mha", "truth/y.mha")
    assert read_dataset(folder).cases == (Case("one", (folder / "scans/x.mha",), folder / "truth/y.mha"),)
    describe(folder, dataset={"one": {"images": ["no.mha"], "label": "no2.mha"}, "../up": {"images": ["scans/x.mha"]}})
    wrong = faults_of(folder, "error")
    assert len(wrong) == 3
    assert any("no.mha" in w for w in wrong)
    assert any("no2.mha" in w for w in wrong)
    assert any("file name" in w for w in wrong)


def test_regions_take_order_and_written_values(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ring": 3}
    folder = describe(tmp_path / "d", labels=labels, regions_class_order=[1, 2, 3])
    touch(folder, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    found = read_dataset(folder).labels
    assert found.are_regions()
    assert [(item.name, item.values, item.written) for item in found.items] == [
        ("whole", (1, 2, 3), 1),
        ("core", (2, 3), 2),
        ("ring", (3,), 3),
    ]
    describe(folder, labels={"whole": [1, 2], "core": [1]})
    with pytest.raises(DatasetError, match="regions_class_order"):
        read_dataset(folder)
    describe(folder, labels=labels, regions_class_order=[1, 2])
    with pytest.raises(DatasetError, match="3 whole numbers"):
        read_dataset(folder)


def test_values_need_not_be_consecutive_and_the_ending_is_inferred(tmp_path):
    folder = describe(tmp_path / "us", labels={"lesion": 255}, file_ending=None)
    touch(folder, "imagesTr/a_0000.png", "labelsTr/a.png")
    dataset = read_dataset(folder)
    assert dataset.labels.items == (Label("lesion", (255,)),)
    assert dataset.cases[0].label == folder / "labelsTr/a.png"
    touch(folder, "imagesTr/b_0000.tif", "labelsTr/b.tif")
    with pytest.raises(DatasetError, match="file_ending"):
        read_dataset(folder)


def test_a_dicom_folder_is_an_image(tmp_path):
    folder = describe(tmp_path / "d")
    touch(folder, "imagesTr/a_0000/1.dcm", "imagesTr/b/1.dcm", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    cases = read_dataset(folder).cases
    assert [case.images for case in cases] == [(folder / "imagesTr/a_0000",), (folder / "imagesTr/b",)]


def test_one_file_without_channel_number_holds_all_channels(tmp_path):
    folder = describe(tmp_path / "d", channel_names={"0": "a", "1": "b"})
    touch(folder, "imagesTr/x_0001.nii.gz", "labelsTr/x_0001.nii.gz")
    assert read_dataset(folder).cases == (
        Case("x_0001", (folder / "imagesTr/x_0001.nii.gz",), folder / "labelsTr/x_0001.nii.gz"),
    )


def test_groups_from_json_or_csv_and_splits_from_a_file(tmp_path):
    folder = describe(tmp_path / "d", groups={"a": "p1", "b": 7})
    touch(folder, *(f"imagesTr/{c}_0000.nii.gz" for c in "ab"), *(f"labelsTr/{c}.nii.gz" for c in "ab"))
    assert [case.group for case in read_dataset(folder).cases] == ["p1", "7"]
    describe(folder)
    (folder / "groups.csv").write_text("case,group\na,q\nzz,q\n", encoding="utf-8-sig")
    (folder / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    dataset = read_dataset(folder)
    assert [case.group for case in dataset.cases] == ["q", None]
    assert (dataset.splits[0].train, dataset.splits[0].val) == (("a",), ("b",))
    notes = faults_of(folder, "warning")
    assert any("zz" in note for note in notes)
    assert any("no group" in note for note in notes)
    (folder / "groups.csv").write_text("case,group\na,q\nb,r\na,q\nb,s\n")
    assert [fault for fault in faults_of(folder, "error") if "two groups" in fault] == [
        "b groups.csv is listed with two groups"
    ]
    (folder / "groups.csv").write_text("name;patient\na;q\n")
    (folder / "splits_final.json").write_text('{"train": ["a"]}')
    wrong = faults_of(folder, "error")
    assert any("groups.csv" in w for w in wrong)
    assert any("splits_final.json" in w for w in wrong)


def test_raters_from_json_or_csv_and_cases_that_nobody_signed(tmp_path):
    folder = describe(tmp_path / "d", raters={"a": "Ann", "b": 7})
    touch(folder, *(f"imagesTr/{c}_0000.nii.gz" for c in "abc"), *(f"labelsTr/{c}.nii.gz" for c in "abc"))
    dataset = read_dataset(folder)
    assert [case.rater for case in dataset.cases] == ["Ann", "7", None]
    assert dataset.raters() == ("7", "Ann")
    assert any("1 cases name no rater: c" in note for note in faults_of(folder, "warning"))
    describe(folder)
    assert read_dataset(folder).raters() == ()
    assert not any("rater" in note for note in faults_of(folder, "warning"))
    (folder / "raters.csv").write_text("case,rater\na, Ann \nb,\nzz,Ann\n", encoding="utf-8")
    assert [case.rater for case in read_dataset(folder).cases] == ["Ann", None, None]
    assert any("zz" in note and "rater" in note for note in faults_of(folder, "warning"))
    (folder / "raters.csv").write_text("rater,case\nAnn\nBen, b \n", encoding="utf-8")
    assert [case.rater for case in read_dataset(folder).cases] == [None, "Ben", None]
    describe(folder, raters=["Ann"])
    assert any('"raters" is no table' in fault for fault in faults_of(folder, "error"))


def test_every_missing_and_extra_file_is_listed_at_once(tmp_path):
    folder = describe(tmp_path / "d", channel_names={"0": "a", "1": "b"})
    touch(folder, "imagesTr/ok_0000.nii.gz", "imagesTr/ok_0001.nii.gz", "imagesTr/ok_0002.nii.gz")
    touch(folder, "labelsTr/ok.nii.gz", "labelsTr/noimage.nii.gz", "labelsTr/half.nii.gz", "imagesTr/half_0000.nii.gz")
    touch(folder, "imagesTr/nolabel_0000.nii.gz", "imagesTr/nolabel_0001.nii.gz", "imagesTr/note.txt")
    dataset, _ = survey(folder)
    assert [case.id for case in dataset.cases] == ["ok"]
    wrong, notes = faults_of(folder, "error"), faults_of(folder, "warning")
    assert len(wrong) == 3
    assert any("noimage" in w and "image is missing" in w for w in wrong)
    assert any("half" in w and "0001 (b) is missing" in w for w in wrong)
    assert any("nolabel" in w and "label map is missing" in w for w in wrong)
    assert any("note.txt" in n for n in notes)
    assert any("0002" in n for n in notes)
    with pytest.raises(DatasetError) as caught:
        read_dataset(folder)
    assert all(part in str(caught.value) for part in ("noimage", "half", "nolabel", "3 faults"))


def test_image_beyond_num_training_is_only_left_out(tmp_path):
    folder = describe(tmp_path / "d", numTraining=1)
    touch(folder, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/extra_0000.nii.gz")
    assert [case.id for case in read_dataset(folder).cases] == ["a"]
    assert any("extra" in note for note in faults_of(folder, "warning"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "JSON"),
        ("[1]", "object"),
        ('{"labels": {"a": 1}}', "channel_names"),
        ('{"channel_names": {"0": "CT"}}', "labels"),
        ('{"channel_names": {"1": "CT"}, "labels": {"a": 1}}', "numbered"),
        ('{"channel_names": ["CT"], "labels": {"a": 1}}', "channel names"),
        ('{"channel_names": {"0": "CT"}, "labels": {"a": 1, "b": 1}}', "two names"),
        ('{"channel_names": {"0": "CT"}, "labels": {"a": 1.5}}', "1.5"),
        ('{"channel_names": {"0": "CT"}, "labels": {"a": true}}', "True"),
        ('{"channel_names": {"0": "CT"}, "labels": {"background": 1}}', "background"),
        ('{"channel_names": {"0": "CT"}, "labels": {"background": 0}}', "unique names"),
        ('{"channel_names": {"0": "CT"}, "labels": {"a": [0, 1]}}', "background value"),
        ('{"channel_names": {"0": "CT"}, "labels": {"a": 1, "ignore": 1}}', "ignore"),
        (
            '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "ignore": 0}}',
            "ignore value 0 is background",
        ),
        ('{"channel_names": {"0": "CT"}, "labels": {"0": "x", "1": "a", "2": "a"}}', "twice"),
        ('{"channel_names": {"0": "CT"}, "labels": {"a": 1, "b": 2, "a": 3}}', 'key "a" is there twice'),
    ],
)
def test_bad_description_is_a_fault_that_says_what(tmp_path, text, word):
    (tmp_path / "dataset.json").write_text(text)
    _, faults = read_header(tmp_path)
    assert any(word in fault.what for fault in faults)
    assert all(fault.fix for fault in faults)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        read_dataset(tmp_path)


def test_several_faults_of_the_description_are_listed_together(tmp_path):
    describe(tmp_path, channel_names={}, labels={"a": "x", "b": 2}, numTraining="four", groups=[1], file_ending=3)
    assert len(faults_of(tmp_path, "error")) == 5


def test_absent_folder_and_absent_description(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        read_dataset(tmp_path / "no")
    with pytest.raises(DatasetError, match="is missing"):
        read_dataset(tmp_path)
    describe(tmp_path)
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    assert "imagesTr" in str(caught.value)
    assert "labelsTr" in str(caught.value)


def test_found_files_become_cases_with_unique_ids(tmp_path):
    touch(tmp_path, "in/a.nii.gz", "in/sub/a.mha", "in/b.png", "in/notes.txt", "in/.hidden.nii.gz")
    cases, refused = find_cases([tmp_path / "in", tmp_path / "in/b.png", tmp_path / "gone"], ("CT",))
    assert [case.id for case in cases] == ["in_a", "b", "sub_a"]
    assert [path.name for path in refused] == ["notes.txt", "gone"]
    assert cases[1].images == (tmp_path / "in/b.png",)


def test_zero_suffix_is_dropped_only_if_every_file_has_it(tmp_path):
    touch(tmp_path, "a/x_0000.nii.gz", "a/y_0000.nii.gz", "b/x_0000.nii.gz", "b/y_0001.nii.gz")
    assert [case.id for case in find_cases([tmp_path / "a"], ("CT",))[0]] == ["x", "y"]
    assert [case.id for case in find_cases([tmp_path / "b"], ("CT",))[0]] == ["x_0000", "y_0001"]


def test_channels_are_joined_and_incomplete_cases_refused(tmp_path):
    touch(tmp_path, "x_0000.mha", "x_0001.mha", "y_0000.mha", "z_0000.mha", "z_0001.mha", "z_0002.mha", "all.mha")
    cases, refused = find_cases([tmp_path], ("T1", "T2"))
    assert {case.id: len(case.images) for case in cases} == {"all": 1, "x": 2, "z": 2}
    assert {path.name for path in refused} == {"y_0000.mha", "z_0002.mha"}
    assert "T2" in refused[tmp_path / "y_0000.mha"]


def test_one_picture_holds_the_colours_of_its_case(tmp_path):
    """As nnU-Net lays out 2D RGB images: three channels, one file ending in _0000."""
    colours = {"0": "R", "1": "G", "2": "B"}
    folder = describe(tmp_path / "d", channel_names=colours, labels={"background": 0, "road": 1}, file_ending=".png")
    rgb = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    for name, array in (("imagesTr/a_0000.png", rgb), ("labelsTr/a.png", (rgb[..., 0] > 99).astype(np.uint8))):
        (folder / name).parent.mkdir(exist_ok=True)
        Picture.fromarray(array).save(folder / name)
    (case,) = read_dataset(folder).cases
    assert case.images == (folder / "imagesTr/a_0000.png",)
    found, refused = find_cases([folder / "imagesTr"], ("R", "G", "B"))
    assert [one.id for one in found] == ["a"] and not refused
    image = read_image(found[0].images, channels=("R", "G", "B"))
    np.testing.assert_array_equal(image.array[:, 0], np.moveaxis(rgb, -1, 0))


def test_empty_folder_is_refused(tmp_path):
    assert find_cases([tmp_path], ("CT",)) == ((), {tmp_path: "holds no image file"})


def slice_file(path: Path, series: str, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
    item = DicomDataset()
    item.file_meta = meta
    item.SOPClassUID, item.SOPInstanceUID, item.Modality = CTImageStorage, f"{series}.{number}", "CT"
    item.SeriesInstanceUID, item.FrameOfReferenceUID = series, "1.2.3"
    item.Rows = item.Columns = 4
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated = item.BitsStored = 16
    item.HighBit, item.PixelRepresentation = 15, 0
    item.PixelSpacing, item.SliceThickness = [1, 1], 2
    item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    item.ImagePositionPatient = [0, 0, 2 * number]
    item.PixelData = np.full((4, 4), number, np.uint16).tobytes()
    item.save_as(path, enforce_file_format=True)


def test_each_dicom_series_in_a_tree_is_a_case(tmp_path):
    for number in range(3):
        slice_file(tmp_path / "tree/ct one" / f"{number}", "1.2.4", number)
        slice_file(tmp_path / "tree/split" / f"part{number}/s.dcm", "1.2.5", number)
        slice_file(tmp_path / "tree/mixed" / f"m{number}.dcm", f"1.2.{6 + number // 2}", number)
    touch(tmp_path, "tree/ct one/readme.txt", "tree/more.zip")
    cases, refused = find_cases([tmp_path / "tree"], ("CT",), keep_identifiers=True)
    found = {case.id: (case.images, case.series_uids, [len(files) for files in case.files]) for case in cases}
    several = next(name for name in found if name.startswith("mixed_CT-"))
    assert found == {
        "ct one": ((tmp_path / "tree/ct one",), ("1.2.4",), [3]),
        several: ((tmp_path / "tree/mixed",), ("1.2.6",), [2]),
        "m2": ((tmp_path / "tree/mixed/m2.dcm",), ("1.2.7",), [1]),
        "split": ((tmp_path / "tree/split",), ("1.2.5",), [3]),
    }
    assert {path.name for path in refused} == {"more.zip", "readme.txt"}
    assert "archive" in refused[tmp_path / "tree/more.zip"]


def test_dicom_cases_are_named_alike_wherever_they_lie_and_after_nobody(tmp_path):
    for number in range(2):
        slice_file(tmp_path / "one/DOE^JOHN" / f"{number}", "1.2.4", number)
        slice_file(tmp_path / "one/DOE^JOHN" / f"b{number}", "1.2.5", number)
        slice_file(tmp_path / "two/x" / f"{number}", "1.2.5", number)
    here, there = (find_cases([tmp_path / name], ("CT",))[0] for name in ("one", "two"))
    uids = {case.id: case.series_uids for case in here}
    assert set(uids.values()) == {("1.2.4",), ("1.2.5",)} and uids[there[0].id] == ("1.2.5",)
    assert not any("DOE" in name or "JOHN" in name for name in uids)


def test_slices_given_one_by_one_are_one_case(tmp_path):
    files = [tmp_path / "DOE" / f"{number}.dcm" for number in range(4)]
    for number, path in enumerate(files):
        slice_file(path, f"1.2.{4 + number // 3}", number)
    cases, refused = find_cases(files[:2], ("CT",))
    assert [case.files for case in cases] == [(tuple(files[:3]),)] and not refused


def test_channels_may_be_dicom_folders(tmp_path):
    for number in range(2):
        slice_file(tmp_path / "a_0000" / f"{number}", "1.2.4", number)
        slice_file(tmp_path / "a_0001" / f"{number}", "1.2.5", number)
    (case,), refused = find_cases([tmp_path], ("T1", "T2"))
    assert case.series_uids == ("1.2.4", "1.2.5") and not refused
    image = read_image(case.images, channels=("T1", "T2"), files=case.files)
    assert image.array.shape == (2, 2, 4, 4)


def test_a_series_among_others_is_read_by_its_files(tmp_path):
    for number in range(4):
        slice_file(tmp_path / "all" / f"{number}", f"1.2.{4 + number // 2}", number)
    cases, _ = find_cases([tmp_path], ("CT",))
    found = [read_image(case.images, files=case.files).array[0, :, 0, 0].tolist() for case in cases]
    assert sorted(found) == [[0, 1], [2, 3]]


def label_file(path: Path, origin: float = 0.0, shape=(3, 4, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.uint8)
    array[1, 1:3] = 1
    write_labels(LabelMap(array, Geometry(shape, (2.0, 1.0, 1.0), (origin, 0, 0)), Labels((Label("a", (1,)),))), path)


@pytest.mark.parametrize(("shift", "warned"), [(0.0, 0), (0.004, 1), (0.02, None)])
def test_pair_takes_the_grid_of_the_image_only_within_tolerance(tmp_path, shift, warned):
    folder = describe(tmp_path)
    label_file(folder / "imagesTr/a_0000.nii.gz")
    label_file(folder / "labelsTr/a.nii.gz", origin=shift)
    dataset = read_dataset(folder)
    if warned is None:
        with pytest.raises(GeometryError, match="origin"):
            read_pair(dataset.cases[0], dataset)
        return
    image, labels = read_pair(dataset.cases[0], dataset)
    assert labels.geometry == image.geometry
    assert len(labels.warnings) == warned


def test_pair_of_other_shape_or_without_label_is_refused(tmp_path):
    folder = describe(tmp_path)
    label_file(folder / "imagesTr/a_0000.nii.gz")
    label_file(folder / "labelsTr/a.nii.gz", shape=(3, 4, 6))
    dataset = read_dataset(folder)
    with pytest.raises(GeometryError, match="shape"):
        read_pair(dataset.cases[0], dataset)
    with pytest.raises(DatasetError, match="no label map"):
        read_pair(Case("a", dataset.cases[0].images), dataset)


def test_results_come_in_order_and_an_error_ends_them():
    cases = [Case(str(i), ()) for i in range(20)]
    assert [(case.id, n) for case, n in in_order(lambda c: int(c.id) ** 2, cases, workers=3)] == [
        (str(i), i * i) for i in range(20)
    ]
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda c: 1 // (3 - int(c.id)), cases, workers=2))


@pytest.mark.parametrize(
    ("usable", "workers", "threads"), [(64, None, 4), (2, None, 2), (1, None, 1), (1, 6, 6), (64, 99, 20)]
)
def test_unasked_at_most_four_processors_that_are_usable_work(monkeypatch, usable, workers, threads):
    started = []

    def pool(count):
        started.append(count)
        return ThreadPoolExecutor(count)

    monkeypatch.setattr("medseg.io.pairs.ThreadPoolExecutor", pool)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(usable)), raising=False)
    cases = [Case(str(i), ()) for i in range(20)]
    assert len(list(in_order(lambda case: case.id, cases, workers=workers))) == 20
    assert started == [threads]


def test_labels_with_names_lie_as_files_or_alone_in_folders(tmp_path):
    folder = describe(tmp_path / "d", file_ending=None)
    names = ["a.dcm", "b.seg.dcm", "c.rtstruct.dcm", "d.seg.nrrd", "e/IM0001.dcm", "f/from Slicer.seg.nrrd"]
    touch(folder, *(f"imagesTr/{case}_0000/{i}.dcm" for case in "abcdef" for i in range(2)))
    touch(folder, *(f"labelsTr/{name}" for name in names))
    dataset, faults = survey(folder)
    assert faults == ()
    assert {case.id: case.label for case in dataset.cases} == {n[0]: folder / "labelsTr" / n for n in names}


@pytest.mark.parametrize("ending", [".dcm", ".nrrd", ".nii.gz"])
def test_named_labels_beside_any_image_format(tmp_path, ending):
    folder = describe(tmp_path / "d", file_ending=ending)
    touch(folder, f"imagesTr/a_0000{ending}", "labelsTr/a.seg.nrrd", f"imagesTr/b_0000{ending}", "labelsTr/b.dcm")
    dataset, faults = survey(folder)
    assert faults == () and [case.id for case in dataset.cases] == ["a", "b"]


def test_a_folder_of_several_files_is_no_label(tmp_path):
    folder = describe(tmp_path / "d")
    touch(folder, "imagesTr/a_0000/1.dcm", "labelsTr/a/1.dcm", "labelsTr/a/2.dcm")
    assert any("labelsTr/a" in fault for fault in faults_of(folder, "warning"))
    assert any("label map is missing" in fault for fault in faults_of(folder, "error"))


def test_listed_labels_with_names(tmp_path):
    rows = [{"image": "scans/7", "label": "./drawn/p7.seg.nrrd"}, {"image": "scans/8", "label": "drawn/p8"}]
    folder = describe(tmp_path / "d", training=rows, numTraining=2)
    touch(folder, "scans/7/1.dcm", "scans/8/1.dcm", "drawn/p7.seg.nrrd", "drawn/p8/rs.dcm")
    cases = {case.id: case for case in read_dataset(folder).cases}
    assert cases["p7"].label == folder / "drawn/p7.seg.nrrd"
    assert cases["p8"].label == folder / "drawn/p8/rs.dcm" and cases["p8"].images == (folder / "scans/8",)


def test_labels_described_by_itk_snap(tmp_path):
    folder = describe(tmp_path / "d", labels="labels.txt")
    touch(folder, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (folder / "labels.txt").write_text(
        '# ITK-SnAP\n 0 0 0 0 0 0 0 "Clear Label"\n 7 255 0 0 1 1 1 "tumour"\n 2 0 255 0 1 1 1 "organ"\n'
        '9 1 1 1 1 1 1 "ignore"\n',
        encoding="utf-8",
    )
    labels = read_dataset(folder).labels
    assert labels == Labels((Label("organ", (2,)), Label("tumour", (7,))), ignore=9)
    (folder / "labels.txt").write_text('1 0 0 0 1 1 1 "a"\n2 0 0 0 1 1 1 "a"\n', encoding="utf-8")
    with pytest.raises(DatasetError, match='"a" is used twice'):
        read_dataset(folder)
    (folder / "labels.txt").write_text("tumour = 7\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="line 1 is no label description"):
        read_dataset(folder)
    describe(folder, labels="../outside.txt")
    with pytest.raises(DatasetError, match=r"outside.txt: cannot be opened"):
        read_dataset(folder)

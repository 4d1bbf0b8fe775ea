"""Cines through a 2D network whose answer is known: label 1 above 100, 2 above 200."""

import csv
import json
import shutil
import subprocess
import sys
import tracemalloc
import types

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image as Picture
from PIL import ImageDraw, ImageSequence
from safetensors.torch import save_file
from us_phantoms import Sector, save, us_dataset

from medseg.cli import main
from medseg.io.bundles import load_bundle, save_bundle
from medseg.io.images import read_labels
from medseg.io.nifti import write_nifti
from medseg.networks.build import build_network
from medseg.types.dataset import Case, Dataset
from medseg.types.geometry import Geometry
from medseg.types.image import Probabilities
from medseg.types.labels import Code, Label, Labels
from medseg.types.plan import (
    Budget,
    Inference,
    LossTerm,
    Network,
    Origin,
    Plan,
    Preprocess,
    Sampling,
    Step,
    Topology,
    Training,
)
from medseg.workflow import report
from medseg.workflow.cine import predict_cine, temporal_median
from medseg.workflow.model import PredictOptions, members_of
from medseg.workflow.predict import predict_folder
from medseg.workflow.validate_fold import Validated
from medseg.workflow.validation import clean_and_score

CYST = Label("cyst", (1,), Code("SCT", "367643001", "Cyst"))
LABELS = Labels((CYST, Label("wall", (2,))))
SECTOR = Sector((-20.0, 64.0), 40.0, 120.0, 30.0, (110, 127))  # 127: rows do not end on a byte
CPU = PredictOptions(device="cpu")


@pytest.fixture(autouse=True)
def my_lab(monkeypatch):
    """A backbone that hands the image on, in an importable module."""

    class Same(torch.nn.Module):
        feature_channels = (1,)

        def forward(self, image):
            return (image,)

    module = types.ModuleType("my_lab")
    module.same = lambda topology, *, in_channels: Same()
    monkeypatch.setitem(sys.modules, "my_lab", module)


def make_bundle(folder, ndim=2, intensity="none"):
    plan = Plan(
        "medseg.plan/1",
        "threshold",
        ("US",),
        LABELS,
        Preprocess((None, None, None), (Step(intensity),)),
        Network("my_lab:same", Topology(ndim, (1,), ((1, 1, 1),), ((1, 1, 1),), (1,))),
        Sampling((1, 64, 64) if ndim == 2 else (4, 64, 64), 2),
        Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), 1, precision="fp32"),
        Inference(),
        (),
        Origin("0.1.0", "0" * 64, Budget(4.0), "unet"),
        {},
    )
    state = build_network(plan.network, channels=1, outputs=3).state_dict()
    for name, value in state.items():
        new = torch.tensor([0.0, 1.0, 2.0] if value.dim() > 1 else [0.0, -100.0, -300.0])
        state[name] = new.reshape(value.shape).contiguous()
    save_file(state, folder / "weights.safetensors")
    save_bundle(folder / "bundle", plan, {0: folder / "weights.safetensors"}, {}, ("my_lab",))
    return folder / "bundle"


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path)


def frames_and_truth(count=6):
    """Dark speckle with a disc that moves, brighter in its middle, and a name in the corner."""
    rng = np.random.default_rng(0)
    y, x = np.indices(SECTOR.shape)
    picture = Picture.new("L", SECTOR.shape[::-1])
    ImageDraw.Draw(picture).text((1, 1), "DOE JANE", fill=230)
    text = np.asarray(picture)
    frames = np.zeros((count, *SECTOR.shape), np.uint8)
    truth = np.zeros_like(frames)
    for number in range(count):
        radius = np.hypot(y - 60, x - 54 - 3 * number)
        truth[number][radius < 12] = 1
        truth[number][radius < 5] = 2
        tissue = rng.integers(20, 90, SECTOR.shape)
        tissue[truth[number] == 1], tissue[truth[number] == 2] = 150, 230
        frames[number] = np.where(SECTOR.mask(), tissue, text)
    return frames, truth, text


def write_cine(folder, frames, **options):
    folder.mkdir(parents=True, exist_ok=True)
    return save(us_dataset(frames, **options), folder / "DOE_JANE.dcm")


def run(bundle, inputs, out, **options):
    return predict_folder(bundle, [inputs], out, options=PredictOptions(device="cpu", trust=("my_lab",), **options))


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_cine_becomes_a_seg_of_its_frames(tmp_path, bundle, kind):
    frames, truth, _ = frames_and_truth()
    truth[4] = 0
    frames[4][frames[4] > 100] = 50
    path = write_cine(tmp_path / "in", frames)
    source = pydicom.dcmread(path)
    source.SpecificCharacterSet = "ISO_IR 100"
    source.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"ISO-IR 100"))  # as real files misspell it
    report = run(bundle, tmp_path / "in", tmp_path / "out", format=("dicom-seg",), seg_kind=kind)
    (line,) = report.cases
    assert line.status == "ok", line.error
    seg = highdicom.seg.segread(tmp_path / "out" / line.outputs[0])
    uids = (source.StudyInstanceUID, source.PatientID, seg.PatientName)
    assert (seg.StudyInstanceUID, seg.PatientID, source.PatientName) == uids
    assert "FrameOfReferenceUID" not in seg
    cited = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert (cited.ReferencedSOPClassUID, cited.ReferencedSOPInstanceUID) == (source.SOPClassUID, source.SOPInstanceUID)
    found = seg.get_pixels_by_source_frame(
        source.SOPInstanceUID, list(range(1, 7)), combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(found, truth)
    named = {d.SegmentNumber: d.SegmentLabel for d in seg.SegmentSequence if d.SegmentNumber}
    assert named == {1: "cyst", 2: "wall"}
    assert seg.get_segment_description(1).segmented_property_type.value == "367643001"
    shown = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in seg.PerFrameFunctionalGroupsSequence]
    assert {item.ReferencedFrameNumber for item in shown} == {1, 2, 3, 4, 6}


def test_a_cine_without_any_label_is_one_empty_frame(tmp_path, bundle):
    frames = np.minimum(frames_and_truth()[0], 90)
    frames[:, 40:60, 50:80] = 60
    write_cine(tmp_path / "in", frames)
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out").cases
    seg = pydicom.dcmread(tmp_path / "out" / line.outputs[0])
    assert seg.NumberOfFrames == 1
    assert not seg.pixel_array.any()


def test_names_beside_the_fan_are_black_and_no_label(tmp_path, bundle):
    frames, truth, text = frames_and_truth()
    write_cine(tmp_path / "in", frames, frame_ms=80.0)
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out").cases
    assert [name.partition(".")[2] for name in line.outputs] == ["seg.dcm", "gif", "csv"]
    assert "DOE" not in "".join((*line.outputs, *line.warnings, line.case_id)).upper()
    assert any(f"{6 * int((text > 100).sum())} labelled pixels outside" in note for note in line.warnings)
    with Picture.open(tmp_path / "out" / line.outputs[1]) as gif:
        shown = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(gif)]
    assert [milliseconds for _, milliseconds in shown] == [80] * 6
    for number, (picture, _) in enumerate(shown):
        assert picture[text > 0].max() == 0
        colours = picture.astype(int)
        tinted = (colours.max(axis=2) - colours.min(axis=2)) > 40
        assert (tinted == (truth[number] > 0)).mean() > 0.995
    with (tmp_path / "out" / line.outputs[2]).open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["time_s"]) for row in rows] == pytest.approx([0, 0.08, 0.16, 0.24, 0.32, 0.4])
    assert [float(row["wall_mm2"]) for row in rows] == [0.25 * (frame == 2).sum() for frame in truth]


def test_names_stay_where_identifiers_are_kept(tmp_path, bundle):
    frames, _, text = frames_and_truth()
    write_cine(tmp_path / "in", frames)
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out", format=("gif",), keep_identifiers=True).cases
    with Picture.open(tmp_path / "out" / line.outputs[0]) as gif:
        assert np.asarray(gif.convert("RGB"))[text > 200].min() > 200


def test_frames_as_a_stack_on_request_say_that_z_is_time(tmp_path, bundle):
    frames, truth, _ = frames_and_truth()
    write_cine(tmp_path / "in", frames)
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out", format=("nii.gz",)).cases
    assert any("z is time" in note for note in line.warnings)
    labels = read_labels(tmp_path / "out" / line.outputs[0], LABELS)
    np.testing.assert_array_equal(labels.array, truth)
    assert labels.geometry.spacing_mm == pytest.approx((1.0, 0.5, 0.5))


def test_the_median_over_frames_closes_gaps_and_drops_flashes(tmp_path, bundle):
    frames, truth, _ = frames_and_truth(7)
    still, known = np.repeat(frames[2:3], 7, axis=0), np.repeat(truth[2:3], 7, axis=0)
    still[::2][:, SECTOR.mask() & (truth[2] == 0)] -= 10  # so that the fan moves
    still[3][truth[2] > 0] = 50
    still[5, 80:84, 60:64] = 240
    write_cine(tmp_path / "in", still)
    options = {"format": ("nii.gz",)}
    (plain,) = run(bundle, tmp_path / "in", tmp_path / "one", **options).cases
    (smooth,) = run(bundle, tmp_path / "in", tmp_path / "two", temporal_median=3, **options).cases
    one, two = (read_labels(tmp_path / at / plain.outputs[0], LABELS).array for at in ("one", "two"))
    assert not one[3].any()
    assert (one[5] != known[5]).any()
    np.testing.assert_array_equal(two, known)
    assert smooth.status == "ok"


def test_a_running_median_of_all_frames_by_hand():
    labels = Labels((Label("a", (1,)),))
    grid = Geometry((1, 1, 3), (1.0, 1.0, 1.0))
    values = np.random.default_rng(0).random((9, 2, 1, 1, 3)).astype(np.float32)
    for count in (1, 2, 3, 9):
        for width in (1, 3, 5):
            given = (Probabilities(value, grid, labels) for value in values[:count])
            found = [one.array for one in temporal_median(given, width)]
            half = width // 2
            slow = [np.median(values[max(0, i - half) : min(count, i + half + 1)], axis=0) for i in range(count)]
            np.testing.assert_allclose(found, slow, rtol=1e-6)


@pytest.mark.parametrize(
    ("ndim", "options", "said"),
    [
        (3, {}, "is a cine, and the model is 3D"),
        (2, {"format": ("png",)}, "--format png does not hold a cine"),
        (2, {"save_probabilities": True}, "probabilities of cines"),
    ],
)
def test_what_a_cine_cannot_be_is_refused(tmp_path, ndim, options, said):
    bundle = make_bundle(tmp_path, ndim)
    write_cine(tmp_path / "in", frames_and_truth()[0])
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out", **options).cases
    assert line.status == "failed"
    assert said in line.error
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix not in (".json", ".jsonl")] == []


@pytest.mark.parametrize("frames", [4, 0, -1])
def test_a_median_over_an_even_number_of_frames_is_wrong_usage(tmp_path, bundle, capsys, frames):
    write_cine(tmp_path / "in", frames_and_truth()[0])
    words = ["predict", bundle, tmp_path / "in", "-o", tmp_path / "out", f"--temporal-median={frames}"]
    assert main([*map(str, words), "--trust", "my_lab"]) == 2
    assert f"--temporal-median: {frames} is no odd number" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_spacing_can_be_given(tmp_path, bundle):
    frames, truth, _ = frames_and_truth()
    write_cine(tmp_path / "in", frames, spacing_cm=None)
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out").cases
    assert "no pixel spacing" in line.error
    assert "--spacing" in line.error
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out", spacing_mm=(0.2, 0.1)).cases
    assert line.status == "ok"
    with (tmp_path / "out" / line.outputs[2]).open() as file:
        assert float(next(csv.DictReader(file))["wall_mm2"]) == pytest.approx(0.02 * (truth[0] == 2).sum(), abs=1e-4)


def test_finished_cines_are_kept_and_damaged_ones_made_again(tmp_path, bundle):
    write_cine(tmp_path / "in", frames_and_truth()[0])
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out").cases
    (again,) = run(bundle, tmp_path / "in", tmp_path / "out", resume=True).cases
    assert again.status == "skipped"
    seg = tmp_path / "out" / line.outputs[0]
    before = pydicom.dcmread(seg)
    seg.write_bytes(seg.read_bytes()[:-2000])
    (again,) = run(bundle, tmp_path / "in", tmp_path / "out", resume=True).cases
    assert again.status == "ok"
    after = pydicom.dcmread(seg)
    assert (after.PixelData, after.SOPInstanceUID) == (before.PixelData, before.SOPInstanceUID)


def test_a_fan_plan_sees_nothing_beside_the_fan(tmp_path):
    frames, _, text = frames_and_truth()
    loud, quiet = frames.copy(), np.where(text > 0, 0, frames)
    bundle = load_bundle(make_bundle(tmp_path, intensity="fan_z_score"), trust=("my_lab",))
    made = []
    for name, given in (("loud", loud), ("quiet", quiet)):
        path = write_cine(tmp_path / name, given)
        members = members_of(bundle, torch.device("cpu"), CPU)
        made.append(predict_cine(path, bundle, members, device=torch.device("cpu"), options=CPU))
    np.testing.assert_array_equal(made[0].fan, made[1].fan)
    np.testing.assert_array_equal(made[0].prediction.labels.array, made[1].prediction.labels.array)


def test_a_single_frame_gets_a_seg_too(tmp_path, bundle):
    frames, truth, _ = frames_and_truth()
    source = pydicom.dcmread(write_cine(tmp_path / "in", frames[:1]))
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out", format=("dicom-seg",)).cases
    assert line.status == "ok", line.error
    seg = highdicom.seg.segread(tmp_path / "out" / line.outputs[0])
    found = seg.get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=True)
    np.testing.assert_array_equal(found[0], truth[0])
    assert line.volumes_ml is None and line.largest_area_mm2 is None
    assert line.area_mm2 == {"cyst": 0.25 * (truth[0] == 1).sum(), "wall": 0.25 * (truth[0] == 2).sum()}


def test_the_report_has_the_largest_area_of_a_cine(tmp_path, bundle):
    frames, truth, _ = frames_and_truth()
    frames[2:][frames[2:] == 230] = 150  # the wall is gone after two frames
    frames[0][truth[0] == 1] = 50
    write_cine(tmp_path / "in", frames)
    (line,) = run(bundle, tmp_path / "in", tmp_path / "out").cases
    assert line.volumes_ml is None and line.area_mm2 is None
    cyst = 0.25 * max((frame > 0).sum() for frame in truth[2:])
    assert line.largest_area_mm2 == {"cyst": cyst, "wall": 0.25 * (truth[0] == 2).sum()}
    stored = json.loads((tmp_path / "out/report.json").read_text())
    assert stored["cases"][0]["largest_area_mm2"] == line.largest_area_mm2


def test_an_overlay_is_asked_for_cines_only(tmp_path, bundle):
    frames, _, _ = frames_and_truth()
    write_cine(tmp_path / "in" / "a", frames)
    write_cine(tmp_path / "in" / "b", frames[:1])
    report = run(bundle, tmp_path / "in", tmp_path / "out", format=("gif", "nii.gz"))
    assert sorted(tuple(name.partition(".")[2] for name in line.outputs) for line in report.cases) == [
        ("gif", "nii.gz", "csv"),
        ("nii.gz",),
    ]
    assert [any("GIF is made of cines only" in note for note in line.warnings) for line in report.cases] == [
        line.outputs[0].endswith(".nii.gz") for line in report.cases
    ]
    (alone,) = run(bundle, tmp_path / "in" / "b", tmp_path / "alone", format=("gif",)).cases
    assert alone.status == "ok" and [name.partition(".")[2] for name in alone.outputs] == ["nii.gz"]
    assert any("GIF is made of cines only; written as nii.gz" in note for note in alone.warnings)
    assert (tmp_path / "alone" / alone.outputs[0]).is_file()


@pytest.mark.parametrize("intensity", ["fan_z_score", "none"])
def test_what_a_reference_has_outside_of_the_fan_is_not_scored(tmp_path, intensity, monkeypatch):
    frames, truth, _ = frames_and_truth(1)
    grid = Geometry((1, *SECTOR.shape), (1.0, 0.5, 0.5))
    reference = truth.copy()
    reference[0, 70:, :4] = 1
    assert not SECTOR.mask()[70:, :4].any()
    for name, array in (("image", frames), ("reference", reference), ("predicted", truth)):
        write_nifti(array, grid, tmp_path / f"{name}.nii.gz")
    case = Case("a", (tmp_path / "image.nii.gz",), tmp_path / "reference.nii.gz")
    plan = load_bundle(make_bundle(tmp_path, intensity=intensity), trust=("my_lab",)).plan
    data = Dataset("us", tmp_path, ("US",), LABELS, (case,))
    _, scores = clean_and_score(plan, data, [Validated(case, 0, tmp_path / "predicted.nii.gz")], workers=1)
    assert (scores["dice_before"]["cyst"] == 1.0) == (intensity == "fan_z_score")
    (tmp_path / "fold_0/validation").mkdir(parents=True)
    shutil.copy(tmp_path / "predicted.nii.gz", tmp_path / "fold_0/validation/a.nii.gz")
    monkeypatch.setattr(report, "read_dataset", lambda folder: data)
    page = report.write_report(tmp_path, tmp_path).read_text()
    assert ("cyst Dice 1.000" in page) == (intensity == "fan_z_score")


def test_a_validator_finds_no_fault_in_the_seg(tmp_path, bundle):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    frames, _, _ = frames_and_truth()
    write_cine(tmp_path / "in" / "a", frames)
    write_cine(tmp_path / "in" / "b", frames[:1])
    report = run(bundle, tmp_path / "in", tmp_path / "out", format=("dicom-seg",))
    assert len(report.cases) == 2
    for line in report.cases:
        command = ["dciodvfy", tmp_path / "out" / line.outputs[0]]
        said = subprocess.run(command, check=False, capture_output=True, text=True)
        assert "Segmentation" in said.stderr + said.stdout
        assert "Error" not in said.stderr + said.stdout


def test_memory_does_not_grow_with_the_frames(tmp_path, bundle):
    frames, _, _ = frames_and_truth(6)
    path = write_cine(tmp_path / "in", np.tile(frames, (40, 1, 1)))
    loaded = load_bundle(bundle, trust=("my_lab",))
    members = members_of(loaded, torch.device("cpu"), CPU)
    tracemalloc.start()
    try:
        made = predict_cine(path, loaded, members, device=torch.device("cpu"), options=CPU)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.prediction.labels.array.shape == (240, *SECTOR.shape)
    assert made.prediction.labels.array[-1].any()
    assert peak < frames[0].size * 240 / 2

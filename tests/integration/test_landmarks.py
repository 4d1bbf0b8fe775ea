"""Landmarks end to end on phantoms whose points are known: data set, training, prediction, scores, left and right."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medseg import read_dataset, train
from medseg.io.landmarks import read_landmarks, write_landmarks
from medseg.io.nifti import write_nifti
from medseg.types.geometry import Geometry
from medseg.types.labels import Label, Labels
from medseg.types.landmarks import Landmarks
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
from medseg.workflow.evaluate_landmarks import evaluate_landmarks
from medseg.workflow.predict import PredictOptions, load_model, predict_folder

NAMES = ("condyle_left", "condyle_right", "menton")
CONDYLES = Labels((Label("condyle_left", (1,)), Label("condyle_right", (2,))))
SPACING = (2.0, 1.0, 1.0)
CPU = PredictOptions(device="cpu")


def head(seed, *, flat):
    """A ridge in the middle, a spot on either side and a dark one on it: image, labels and points (z, y, x)."""
    rng = np.random.default_rng(seed)
    shape = (1, 24, 24) if flat else (10, 24, 24)
    middle = 11.5 + rng.uniform(-1.5, 1.5)
    sides = [middle + sign * rng.uniform(4, 6) for sign in (1, -1)]  # x grows to the patient's left
    rows = [*rng.uniform(5, 9, 2), rng.uniform(15, 19)]
    points = np.column_stack([np.zeros(3) if flat else rng.uniform(2, 7, 3), rows, [*sides, middle]])
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    near = [((grid - point) * SPACING) ** 2 for point in points]
    spots = [np.exp(-far.sum(-1) / (2 * 1.5**2)) for far in near]
    ridge = np.exp(-((grid[..., 2] - middle) ** 2) / (2 * 4**2))
    image = rng.normal(0, 0.05, shape) + spots[0] + spots[1] - 2 * spots[2] + ridge
    labels = (1 * (spots[0] > 0.5) + 2 * (spots[1] > 0.5)).astype(np.uint8)
    return (1000 * image).astype(np.int16), labels, points


def write_heads(folder, count, *, flat, labels=False, first=0):
    """A data set in the nnU-Net layout with `landmarksTr`; some scans run from left to right, some the other way."""
    for number in range(count):
        name, (image, values, points) = f"head_{number}", head(first + number, flat=flat)
        grid = Geometry(image.shape, SPACING, (-30.0, 12.0, 5.0))
        places = np.c_[points, np.ones(3)] @ grid.affine().T
        landmarks = Landmarks(NAMES, places[:, :3])
        if number % 2:
            image, values = image[:, :, ::-1], values[:, :, ::-1]
            x, y, z = (float(v) for v in (grid.affine() @ [0, 0, image.shape[2] - 1, 1])[:3])
            grid = replace(grid, origin_mm=(x, y, z), direction=((-1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))
        if number == 1:  # a landmark nobody could place
            landmarks = Landmarks(NAMES, np.where([[False], [False], [True]], np.nan, landmarks.points_mm))
        for part in ("imagesTr", "landmarksTr", *(["labelsTr"] if labels else [])):
            (folder / part).mkdir(parents=True, exist_ok=True)
        write_nifti(np.ascontiguousarray(image), grid, folder / "imagesTr" / f"{name}_0000.nii.gz")
        write_landmarks(landmarks, folder / "landmarksTr" / f"{name}.mrk.json")
        if labels:
            write_nifti(np.ascontiguousarray(values), grid, folder / "labelsTr" / f"{name}.nii.gz")
    header = {"channel_names": {"0": "CBCT"}, "file_ending": ".nii.gz", "landmarks": {"names": list(NAMES)}}
    if labels:
        header["labels"] = {"background": 0, "condyle_left": 1, "condyle_right": 2}
    (folder / "dataset.json").write_text(json.dumps(header))
    return folder


def plan_of(*, flat, labels=False, head_name="dsnt", steps=150, **inference):
    stride, kernel = ((1, 2, 2), (1, 3, 3)) if flat else ((2, 2, 2), (3, 3, 3))
    swaps = {"swap_axis": 2, "swap_points": [0, 1], **({"swap_values": [1, 2]} if labels else {})}
    terms = [LossTerm(1.0, head_name)] + ([LossTerm(1.0, "dice_ce")] if labels else [])
    heads = [Step(head_name, {"points": 3})] + ([Step("segmentation")] if labels else [])
    return Plan(
        "medseg.plan/1",
        "heads",
        ("CBCT",),
        CONDYLES if labels else Labels(()),
        Preprocess(SPACING, (Step("z_score"),)),
        Network(
            "unet",
            Topology(2 if flat else 3, (8, 16), ((1, 1, 1), stride), (kernel, kernel), (1, 1)),
            tuple(heads),
        ),
        Sampling((1, 24, 24) if flat else (12, 24, 24), 2),
        Training(
            tuple(terms),
            Step("adamw", {"lr": 0.01}),
            Step("poly"),
            (Step("mirror", {"axes": [1, 2], **swaps}),),
            1,
            steps_per_epoch=steps,
            precision="fp32",
            deep_supervision=False,
        ),
        Inference(mirror_axes=(1, 2), **inference),
        (),
        Origin("0.1.0", "0" * 64, Budget(1.0), "unet"),
        {},
        landmarks=NAMES,
    )


def train_and_find(tmp_path, plan, *, flat, labels):
    """A trained fold, and its landmarks for scans it has never seen, with what is true of them."""
    data = write_heads(tmp_path / "data", 10, flat=flat, labels=labels)
    unseen = write_heads(tmp_path / "unseen", 4, flat=flat, labels=labels, first=100)
    bundle = train(plan, data, tmp_path / "run", folds=0, device="cpu")
    report = predict_folder(bundle.root, [unseen / "imagesTr"], tmp_path / "out", options=CPU)
    assert [case.status for case in report.cases] == ["ok"] * 4
    scores = evaluate_landmarks(tmp_path / "out", unseen / "landmarksTr")
    assert len(scores) == 4 and all(case.status == "ok" for case in scores)
    return bundle, [error for case in scores for error in case.errors_mm.values()]


def untrained_errors(plan, unseen):
    """Distances of the middle of the scan, where a network that has learnt nothing puts its points."""
    data = read_dataset(unseen)
    errors = []
    for case in data.cases:
        shape = (1, 24, 24) if plan.network.topology.ndim == 2 else (10, 24, 24)
        centre = Geometry(shape, SPACING, (-30.0, 12.0, 5.0)).affine() @ [*((n - 1) / 2 for n in shape), 1]
        places = read_landmarks(case.landmarks).placed().values()
        errors += [float(np.linalg.norm(np.subtract(place, centre[:3]))) for place in places]
    return errors


@pytest.mark.slow
@pytest.mark.parametrize(("head_name", "steps"), [("dsnt", 120), ("heatmap", 200)])
def test_landmarks_of_flat_images_from_data_set_to_distances(tmp_path, head_name, steps):
    pairs = (NAMES[:2],)
    plan = plan_of(flat=True, head_name=head_name, steps=steps, swap_axis=2, swap_points=pairs)
    bundle, errors = train_and_find(tmp_path, plan, flat=True, labels=False)
    assert len(errors) == 11 and np.mean(errors) < 1.0 and max(errors) < 2.0
    assert np.mean(untrained_errors(plan, tmp_path / "unseen")) > 4.0

    summary = bundle.scores["landmarks"]["summary"]
    assert summary["cases"] == 2 and summary["all"]["mean_mm"] < 1.0 and summary["all"]["sdr"]["4"] == 1.0
    per_fold = json.loads((tmp_path / "run" / "fold_0" / "validation_scores.json").read_text())
    assert per_fold["landmarks"]["summary"] == summary and "dice" not in bundle.scores
    rows = (tmp_path / "run" / "fold_0" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])
    assert last["radial_error_mm"] < 1.0 and not any(name.startswith("dice") for name in last)
    assert (tmp_path / "run" / "fold_0" / "curves.png").is_file()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    stems = [f"head_{n}" for n in range(4)]
    assert names == {"report.json", *(f"{s}{end}" for s in stems for end in (".mrk.json", ".landmarks.csv"))}


@pytest.mark.slow
def test_landmarks_and_labels_of_volumes_by_one_network_with_sides_exchanged(tmp_path):
    swaps = {"swap_axis": 2, "swap_points": (NAMES[:2],), "swap_labels": (NAMES[:2],)}
    plan = plan_of(flat=False, labels=True, steps=150, **swaps)
    bundle, errors = train_and_find(tmp_path, plan, flat=False, labels=True)
    assert len(errors) == 11 and np.mean(errors) < 1.5
    assert np.mean(untrained_errors(plan, tmp_path / "unseen")) > 4.0
    assert min(bundle.scores["dice"].values()) > 0.5
    assert (tmp_path / "out" / "head_0.nii.gz").is_file() and (tmp_path / "out" / "head_0.mrk.json").is_file()

    model = load_model(bundle.root, "cpu")
    forgetful = replace(plan, inference=replace(plan.inference, swap_axis=None))
    mixed = replace(model, bundle=replace(model.bundle, plan=forgetful))
    scan = tmp_path / "unseen" / "imagesTr" / "head_0_0000.nii.gz"
    truth = read_landmarks(tmp_path / "unseen" / "landmarksTr" / "head_0.mrk.json").placed()
    away = {
        name: np.linalg.norm(np.subtract(mixed.predict(scan).landmarks.placed()[name], truth[name])) for name in NAMES
    }
    assert away["condyle_left"] > 3 and away["condyle_right"] > 3, "both sides end up in the middle"
    assert away["menton"] < 2

"""Cephalograms with two readers and a CBCT with landmarks, through data set, check, cache and evaluation.

pytest -m acceptance --data FOLDER tests/acceptance/test_real_landmarks.py
"""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow
from tiny_run import tiny_plan

import medseg
from medseg.io.cache import open_case
from medseg.metrics.landmarks import summarise_landmarks
from medseg.types.labels import Labels
from medseg.types.sides import paired_names
from medseg.workflow.check_points import point_faults
from medseg.workflow.train import prepare

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def cephalograms(real_data, tmp_path_factory):
    """30 images, the senior reader's points as a data set and the junior's in a folder of their own."""
    source, folder = real_data / "xray-ceph-landmarks", tmp_path_factory.mktemp("ceph")
    with (source / "landmarks.csv").open() as file:
        rows = list(csv.DictReader(file))[:30]
    names = [column.removesuffix("_x_mm") for column in rows[0] if column.endswith("_x_mm")]
    (folder / "imagesTr").mkdir()
    for row in rows:
        case = row["image"].removesuffix(".jpg")
        Pillow.open(source / "images" / row["image"]).convert("L").save(folder / f"imagesTr/{case}.png")
        for part, suffix in (("landmarksTr", ""), ("second", "_junior")):
            (folder / part).mkdir(exist_ok=True)
            points = [[float(row[f"{name}_{axis}_mm{suffix}"]) for axis in "xy"] + [0.0] for name in names]
            medseg.write_landmarks(medseg.Landmarks(tuple(names), np.array(points)), folder / part / f"{case}.csv")
    content = {"channel_names": {"0": "X-ray"}, "landmarks": {"names": names}, "spacing_mm": [0.3, 0.3]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder, rows, names


def test_cephalograms_are_a_data_set_without_faults(cephalograms):
    folder, _, names = cephalograms
    dataset = medseg.read_dataset(folder)
    assert len(dataset.cases) == 30 and list(dataset.landmarks) == names and len(names) == 19
    assert medseg.check_dataset(folder) == ()


def test_the_readers_differ_by_what_plain_loops_over_the_table_give(cephalograms):
    folder, rows, names = cephalograms
    summary = summarise_landmarks(medseg.evaluate_landmarks(folder / "second", folder / "landmarksTr"))
    for name in names:
        apart = [
            math.hypot(*(float(row[f"{name}_{axis}_mm"]) - float(row[f"{name}_{axis}_mm_junior"]) for axis in "xy"))
            for row in rows
        ]
        assert summary["landmarks"][name]["mean_mm"] == pytest.approx(sum(apart) / len(apart), abs=1e-6)
        assert summary["landmarks"][name]["sdr"]["2"] == pytest.approx(sum(d <= 2 for d in apart) / len(apart))


def test_points_of_cephalograms_reach_the_network_grid(cephalograms, tmp_path):
    folder, rows, names = cephalograms
    dataset = medseg.read_dataset(folder)
    dataset = replace(dataset, cases=dataset.cases[:2])
    plan = tiny_plan(ndim=2, channels=("X-ray",))
    preprocess = replace(plan.preprocess, spacing_mm=(None, 0.6, 1.2), orientation="stored")
    plan = replace(plan, labels=Labels(()), landmarks=tuple(names), preprocess=preprocess)
    cache = prepare(plan, dataset, tmp_path, workers=1)
    for case in dataset.cases:
        row = next(row for row in rows if row["image"] == f"{case.id}.jpg")
        made = open_case(cache, case.id)
        dy, dx = made.geometry.spacing_mm[1:]
        for name, point in zip(names, made.points, strict=True):
            x, y = (float(row[f"{name}_{axis}_mm"]) for axis in "xy")
            edge = [0.15 / step for step in (dy, dx)]  # half a pixel of the image
            expected = (0, y / dy + edge[0] - 0.5, x / dx + edge[1] - 0.5)
            assert point == pytest.approx(expected, abs=1e-3)


def test_landmarks_of_a_cbct_lie_in_it_with_left_on_the_left(real_data, tmp_path):
    folder = real_data / "cbct-icat"
    known = json.loads((folder / "landmarks.json").read_text())
    places = {
        name.replace("_or_lowx", "").replace("_or_highx", ""): point["LPS_mm"]
        for name, point in known.items()
    }  # fmt: skip
    points = medseg.Landmarks(tuple(places), np.array(list(places.values()), float))
    medseg.write_landmarks(points, tmp_path / "a.mrk.json")
    image = medseg.read_image([folder / "label_native.nii.gz"])
    case = medseg.Case("a", (), landmarks=tmp_path / "a.mrk.json")
    dataset = medseg.Dataset("cbct", tmp_path, ("CBCT",), Labels(()), (case,), landmarks=points.names)
    faults, placed = point_faults(dataset, case, image)
    assert faults == [] and placed == set(points.names)
    sides = paired_names(points.names)
    assert sides.unpaired == () and ("condylion_left", "condylion_right") in sides.pairs

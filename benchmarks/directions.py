"""Slices across one axis and across three, and smoothed contours, on the hippocampus.

    python benchmarks/directions.py --data DATA --out RUNS --steps 420 --seeds 0

DATA holds mr-hippocampus. A small 2D U-Net learns slices across z, another slices across z, y and x, on the first 45
scans; each predicts the next 15 across z and across all three, then with contours smoothed by 1 mm. Prints mean Dice
and NSD at 1 mm over scans and classes. Two minutes on two cores.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medseg.io.datasets import read_dataset
from medseg.io.images import read_image, read_labels
from medseg.metrics.surface import nsd
from medseg.postprocess.contours import refine_contours
from medseg.training.loop import fit
from medseg.types.dataset import Case, Dataset
from medseg.types.plan import Plan
from medseg.types.result import Member, ModelBundle
from medseg.workflow.check_plan import load_plan
from medseg.workflow.model import Model, PredictOptions, members_of
from medseg.workflow.train import prepare

PLAN = Path(__file__).parents[1] / "plans/hippocampus/2d-8gib-20min.json"
TRAIN, TEST = 45, 15
CPU = torch.device("cpu")


def small_plan(directions: tuple[str, ...], steps: int, seed: int) -> Plan:
    """Eight first channels, ten slices of 48 x 48 per step, no augmentation."""
    plan = load_plan(PLAN)
    topology = plan.network.topology
    topology = replace(topology, channels=tuple(8 * n // topology.channels[0] for n in topology.channels))
    return replace(
        plan,
        network=replace(plan.network, topology=topology),
        sampling=replace(plan.sampling, patch=(1, 48, 48), batch=10, directions=directions),
        training=replace(plan.training, epochs=2, steps_per_epoch=steps // 2, augment=(), seed=seed),
    )


def scores(model: Model, dataset: Dataset, cases: list[Case], *, smooth: bool) -> tuple[float, float]:
    """Mean Dice and NSD at 1 mm."""
    rows = []
    for case in cases:
        reference = read_labels(case.label, dataset.labels).array
        found = model.predict(read_image(case.images, channels=model.bundle.plan.channels)).labels
        array = (refine_contours(found) if smooth else found).array
        for value in (1, 2):
            one, two = array == value, reference == value
            overlap = 2 * (one & two).sum() / max(1, one.sum() + two.sum())
            rows.append((overlap, nsd(one, two, found.geometry.spacing_mm)))
    return tuple(np.mean(rows, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    wanted = parser.parse_args()
    dataset = read_dataset(wanted.data / "mr-hippocampus")
    cases = [case for case in dataset.cases if case.label is not None][: TRAIN + TEST]
    dataset = replace(dataset, cases=tuple(cases))
    print("| seed | trained across | predicted across | Dice | NSD | Dice smoothed | NSD smoothed |")
    print("|---|---|---|---|---|---|---|")
    for seed in wanted.seeds:
        for learnt in ((), ("z", "y", "x")):
            plan = small_plan(learnt, wanted.steps, seed)
            run = wanted.out / f"{''.join(learnt) or 'z'}-{seed}-{wanted.steps}"
            cache = prepare(plan, dataset, wanted.out)
            weights = fit(plan, [case.id for case in cases[:TRAIN]], (), cache, run, device=CPU)
            bundle = ModelBundle(run, plan, (Member("all", weights.name, ""),), {})
            for asked in (("z",), ("z", "y", "x")):
                options = PredictOptions(directions=asked, clean=False)
                model = Model(bundle, members_of(bundle, CPU, options), CPU, options)
                found = [scores(model, dataset, cases[TRAIN:], smooth=smooth) for smooth in (False, True)]
                numbers = " | ".join(f"{value:.3f}" for pair in found for value in pair)
                print(f"| {seed} | {' '.join(learnt) or 'z'} | {' '.join(asked)} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()

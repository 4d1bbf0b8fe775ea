"""How much a short training needs to be held back: augmentation, weight decay, several networks, on cases apart.

    python benchmarks/short_runs.py --data DATA --out RUNS

DATA is the hippocampus set in the layout of nnU-Net with nnU-Net's splits_final.json. Of the 160 training cases of its
fold 0, 40 are drawn (seed 6) to train on and the other 120 to validate on; the 40 validation cases of the fold are left
out, so that what is chosen here may be judged on them. Every variant takes the plan for one hour, cut to 1,880 steps
(three networks share them), so that each case is seen as often as in an hour with 160 cases. Prints Dice per class and
paired tests.
"""

import argparse
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from comparison import compare, overlap

import medseg

EPOCHS, STEPS, TRAINED = 8, 235, 40


@dataclass(frozen=True)
class Variant:
    """What of the plan is changed: options of the augmentation `affine`, the weight decay, and how many networks share
    the steps.
    """

    affine: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float | None = None
    members: int = 1


NARROW = {"degrees": 15.0, "scale_low": 0.85, "scale_high": 1.2}
VARIANTS = {
    "p 0.2, decay 0.01": Variant({"p": 0.2}, 0.01),
    "p 0.6, decay 0.01": Variant({"p": 0.6}, 0.01),
    "p 0.2, decay 0.5": Variant({"p": 0.2}, 0.5),
    "p 0.2 and narrow, decay 0.01": Variant({"p": 0.2, **NARROW}, 0.01),
    "three networks of 627 steps": Variant({"p": 0.2}, 0.01, members=3),
}


def prepare(source: Path, out: Path) -> None:
    """The training cases of fold 0, with a split of their own."""
    cases = sorted(json.loads((source / "splits_final.json").read_text(encoding="utf-8"))[0]["train"])
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for case in cases:
            (out / folder / f"{case}{ending}").write_bytes((source / folder / f"{case}{ending}").read_bytes())
    trained = sorted(random.Random(6).sample(cases, TRAINED))
    split = [{"train": trained, "val": [case for case in cases if case not in trained]}]
    (out / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
    described = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    (out / "dataset.json").write_text(json.dumps({**described, "numTraining": len(cases)}), encoding="utf-8")


def planned(variant: Variant, dataset: Path, out: Path):
    """The plan for an hour on the CPU, cut and changed."""
    file = out / "plan" / "plan-3d_fullres.json"
    if not file.exists():
        medseg.plan(dataset, out / "plan", budget=medseg.Budget(8.0, hours=1.0, device="cpu"))
    plan = medseg.load_plan(file)
    spatial, *rest = plan.training.augment
    decay = plan.training.optimizer.options | {"weight_decay": variant.weight_decay}
    epochs, size = (EPOCHS, STEPS) if variant.members == 1 else (3, round(EPOCHS * STEPS / variant.members / 3))
    training = replace(
        plan.training,
        epochs=epochs,
        steps_per_epoch=size,
        ema=round(1 - 50 / (epochs * size), 4),
        members=variant.members,
        augment=(replace(spatial, options={**spatial.options, **variant.affine}), *rest),
        optimizer=replace(plan.training.optimizer, options=decay),
    )
    budget = replace(plan.origin.budget, hours=None)
    return replace(plan, training=training, origin=replace(plan.origin, budget=budget))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    dataset = wanted.out / "data"
    if not (dataset / "dataset.json").exists():
        prepare(wanted.data, dataset)
    results = {}
    for number, (name, variant) in enumerate(VARIANTS.items()):
        run = wanted.out / f"run{number}"
        medseg.write_record(planned(variant, dataset, wanted.out), run / "plan.json")
        medseg.train(run / "plan.json", dataset, run, folds=0, device="cpu")
        results[name] = {label: dice for label, (dice, _) in overlap(run, dataset, 0).items()}
    compare("Hippocampus, 40 cases to learn from, 120 to validate on", results)


if __name__ == "__main__":
    main()

"""Take a plan from the shelf, make it small, train it for a minute and look at every epoch.

    python examples/train_small.py [OUT]

A plan is data: `dataclasses.replace` changes it and checks it again. The result is a model bundle, but no good model.
"""

import sys
from dataclasses import replace
from pathlib import Path

import medseg

ROOT = Path(__file__).resolve().parent.parent
DATASET = ROOT / "examples" / "data" / "hippocampus"
ONES, TWOS, THREES = (1, 1, 1), (2, 2, 2), (3, 3, 3)


def small_plan() -> medseg.Plan:
    """The plan for 8 GiB with a network of two stages and forty steps."""
    plan = medseg.load_plan(ROOT / "plans" / "hippocampus" / "3d_fullres-8gib.json")
    topology = medseg.Topology(ndim=3, channels=(8, 16), strides=(ONES, TWOS), kernels=(THREES, THREES), blocks=(1, 1))
    return replace(
        plan,
        name="small",
        network=replace(plan.network, topology=topology),
        sampling=replace(plan.sampling, patch=(32, 32, 32), batch=2),
        training=replace(
            plan.training, epochs=4, steps_per_epoch=10, optimizer=medseg.Step("adamw", {"lr": 0.01}), ema=None
        ),
    )


def main(out: Path) -> None:
    """Train fold 0; a hook is any function that takes the end of an epoch, and may return "stop"."""
    bundle = medseg.train(
        small_plan(), DATASET, out, folds=0, device="cpu", hooks=[lambda end: print(end.epoch, dict(end.metrics))]
    )
    print(f"mean Dice of fold 0: {bundle.scores['mean_dice']}")
    print(f"model: {bundle.root}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-output/small"))

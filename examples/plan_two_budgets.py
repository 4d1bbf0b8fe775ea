"""Plan the same data set for a small and for a large GPU, and show what differs.

    python examples/plan_two_budgets.py [OUT]

Nothing is trained and no GPU is needed: the memory of a training step is worked out, not measured.
"""

import sys
from pathlib import Path

import medseg

DATASET = Path(__file__).resolve().parent / "data" / "hippocampus"


def main(out: Path) -> None:
    """Plan twice, then print patch, batch and network of each plan with the planner's reasons."""
    for vram in (2.0, 24.0):
        plans = medseg.plan(DATASET, out / f"{vram:g}gib", budget=medseg.Budget(vram_gib=vram))
        print(f"--- {vram:g} GiB: {', '.join(plan.name for plan in plans)}")
        for plan in plans:
            topology = plan.network.topology
            print(
                f"{plan.name}: patch {plan.sampling.patch}, batch {plan.sampling.batch}, {topology.channels} channels"
            )
            for field in ("preprocess.spacing_mm", "sampling.patch", "sampling.batch", "inference.mirror_axes"):
                print(f"  {field}: {plan.reasons.get(field, '-')}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-output/plans"))

"""Cross-validate every plan of a data set, keep the best and report on it.

    python pipelines/cross_validate.py DATA OUT --vram 8 [--hours 2] [--preset unet] [--device auto]

Plans (2d, 3d_fullres, ...) are trained on all five folds each; every case is thereby predicted once by networks that
never saw it. Prints the mean Dice of each plan over these predictions and writes a page for the best. The time is five
times `--hours` per plan; a run that was stopped continues where it was.
"""

import argparse
from pathlib import Path

import medseg


def main() -> None:
    """Plan, train all folds of all plans, compare."""
    parser = argparse.ArgumentParser(description="cross-validate all plans of a data set")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vram", type=float, required=True, help="GiB")
    parser.add_argument("--hours", type=float, help="training time of one fold")
    parser.add_argument("--preset", default="unet")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    plans = made_before(arguments.out, arguments.vram, arguments.hours, arguments.preset)
    if not plans:
        device = None if arguments.device == "auto" else arguments.device
        budget = medseg.Budget(vram_gib=arguments.vram, hours=arguments.hours, device=device)
        plans = medseg.plan(arguments.dataset, arguments.out, budget=budget, preset=arguments.preset)
    results = {}
    for plan in plans:
        run = arguments.out / plan.name.rpartition("-")[2]  # as the file of the plan is called; a name may be any text
        bundle = medseg.train(plan, arguments.dataset, run, folds="cv", device=arguments.device)
        page = medseg.write_report(run, arguments.dataset)
        dice = bundle.scores["mean_dice"]  # over cases the network did not see; None where no case has any class
        said = "undefined"
        if isinstance(dice, float):
            results[plan.name], said = dice, f"{dice:.4f}"
        print(f"{plan.name}: mean Dice {said} out of fold, {page}", flush=True)
    if not results:
        raise SystemExit("no plan has a Dice: no case shows any class")
    best = max(results, key=lambda name: results[name])
    run = arguments.out / best.rpartition("-")[2]
    print(f"best: {best}, predict with: medseg predict {run} SCANS -o OUT")


def made_before(out: Path, vram: float, hours: float | None, preset: str) -> tuple[medseg.Plan, ...]:
    """Plans of an earlier, interrupted call: planning again could time the steps differently."""
    plans = tuple(medseg.load_plan(path) for path in sorted(out.glob("plan-*.json")))
    for plan in plans:
        budget = plan.origin.budget
        if (budget.vram_gib, budget.hours, plan.origin.preset) != (vram, hours, preset):
            raise SystemExit(f"{out} holds plans for other options: give the same ones, or another folder")
    return plans


if __name__ == "__main__":
    try:
        main()
    except medseg.MedsegError as error:
        raise SystemExit(f"error: {error}") from None

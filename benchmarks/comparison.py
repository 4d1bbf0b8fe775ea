"""What the comparisons of networks share: designs, one time budget, seeds, paired tests, tables.

Every design is planned for the same memory and minutes on the same device, so that a network that needs longer steps
gets fewer of them. Seed s trains on fold s: no case is tested by a network that has seen it or its patient.
"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.stats import ttest_rel, wilcoxon

import medseg

Values = Mapping[str, float]  # one number per case


@dataclass(frozen=True)
class Design:
    """A row of a comparison: what is asked of `medseg plan`."""

    name: str
    preset: str
    options: Mapping[str, object] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    config: str | None = None  # "3d_fullres" where a data set has 2D plans too


def arguments(description, *, minutes=20.0):
    """The options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for prepared data and runs; a run is continued")
    parser.add_argument("--minutes", type=float, default=minutes, help="of training per network and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--vram", type=float, default=8.0, help="GiB")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="two stages and ten steps, to try the program")
    parser.add_argument("--only", nargs="*", help="names of designs")
    return parser


def chosen(designs: Sequence[Design], wanted) -> list[Design]:
    """The designs that --only names."""
    return [design for design in designs if not wanted.only or design.name in wanted.only]


def trained(design: Design, dataset: Path, wanted, seed: int, *, folds: int = 5) -> Path:
    """Train one design with one seed on its fold; returns the run's folder."""
    run = wanted.out / f"{design.name}-{wanted.minutes:g}min-seed{seed}"
    file = run / "plan.json"
    if not file.exists():
        plan = planned(design, dataset, wanted)
        medseg.write_record(replace(plan, training=replace(plan.training, seed=seed)), file)
    medseg.train(file, dataset, run, folds=seed % folds, device=wanted.device)
    return run


def planned(design: Design, dataset: Path, wanted):
    """The design's plan, made once: every seed trains the same network for the same number of steps."""
    folder = wanted.out / f"{design.name}-{wanted.minutes:g}min-plan"
    file = folder / "chosen.json"
    if not file.exists():
        hours = None if wanted.tiny else wanted.minutes / 60
        budget = medseg.Budget(wanted.vram, hours=hours, device=wanted.device)
        own = {"preset": design.preset, "options": design.options, "heads": design.heads}
        plans = medseg.plan(dataset, folder, budget=budget, **own)
        fitting = [plan for plan in plans if design.config is None or plan.name.endswith(f"-{design.config}")]
        if len(fitting) != 1:
            found = ", ".join(plan.name for plan in plans)
            raise SystemExit(f"{design.name}: {design.config or 'one plan'} is not among {found}: {plans[0].reasons}")
        medseg.write_record(tiny(fitting[0]) if wanted.tiny else fitting[0], file)
    return medseg.load_plan(file)


def tiny(plan):
    """The plan with the first two stages of its network and ten steps."""
    shape = plan.network.topology
    parts = {name: getattr(shape, name)[:2] for name in ("strides", "kernels", "blocks")}
    topology = replace(shape, channels=(8, 16), **parts)
    patch = (
        plan.sampling.patch
        if plan.landmarks
        else tuple(min(n, 32 if shape.ndim == 3 else 64) for n in plan.sampling.patch)
    )
    steps = replace(plan.training, epochs=2, steps_per_epoch=5, ema=None, optimizer=medseg.Step("adamw", {"lr": 1e-3}))
    return replace(
        plan,
        network=replace(plan.network, topology=topology),
        sampling=replace(plan.sampling, patch=patch, batch=2),
        training=steps,
    )


def overlap(run: Path, dataset: Path, seed: int, *, folds: int = 5) -> dict[str, tuple[Values, Values]]:
    """Dice and HD95 per class and case of the fold's whole images, without cleaning."""
    found: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    made = run / f"fold_{seed % folds}" / "validation"
    references = run / f"references_{seed % folds}"
    references.mkdir(exist_ok=True)
    for file in made.glob("*.nii.gz"):
        name = file.name.removesuffix(".nii.gz")
        (source,) = (path for path in (dataset / "labelsTr").iterdir() if path.name.split(".")[0] == name)
        link = references / source.name
        if not link.exists():
            link.hardlink_to(source)
    labels = medseg.read_dataset(dataset).labels
    for case in medseg.evaluate(made, references, labels=labels):
        if case.status != "ok":
            raise SystemExit(f"{case.case_id}: {case.error}")
        for name, scores in case.labels.items():
            dice, distance = found.setdefault(name, ({}, {}))
            if scores.state != "both_empty":
                dice[case.case_id], distance[case.case_id] = scores.dice, scores.hd95_mm
    return found


def radial(run: Path, dataset: Path, seed: int, *, folds: int = 5) -> dict[str, Values]:
    """Distance to the reference per landmark and case; NaN where a landmark was not found."""
    made = run / f"fold_{seed % folds}" / "validation"
    found: dict[str, dict[str, float]] = {}
    for case in medseg.evaluate_landmarks(made, dataset / "landmarksTr"):
        if case.status == "ok":
            for name, error in case.errors_mm.items():
                found.setdefault(name, {})[case.case_id] = error
    return found


def mean_sd(values: Values) -> str:
    """Mean and standard deviation over cases; infinite and missing ones are counted beside."""
    known = [value for value in values.values() if np.isfinite(value)]
    lost = len(values) - len(known)
    text = f"{np.mean(known):.3f} ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else "too few"
    return text + (f" ({lost} without)" if lost else "")


def paired_tests(results: Mapping[str, Values]) -> list[str]:
    """Every pair of designs on the cases that both have: t-test and Wilcoxon, p-values after Holm."""
    rows = []
    for (one, first), (other, second) in itertools.combinations(results.items(), 2):
        cases = sorted(c for c in first.keys() & second.keys() if np.isfinite(first[c]) and np.isfinite(second[c]))
        gap = np.array([first[c] - second[c] for c in cases])
        if len(gap) < 2 or not gap.any():
            rows.append((f"{one} - {other}", len(gap), 0.0, 1.0, 1.0))
            continue
        t = ttest_rel([first[c] for c in cases], [second[c] for c in cases]).pvalue
        rows.append((f"{one} - {other}", len(gap), float(gap.mean()), float(t), float(wilcoxon(gap).pvalue)))
    t, w = holm([row[3] for row in rows]), holm([row[4] for row in rows])
    head = ["| pair | cases | mean difference | t, p (Holm) | Wilcoxon, p (Holm) |", "|---|---|---|---|---|"]
    return head + [
        f"| {name} | {n} | {gap:+.4f} | {a:.4f} | {b:.4f} |"
        for (name, n, gap, _, _), a, b in zip(rows, t, w, strict=True)
    ]


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the given order (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, p[i] * (len(p) - rank)))
        corrected[i] = worst
    return corrected


def save(results: object, file: Path) -> None:
    """Keep the numbers behind the tables."""
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def compare(title: str, results: Mapping[str, Mapping[str, Values]], *, pooled: bool = True) -> None:
    """A table of designs and classes, and paired tests of the mean over classes of every case."""
    print(f"\n## {title}\n")
    names = list(dict.fromkeys(name for rows in results.values() for name in rows))
    print("| network | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
    for design, rows in results.items():
        print(f"| {design} | " + " | ".join(mean_sd(rows.get(name, {})) for name in names) + " |")
    if pooled and len(results) > 1:
        print()
        print("\n".join(paired_tests({design: case_means(rows) for design, rows in results.items()})))


def case_means(rows: Mapping[str, Values]) -> dict[str, float]:
    """Mean over classes of every case that has one."""
    cases = dict.fromkeys(case for values in rows.values() for case in values)
    kept = {case: [v[case] for v in rows.values() if case in v and np.isfinite(v[case])] for case in cases}
    return {case: float(np.mean(values)) for case, values in kept.items() if values}


def merged(parts: Sequence[Mapping[str, Values]]) -> dict[str, dict[str, float]]:
    """Cases of several seeds together; a case stands once, since every seed has its own fold."""
    found: dict[str, dict[str, float]] = {}
    for part in parts:
        for name, values in part.items():
            found.setdefault(name, {}).update(values)
    return found


def one_of(scores: Mapping[str, tuple[Values, Values]], number: int) -> dict[str, Values]:
    """Dice (0) or HD95 (1) of what `overlap` returns."""
    return {name: pair[number] for name, pair in scores.items()}


def over_seeds(runs: Sequence[Mapping[str, Values]]) -> str:
    """The mean of every run, which has a seed and a fold of its own, and their standard deviation."""
    means = [float(np.mean(list(case_means(run).values()))) for run in runs]
    spread = f", SD {np.std(means, ddof=1):.3f}" if len(means) > 1 else ""
    return "Dice per seed and fold " + " ".join(f"{mean:.3f}" for mean in means) + spread


def overlap_table(designs: Sequence[Design], dataset: Path, wanted, title: str) -> None:
    """Train every design with every seed, and print Dice and HD95."""
    dice, distance = {}, {}
    for design in designs:
        pairs = [overlap(trained(design, dataset, wanted, seed), dataset, seed) for seed in wanted.seeds]
        print(f"{design.name}: {over_seeds([one_of(pair, 0) for pair in pairs])}", flush=True)
        dice[design.name] = merged([one_of(pair, 0) for pair in pairs])
        distance[design.name] = merged([one_of(pair, 1) for pair in pairs])
        print(f"{design.name}: Dice {mean_sd(case_means(dice[design.name]))}", flush=True)
    compare(f"{title}: Dice", dice)
    compare(f"{title}: HD95", distance)
    save({"dice": dice, "hd95": distance}, wanted.out / "results.json")

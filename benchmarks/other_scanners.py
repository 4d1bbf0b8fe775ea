"""Scans that look otherwise than those that were learnt from: instance and batch norm, with and without AdaIN.

    python benchmarks/other_scanners.py --data DATA --out RUNS --minutes 5

DATA holds mr-hippocampus. One plan, made for the minutes with instance norm, is trained with each norm, with and
without `attention=adain`, for the same steps on fold 0 (seed 0); weights with and without it are the same. The fold's
scans are then predicted as they are and changed: contrast by a power of their values between least and largest, blur,
noise. Prints Dice per network and class, and paired tests between the networks.
"""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from comparison import Design, arguments, compare, planned
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

import medseg

NETWORKS = {
    "instance": {},
    "instance, adain": {"attention": "adain"},
    "batch": {"norm": "batch"},
    "batch, adain": {"norm": "batch", "attention": "adain"},
}
LOOKS = {
    "as they are": lambda x, _: x,
    "power 0.5": lambda x, _: x**0.5,
    "power 2": lambda x, _: x**2,
    "blur of 1 mm": lambda x, _: gaussian_filter(x, 1.0),  # voxels are 1 mm
    "noise of half the deviation": lambda x, draw: x + 0.5 * x.std() * draw.standard_normal(x.shape),
}


def trained(name: str, plan, dataset: Path, wanted) -> Path:
    """The run of the plan with these options; a finished one is left as it is."""
    run = wanted.out / f"{name}-{wanted.minutes:g}min"
    if not (run / "plan.json").exists():
        options = {**plan.network.options, **NETWORKS[name]}
        budget = replace(plan.origin.budget, hours=None)
        own = replace(plan, network=replace(plan.network, options=options), origin=replace(plan.origin, budget=budget))
        medseg.write_record(own, run / "plan.json")
    medseg.train(run / "plan.json", dataset, run, folds=0, device=wanted.device)
    return run


def changed(look: str, cases: list[str], dataset: Path, out: Path) -> tuple[Path, Path]:
    """Folders of the changed scans and of their references."""
    scans, references = out / "scans" / look, out / "references"
    for folder in (scans, references):
        folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for case in cases:
        image = nibabel.load(dataset / "imagesTr" / f"{case}_0000.nii.gz")
        values = np.asarray(image.dataobj, np.float64)
        low, high = values.min(), values.max()
        values = LOOKS[look]((values - low) / (high - low), draw)
        made = nibabel.Nifti1Image(values.astype(np.float32), image.affine)
        made.header.set_xyzt_units("mm")
        nibabel.save(made, scans / f"{case}_0000.nii.gz")
        link = references / f"{case}.nii.gz"
        if not link.exists():
            link.write_bytes((dataset / "labelsTr" / link.name).read_bytes())
    return scans, references


def overlap(run: Path, scans: Path, references: Path, labels, device: str) -> dict[str, dict[str, float]]:
    """Dice per class and case of what the run predicts."""
    out = run / "predicted" / scans.name
    report = medseg.predict_folder(run, [scans], out, options=medseg.PredictOptions(device=device))
    failed = [case.case_id for case in report.cases if case.status != "ok"]
    found: dict[str, dict[str, float]] = {}
    for case in medseg.evaluate(out, references, labels=labels):
        if failed or case.status != "ok":
            raise SystemExit(f"{failed or case.case_id}: {case.error}")
        for name, scores in case.labels.items():
            found.setdefault(name, {})[case.case_id] = scores.dice
    return found


def _weights(run: Path) -> list[bytes]:
    """What the network learnt, without what adain keeps; sorted, since its layers change the names of others."""
    tensors = load_file(run / "bundle" / "members" / "fold_0.safetensors")
    kept = {name.removesuffix("seen") for name in tensors if name.endswith("seen")}
    return sorted(t.numpy().tobytes() for name, t in tensors.items() if not name.startswith(tuple(kept)))


def main() -> None:
    wanted = arguments(__doc__, minutes=5.0).parse_args()
    dataset = wanted.data / "mr-hippocampus"
    plan = planned(Design("unet", "unet", config="3d_fullres"), dataset, wanted)
    runs = {name: trained(name, plan, dataset, wanted) for name in NETWORKS}
    print(f"batch {plan.sampling.batch}, steps {plan.training.epochs * plan.training.steps_per_epoch}")
    for norm in ("instance", "batch"):
        own, with_it = (_weights(runs[name]) for name in (norm, f"{norm}, adain"))
        print(f"{norm}: the same weights with adain: {own == with_it}")
    validated = (runs["instance"] / "fold_0" / "validation").glob("*.nii.gz")
    cases = sorted(file.name.removesuffix(".nii.gz") for file in validated)
    labels = medseg.read_dataset(dataset).labels
    for look in LOOKS:
        scans, references = changed(look, cases, dataset, wanted.out)
        compare(
            f"Hippocampus, {len(cases)} scans, {look}",
            {name: overlap(run, scans, references, labels, wanted.device) for name, run in runs.items()},
        )


if __name__ == "__main__":
    main()

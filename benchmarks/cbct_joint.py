"""CBCT: bones, teeth and canal together with five landmarks in one network, on synthetic scans and a real one.

    python benchmarks/cbct_joint.py --data DATA --out RUNS --minutes 40 --seeds 0 --phantoms 40

DATA holds cbct-synthetic (whose generator makes the phantoms, one per number) and cbct-icat. Prints Dice per structure
and landmark errors in mm of the fold that was not trained on, and both for the real scan, whose silver labels know two
structures. `joint` is compared with networks for labels alone and for landmarks alone.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from comparison import Design, arguments, case_means, chosen, compare, mean_sd, merged, overlap, radial, save, trained

import medseg

STRUCTURES = {
    "background": 0,
    "upper_skull": 1,
    "mandible": 2,
    "upper_teeth": 3,
    "lower_teeth": 4,
    "mandibular_canal": 5,
}
NAMES = {  # of the generator, whose x index grows to the patient's left; and of the real scan
    "condylion_right": ("condylion_low_x", "condylion_right_or_lowx"),
    "condylion_left": ("condylion_high_x", "condylion_left_or_highx"),
    "menton": ("menton", "menton"),
    "upper_incisal": ("upper_incisal", "upper_incisal_edge"),
    "lower_incisal": ("lower_incisal", "lower_incisal_edge"),
}
SILVER = {"upper skull and teeth": ((1, 3), 1), "mandible, lower teeth, canal": ((2, 4, 5), 2)}
DESIGNS = (  # of landmarks there is one plan, whose name depends on how coarse its voxels must be
    Design("joint", "unet"),
    Design("labels", "unet", config="3d_fullres"),
    Design("landmarks", "unet"),
)


def prepare(source: Path, out: Path, phantoms: int) -> None:
    """Phantoms as three data sets: with labels and landmarks, with labels, with landmarks."""
    raw = out / "phantoms"
    if len(list(raw.glob("*_seg.nii.gz"))) < phantoms:
        script, labels = source / "make_cbct_phantom.py", source / "PostDentalSurgery_Segmentation.nii.gz"
        seeds = f"0-{phantoms - 1}"
        subprocess.run([sys.executable, script, labels, raw, "--seeds", seeds, "--fov", "full"], check=True)
    for kind in ("joint", "labels", "landmarks"):
        folder = out / f"data-{kind}"
        for part in ("imagesTr", "labelsTr", "landmarksTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for file in sorted(raw.glob("*_0000.nii.gz"))[:phantoms]:
            case = file.name.removesuffix("_0000.nii.gz")
            link(file, folder / "imagesTr" / file.name)
            if kind != "landmarks":
                link(raw / f"{case}_seg.nii.gz", folder / "labelsTr" / f"{case}.nii.gz")
            if kind != "labels":
                medseg.write_landmarks(phantom_points(file), folder / "landmarksTr" / f"{case}.mrk.json")
        description = {"name": f"CBCT-{kind}", "channel_names": {"0": "CBCT"}, "file_ending": ".nii.gz"}
        description |= {"labels": STRUCTURES} if kind != "landmarks" else {}
        description |= {"landmarks": {"names": list(NAMES)}} if kind != "labels" else {}
        (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def link(source: Path, target: Path) -> None:
    if not target.exists():
        target.hardlink_to(source)


def phantom_points(scan: Path) -> medseg.Landmarks:
    """The generator's voxel indices (x, y, z) as points in LPS mm."""
    stated = json.loads(scan.with_name(scan.name.replace("_0000.nii.gz", ".json")).read_text(encoding="utf-8"))
    index = stated["landmarks_voxel_xyz"]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ nibabel.load(scan).affine
    size = np.array(nibabel.load(scan).shape[:3])
    rows = []
    for own, _ in NAMES.values():
        at = np.array(index.get(own, [np.nan] * 3), float)
        inside = ((at >= 0) & (at <= size - 1)).all()
        rows.append(affine[:3, :3] @ at + affine[:3, 3] if inside else [np.nan] * 3)
    return medseg.Landmarks(tuple(NAMES), np.array(rows, float))


def real_scan(run: Path, source: Path, wanted) -> None:
    """Dice against the silver labels and landmark errors of the scan from a patient."""
    out = run / "icat"
    options = replace(medseg.PredictOptions(), device=wanted.device)
    report = medseg.predict_folder(run / "bundle", [source / "DICOM"], out, options=options)
    (case,) = report.cases
    if case.status != "ok":
        raise SystemExit(f"{case.case_id}: {case.error}")
    maps = list(out.glob("*.nii.gz"))
    if maps:
        found, truth = (upright(file) for file in (maps[0], source / "label_native.nii.gz"))
        if found.shape != truth.shape or not np.allclose(found.affine, truth.affine, atol=1e-2):
            raise SystemExit("the silver labels are on another grid than the scan")
        predicted, reference = (np.asarray(image.dataobj) for image in (found, truth))
        for name, (ours, silver) in SILVER.items():
            a, b = np.isin(predicted, ours), reference == silver
            print(f"  {name}: Dice {2 * (a & b).sum() / (a.sum() + b.sum()):.3f}")
    for file in out.glob("*.mrk.json"):
        points = medseg.read_landmarks(file).placed()
        stated = json.loads((source / "landmarks.json").read_text(encoding="utf-8"))
        for name, (_, theirs) in NAMES.items():
            error = np.linalg.norm(np.subtract(points.get(name, [np.nan] * 3), stated[theirs]["LPS_mm"]))
            print(f"  {name}: {error:.2f} mm")


def upright(file: Path) -> nibabel.Nifti1Image:
    """A label map with its axes along the patient's, whichever way it was stored."""
    return nibabel.as_closest_canonical(nibabel.load(file))


def main() -> None:
    parser = arguments(__doc__, minutes=40.0)
    parser.add_argument("--phantoms", type=int, default=40)
    wanted = parser.parse_args()
    prepare(wanted.data / "cbct-synthetic", wanted.out, wanted.phantoms)
    dice, errors = {}, {}
    for design in chosen(DESIGNS, wanted):
        dataset = wanted.out / f"data-{design.name}"
        runs = {seed: trained(design, dataset, wanted, seed) for seed in wanted.seeds}
        if design.name != "landmarks":
            parts = [overlap(run, dataset, seed) for seed, run in runs.items()]
            dice[design.name] = merged([{name: pair[0] for name, pair in one.items()} for one in parts])
            print(f"{design.name}: Dice {mean_sd(case_means(dice[design.name]))}", flush=True)
        if design.name != "labels":
            errors[design.name] = merged([radial(run, dataset, seed) for seed, run in runs.items()])
            print(f"{design.name}: {mean_sd(case_means(errors[design.name]))} mm", flush=True)
        for run in runs.values():
            print(f"{design.name}, real scan:")
            real_scan(run, wanted.data / "cbct-icat", wanted)
    compare("Synthetic CBCT: Dice", dice)
    compare("Synthetic CBCT: radial error (mm)", errors)
    save({"dice": dice, "radial_mm": errors}, wanted.out / "results.json")


if __name__ == "__main__":
    main()

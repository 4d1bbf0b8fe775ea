"""Lateral cephalograms: 19 landmarks by DSNT and by heat maps whose peak is taken, against a second reader.

    python benchmarks/cephalograms.py --data DATA --out RUNS --minutes 30 --seeds 0 1 2

DATA holds xray-ceph-landmarks. The senior doctor's points are the reference; the junior doctor's distance to them is
what a network can hope for. Prints mean radial error in mm and the share found within 2, 2.5, 3 and 4 mm.
"""

import csv
import json
from pathlib import Path

import numpy as np
from comparison import Design, arguments, case_means, chosen, mean_sd, merged, paired_tests, radial, save, trained
from PIL import Image

import medseg

LIMITS_MM = (2.0, 2.5, 3.0, 4.0)
SPACING_MM = 0.3
DESIGNS = (
    Design("dsnt", "unet"),
    Design("heatmap", "unet", heads=("heatmap",)),
    Design("mel_net-heatmap", "mel_net", heads=("heatmap",)),
)


def prepare(source: Path, out: Path) -> None:
    """PNG images, and the points of both doctors as CSV in mm from the middle of the first pixel."""
    for part in ("imagesTr", "landmarksTr", "second"):
        (out / part).mkdir(parents=True, exist_ok=True)
    with (source / "landmarks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [column.removesuffix("_x_mm") for column in rows[0] if column.endswith("_x_mm")]
    for row in rows:
        case = f"ceph_{Path(row['image']).stem}"
        Image.open(source / "images" / row["image"]).convert("L").save(out / "imagesTr" / f"{case}_0000.png")
        for folder, reader in (("landmarksTr", ""), ("second", "_junior")):
            points = [[*(float(row[f"{name}_{axis}_mm{reader}"]) for axis in "xy"), 0.0] for name in names]
            # lengths from the corner of the first pixel, whose middle is the origin here
            place = np.array(points) - np.array([SPACING_MM / 2, SPACING_MM / 2, 0.0])
            medseg.write_landmarks(medseg.Landmarks(tuple(names), place), out / folder / f"{case}.csv")
    description = {
        "name": "Cephalograms",
        "channel_names": {"0": "radiograph"},
        "landmarks": {"names": names},
        "spacing_mm": [SPACING_MM, SPACING_MM],
        "numTraining": len(rows),
        "file_ending": ".png",
    }
    (out / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def line(name: str, errors: dict[str, dict[str, float]]) -> str:
    """One row of the table; a landmark that was not found is within no limit."""
    values = [error for cases in errors.values() for error in cases.values()]
    known = [error for error in values if np.isfinite(error)]
    shares = " | ".join(f"{np.mean([error <= limit for error in values]):.1%}" for limit in LIMITS_MM)
    return f"| {name} | {len(values)} | {np.mean(known):.2f} | {np.median(known):.2f} | {shares} |"


def main() -> None:
    wanted = arguments(__doc__, minutes=30.0).parse_args()
    dataset = wanted.out / "data"
    if not (dataset / "dataset.json").exists():
        prepare(wanted.data / "xray-ceph-landmarks", dataset)
    results = {}
    for design in chosen(DESIGNS, wanted):
        parts = [radial(trained(design, dataset, wanted, seed), dataset, seed) for seed in wanted.seeds]
        results[design.name] = merged(parts)
        print(f"{design.name}: {mean_sd(case_means(results[design.name]))} mm per image", flush=True)
    tested = {case for errors in results.values() for cases in errors.values() for case in cases}
    second: dict[str, dict[str, float]] = {}
    for case in medseg.evaluate_landmarks(dataset / "second", dataset / "landmarksTr"):
        for name, error in case.errors_mm.items() if case.case_id in tested else ():
            second.setdefault(name, {})[case.case_id] = error
    print("\n| finder | points | mean (mm) | median (mm) | " + " | ".join(f"{x:g} mm" for x in LIMITS_MM) + " |")
    print("|---|---|---|---|" + "---|" * len(LIMITS_MM))
    for name, errors in {**results, "junior doctor": second}.items():
        print(line(name, errors))
    print()
    print("\n".join(paired_tests({name: case_means(errors) for name, errors in results.items()})))
    save(results, wanted.out / "results.json")


if __name__ == "__main__":
    main()

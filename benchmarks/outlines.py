"""A picture of a prediction, filled, and its reference, outlined, with or without the scan behind them.

    python benchmarks/outlines.py PLAN.json SCAN PREDICTION REFERENCE OUT.png [--blank]

`--blank` leaves the scan out, for data whose images may not be published again. `--reference-labels NAME=VALUE ...`
says what the reference's values are, by the classes of the plan, where it has others.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import medseg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("plan", "scan", "prediction", "reference", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--blank", action="store_true")
    parser.add_argument("--reference-labels", nargs="*", default=[])
    wanted = parser.parse_args()
    plan = medseg.load_plan(wanted.plan)
    scan = medseg.read_image([wanted.scan], channels=plan.channels)
    if wanted.blank:
        scan = replace(scan, array=np.zeros_like(scan.array))
    predicted = medseg.read_labels(wanted.prediction, plan.labels, predicted=True)
    known = {name: int(value) for name, value in (pair.split("=") for pair in wanted.reference_labels)}
    values = medseg.read_image([wanted.reference]).array[0]
    array = np.zeros(values.shape, np.uint16)
    for item in plan.labels.items:
        array[np.isin(values, [known.get(item.name, -1)] if known else item.values)] = item.written
    reference = replace(predicted, array=array)
    wanted.out.write_bytes(medseg.overlay_png(scan, predicted, reference))


if __name__ == "__main__":
    main()

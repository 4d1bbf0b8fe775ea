"""Turn the breast ultrasound folder (images/, masks/, cases.csv) into a dataset folder that medseg and nnU-Net read.

python benchmarks/prepare_busi.py SOURCE OUT [--binary]

Files are hard-linked, or copied where that is not possible. Near-duplicates of one group share a group in
dataset.json, so that no fold splits them. `--binary` writes masks of 0 and 1 for tools that want consecutive labels.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with images, masks and cases.csv")
    parser.add_argument("out", type=Path, help="dataset folder to write")
    parser.add_argument("--binary", action="store_true", help="masks of 0 and 1 instead of 0 and 255")
    arguments = parser.parse_args()
    count = prepare(arguments.source, arguments.out, binary=arguments.binary)
    print(f"{count} cases in {arguments.out}")


def prepare(source: Path, out: Path, *, binary: bool = False) -> int:
    with (source / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for part in ("imagesTr", "labelsTr"):
        (out / part).mkdir(parents=True, exist_ok=True)
    groups = {}
    for row in rows:
        case = Path(row["image"]).stem
        place(source / "images" / row["image"], out / "imagesTr" / f"{case}_0000.png", grey=row["gray"] != "True")
        if binary:
            mask = np.asarray(Image.open(source / "masks" / row["image"])) > 0
            Image.fromarray(mask.astype(np.uint8)).save(out / "labelsTr" / f"{case}.png")
        else:
            place(source / "masks" / row["image"], out / "labelsTr" / f"{case}.png")
        groups[case] = row["near_duplicate_group"]
    description = {
        "name": "BreastUltrasound",
        "channel_names": {"0": "ultrasound"},
        "labels": {"background": 0, "lesion": 1 if binary else 255},
        "numTraining": len(rows),
        "file_ending": ".png",
        "groups": groups,
    }
    (out / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return len(rows)


def place(source: Path, target: Path, *, grey: bool = False) -> None:
    """Link or copy a file; colour images are converted to grey."""
    target.unlink(missing_ok=True)
    if grey:
        Image.open(source).convert("L").save(target)
        return
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    main()

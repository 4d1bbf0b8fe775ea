"""Prostate in 3D transrectal ultrasound: V-Net, U-Net and residual-encoder U-Net under one time budget.

    python benchmarks/trus.py --data DATA --out RUNS --minutes 20 --seeds 0 1 2

DATA holds us-trus-prostate-3d. Prints Dice and HD95 (mm) of whole volumes, and paired tests between the networks.
"""

import json
from pathlib import Path

import nibabel
import numpy as np
from comparison import Design, arguments, chosen, overlap_table

DESIGNS = tuple(Design(name, name, config="3d_fullres") for name in ("vnet", "unet", "resenc"))


def prepare(source: Path, out: Path) -> None:
    """The gland alone; the other channels of label files are landmarks."""
    for part in ("imagesTr", "labelsTr"):
        (out / part).mkdir(parents=True, exist_ok=True)
    files = sorted((source / "us_images").glob("*.nii.gz"))
    for file in files:
        case = file.name.removesuffix(".nii.gz")
        image, label = nibabel.load(file), nibabel.load(source / "us_labels" / file.name)
        values = np.asarray(label.dataobj)
        mask = values[..., 0] if values.ndim == 4 else values
        for made, where in (
            (nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine), out / "imagesTr" / f"{case}_0000.nii.gz"),
            (nibabel.Nifti1Image((mask > 0.5).astype(np.uint8), image.affine), out / "labelsTr" / file.name),
        ):
            made.header.set_xyzt_units("mm")
            nibabel.save(made, where)
    description = {
        "name": "Prostate",
        "channel_names": {"0": "TRUS"},
        "labels": {"background": 0, "prostate": 1},
        "numTraining": len(files),
        "file_ending": ".nii.gz",
    }
    (out / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    wanted = arguments(__doc__).parse_args()
    dataset = wanted.out / "data"
    if not (dataset / "dataset.json").exists():
        prepare(wanted.data / "us-trus-prostate-3d", dataset)
    overlap_table(chosen(DESIGNS, wanted), dataset, wanted, "Prostate in 3D ultrasound")


if __name__ == "__main__":
    main()

"""Lay out generated CBCT phantoms as a data set folder.

    python make_cbct_phantom.py LABELMAP.nii.gz TRAIN --seeds 0-23
    python make_cbct_phantom.py LABELMAP.nii.gz TEST --seeds 100-107
    python benchmarks/prepare_cbct.py TRAIN TEST DATASET

writes DATASET/{dataset.json, imagesTr, labelsTr, imagesTs, labelsTs}; imagesTs are never trained on.
"""

import json
import shutil
import sys
from pathlib import Path

LABELS = {
    "background": 0,
    "upper_skull": 1,
    "mandible": 2,
    "upper_teeth": 3,
    "lower_teeth": 4,
    "mandibular_canal": 5,
}


def main() -> None:
    train, test, out = (Path(argument) for argument in sys.argv[1:4])
    for source, suffix in ((train, "Tr"), (test, "Ts")):
        for kind, ending in (("images", "_0000.nii.gz"), ("labels", "_seg.nii.gz")):
            folder = out / f"{kind}{suffix}"
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(source.glob(f"case_????{ending}")):
                name = file.name if kind == "images" else file.name.replace("_seg", "")
                shutil.copyfile(file, folder / name)
    count = len(list((out / "labelsTr").iterdir()))
    description = {
        "name": "CBCTSynthetic",
        "channel_names": {"0": "CBCT"},
        "labels": LABELS,
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (out / "dataset.json").write_text(json.dumps(description, indent=2))


if __name__ == "__main__":
    main()

"""Predict a NumPy array and measure what was found; no file is written.

    python examples/train_small.py        # makes the model
    python examples/predict_array.py [MODEL]

An array says nothing of millimetres, so its spacing is given; axes are (z, y, x), running to head, back and left.
"""

import sys
from pathlib import Path

import medseg

SCAN = Path(__file__).resolve().parent / "data" / "hippocampus" / "imagesTs" / "hippocampus_001_0000.nii.gz"


def main(model_folder: Path) -> None:
    """Load once, predict as often as needed."""
    model = medseg.load_model(model_folder, device="cpu")
    scan = medseg.read_image([SCAN])
    from_file = model.predict(SCAN)
    print(f"file:  {from_file.labels.array.shape} voxels, {volumes(from_file)}")
    right_to_left = scan.geometry.direction[0][0] < 0  # stored towards the patient's right: turn it round
    front_to_back = scan.geometry.direction[1][1] < 0
    array = scan.array[0][:, :: -1 if front_to_back else 1, :: -1 if right_to_left else 1]
    from_array = model.predict(array, spacing=scan.geometry.spacing_mm)
    print(f"array: {from_array.labels.array.shape} voxels, {volumes(from_array)}")


def volumes(prediction: medseg.Prediction) -> str:
    """Volumes as text."""
    return ", ".join(f"{name} {volume:.2f} ml" for name, volume in prediction.volumes_ml.items())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-output/small"))

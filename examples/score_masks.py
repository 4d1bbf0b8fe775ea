"""What each metric says about a known error: a block that is predicted 2 mm too far to the left.

python examples/score_masks.py
"""

import numpy as np

import medseg

GEOMETRY = medseg.Geometry(shape=(40, 40, 40), spacing_mm=(1.0, 0.5, 0.5))
LABELS = medseg.Labels((medseg.Label("block", (1,)), medseg.Label("absent", (2,))))


def block(first_x: int) -> medseg.LabelMap:
    """A block of 10 x 10 x 10 mm whose right side is at voxel `first_x`."""
    array = np.zeros(GEOMETRY.shape, np.uint8)
    array[10:20, 10:30, first_x : first_x + 20] = 1
    return medseg.LabelMap(array, GEOMETRY, LABELS)


def main() -> None:
    """Score the shifted block against the true one."""
    scores = medseg.score_case("shifted", block(first_x=14), block(first_x=10), tolerance_mm=1.0)
    found, absent = scores.labels["block"], scores.labels["absent"]
    print(f"Dice {found.dice:.3f} (8 of 10 mm overlap: 0.8), IoU {found.iou:.3f}")
    print(f"HD95 {found.hd95_mm:.2f} mm (the shift is 2 mm), mean surface distance {found.mean_surface_mm:.2f} mm")
    print(f"NSD at 1 mm {found.nsd:.3f}, volumes {found.volume_ml:.2f} and {found.reference_ml:.2f} ml")
    print(f"a class in neither map: Dice {absent.dice} ({absent.state})")


if __name__ == "__main__":
    main()

"""Analytic shapes with known classes, and data sets of them on disk."""

import json

import numpy as np
from PIL import Image as Pillow

from medseg.io.images import write_labels
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels

SHELL_AND_CORE = Labels((Label("shell", (1,)), Label("core", (2,))))


def nested_ellipsoids(shape, *, seed):
    """Noisy scan (z, y, x) of a bright core (label 2) in a grey shell (label 1) at a random place, and its labels."""
    rng = np.random.default_rng(seed)
    size = np.array(shape, float)
    centre = size / 2 + rng.uniform(-0.08, 0.08, len(shape)) * size
    radius = size * rng.uniform(0.28, 0.36, len(shape))
    grid = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm((grid - centre) / radius, axis=-1)
    labels = (distance < 1).astype(np.uint8) + (distance < 0.55).astype(np.uint8)
    image = np.array([20, 90, 170], float)[labels] + rng.normal(0, 8, shape)
    return image.astype(np.float32), labels


def write_scan(array, path, *, spacing_mm=(2.0, 1.0, 1.0)):
    """A float scan (z, y, x) as NIfTI, axes along L, P, S."""
    import nibabel as nib

    z, y, x = spacing_mm
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0])), path)


def write_nifti_dataset(folder, cases, *, shape=(16, 24, 20), spacing_mm=(2.0, 1.0, 1.0)):
    """nnU-Net v2 layout with `cases` phantoms (seeds 0, 1, ...); two more, unseen, in imagesTs and labelsTs."""
    for seed in range(cases + 2):
        part = "Tr" if seed < cases else "Ts"
        image, labels = nested_ellipsoids(shape, seed=seed)
        write_scan(image, folder / f"images{part}" / f"phantom {seed:02d}_0000.nii.gz", spacing_mm=spacing_mm)
        reference = LabelMap(labels, Geometry(shape, spacing_mm), SHELL_AND_CORE)
        write_labels(reference, folder / f"labels{part}" / f"phantom {seed:02d}.nii.gz")
    _describe(folder, cases, ".nii.gz")


def write_png_dataset(folder, cases, *, shape=(48, 40)):
    """The same in 2D, as 8-bit PNG without spacing."""
    for seed in range(cases + 2):
        part = "Tr" if seed < cases else "Ts"
        image, labels = nested_ellipsoids(shape, seed=seed)
        for kind, array, name in (
            ("images", np.clip(image, 0, 255).astype(np.uint8), f"disc_{seed:02d}_0000.png"),
            ("labels", labels, f"disc_{seed:02d}.png"),
        ):
            path = folder / f"{kind}{part}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Pillow.fromarray(array).save(path)
    _describe(folder, cases, ".png")


def _describe(folder, cases, ending):
    description = {
        "name": "phantoms",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "shell": 1, "core": 2},
        "numTraining": cases,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")

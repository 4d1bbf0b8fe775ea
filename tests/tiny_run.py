"""The smallest plan and cache that train; run as a script, one fold in a process of its own that can be killed."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from phantoms import SHELL_AND_CORE, nested_ellipsoids

from medseg.io.cache import write_case
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.plan import (
    Budget,
    Inference,
    LossTerm,
    Network,
    Origin,
    Plan,
    Preprocess,
    Sampling,
    Step,
    Topology,
    Training,
)

AUGMENT = (Step("affine", {"p": 0.5}), Step("noise", {"p": 0.5}), Step("gamma", {"p": 0.5}), Step("mirror"))


def tiny_plan(*, ndim=3, channels=("MR",), labels=SHELL_AND_CORE, **training):
    """A two-stage network on patches of 16 voxels; `training` replaces fields of Training."""
    first, rest = ((1, 1, 1), (1, 1, 1)) if ndim == 2 else ((1, 1, 1), (2, 2, 2))
    strides = (first, (1, 2, 2)) if ndim == 2 else (first, rest)
    kernel = (1, 3, 3) if ndim == 2 else (3, 3, 3)
    topology = Topology(ndim, (4, 8), strides, (kernel, kernel), (1, 1))
    settings = Training(
        losses=(LossTerm(1.0, "dice_ce"),),
        optimizer=Step("sgd", {"lr": 0.05, "momentum": 0.9}),
        schedule=Step("poly"),
        augment=tuple(step for step in AUGMENT if ndim == 3 or step.use != "mirror"),
        epochs=2,
        steps_per_epoch=3,
        precision="fp32",
    )
    return Plan(
        schema="medseg.plan/1",
        name="tiny",
        channels=channels,
        labels=labels,
        preprocess=Preprocess((None, None, None), tuple(Step("z_score") for _ in channels)),
        network=Network("unet", topology),
        sampling=Sampling((1, 16, 16) if ndim == 2 else (16, 16, 16), 2),
        training=replace(settings, **training),
        inference=Inference(),
        postprocess=(),
        origin=Origin("0", "0", Budget(1.0), "unet"),
        reasons={},
    )


def with_hours(plan, hours):
    """The plan under a time budget."""
    return replace(plan, origin=replace(plan.origin, budget=replace(plan.origin.budget, hours=hours)))


def fill_cache(folder, cases=3, *, shape=(16, 16, 16), patch=(16, 16, 16), labels=SHELL_AND_CORE):
    """Phantoms "a", "b", ... as prepared cases; returns their ids."""
    names = [chr(ord("a") + seed) for seed in range(cases)]
    for seed, name in enumerate(names):
        image, truth = nested_ellipsoids(shape, seed=seed)
        grid = Geometry(shape, (1.0, 1.0, 1.0))
        image = (image - image.mean()) / image.std()
        write_case(
            folder,
            name,
            Image(image[None].astype(np.float32), grid, ("MR",)),
            LabelMap(truth, grid, labels),
            patch=patch,
        )
    return names


def main(cache, run, pause_s, epochs=4):
    """Train fold "a, b against c" with a pause in each batch, so that a killer has time to aim."""
    import torch

    from medseg.training.loop import fit

    torch.set_num_threads(1)
    plan = tiny_plan(epochs=epochs, steps_per_epoch=5, ema=0.9)
    device = torch.device("cpu")
    fit(plan, ("a", "b"), ("c",), cache, run, device=device, report=lambda progress: time.sleep(pause_s))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), *map(int, sys.argv[4:]))

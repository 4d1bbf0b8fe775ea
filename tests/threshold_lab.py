"""A bundle whose answer is known (label 1 above 100, 2 above 200) and whose network dies or hangs on marked scans.

Run as a script it is `medseg`, slowed down so that a killer has time to aim.
"""

import os
import signal
import sys
import time

import numpy as np
import torch
from safetensors.torch import save_file

from medseg.io.bundles import save_bundle
from medseg.networks.build import build_network
from medseg.types.geometry import Geometry
from medseg.types.labels import Label, Labels
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

LABELS = Labels((Label("bone", (1,)), Label("metal", (2,))))
KILLS, HANGS = 9000, 8000  # grey values that end the process, or make it sleep
GRID = Geometry((6, 10, 8), (2.0, 0.5, 0.75), (-12.0, 30.0, 5.0))


class Same(torch.nn.Module):
    feature_channels = (1,)

    def forward(self, image):
        if image.max() >= KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        if image.max() >= HANGS:
            time.sleep(60)
        time.sleep(float(os.environ.get("PAUSE_S", "0")))
        return (image,)


def same(topology, *, in_channels):
    return Same()


def make_bundle(folder):
    plan = Plan(
        "medseg.plan/1",
        "threshold",
        ("CT",),
        LABELS,
        Preprocess((None, None, None), (Step("none"),)),
        Network("threshold_lab:same", Topology(3, (1,), ((1, 1, 1),), ((1, 1, 1),), (1,))),
        Sampling((6, 10, 8), 2),
        Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), 1, precision="fp32"),
        Inference(),
        (),
        Origin("0.1.0", "0" * 64, Budget(4.0), "unet"),
        {},
    )
    state = build_network(plan.network, channels=1, outputs=3).state_dict()
    for name, value in state.items():
        new = torch.tensor([0.0, 1.0, 2.0] if value.dim() > 1 else [0.0, -100.0, -300.0])
        state[name] = new.reshape(value.shape).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "weights.safetensors")
    save_bundle(folder / "bundle", plan, {0: folder / "weights.safetensors"}, {})
    return folder / "bundle"


def scan(seed=0, mark=None):
    """Grey values with a bright box and a brighter core, and their labels."""
    array = np.random.default_rng(seed).integers(-50, 50, GRID.shape).astype(np.int16)
    labels = np.zeros(GRID.shape, np.uint8)
    for value, label, edge in ((150, 1, 2), (280, 2, 3)):
        box = tuple(slice(edge, n - edge) for n in GRID.shape[1:])
        array[2:4, *box], labels[2:4, *box] = value, label
    if mark is not None:
        array[0, 0, 0] = mark
    return array, labels


if __name__ == "__main__":
    from medseg.cli import main

    sys.exit(main())

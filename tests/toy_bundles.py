"""A tiny model bundle, and ways to spoil one so that its manifest still agrees."""

import hashlib
import json

import numpy as np
from safetensors.numpy import save_file

from medseg.io.bundles import save_bundle
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

PLAN = Plan(
    "medseg.plan/1",
    "tiny",
    ("MR",),
    Labels((Label("a", (1,)),)),
    Preprocess((1.0, 1.0, 1.0), (Step("z_score"),)),
    Network("unet", Topology(3, (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (1, 1))),
    Sampling((8, 8, 8), 2),
    Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), 1),
    Inference(),
    (),
    Origin("0.1.0", "0" * 64, Budget(4.0), "unet"),
    {},
)
WEIGHTS = "members/fold_0.safetensors"


def make_bundle(root, plan=PLAN, scores=None):
    """A bundle of one member with seven numbers in two tensors."""
    root.parent.mkdir(parents=True, exist_ok=True)
    weights = root.parent / "weights.safetensors"
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float16)}, weights)
    save_bundle(root, plan, {0: weights}, scores or {"mean_dice": 0.5, "cases": 4})
    return root


def spoil(root, name, data):
    """Replace a file of the bundle and let the manifest vouch for it."""
    (root / name).write_bytes(data)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (root / "manifest.json").write_text(json.dumps(manifest))

"""Networks and blocks compiled to machine code by inductor, forward and backward; needs a C++ compiler."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import battery
import pytest
import torch

from medseg.planning.training_step import random_batch

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="no C++ compiler"),
]
NAMES = [(table, shape) for shape in ("2d", "3d") for table in ("backbones", "blocks")]


def entries(table, shape):
    return list(getattr(battery, table)(shape))


@pytest.mark.parametrize(("table", "shape"), NAMES)
def test_compiled_networks_compute_the_same_and_learn_from_it(table, shape):
    """In a process of its own, because checked signatures do not survive compiling."""
    found = {**os.environ, "PYTHONPATH": str(Path(battery.__file__).parent)}
    done = subprocess.run(
        [sys.executable, __file__, table, shape], capture_output=True, text=True, check=False, env=found
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said and {name: what for name, what in said.items() if what is not None} == {}


def difference(entry):
    """What went wrong, or nothing."""
    torch._dynamo.reset()
    network, batch = entry.build(), random_batch(entry.job(), torch.device("cpu"))
    compiled = torch.compile(network)
    try:
        results = []
        for one in (network, compiled):
            torch.manual_seed(0)
            network.zero_grad()
            logits = (one(batch.image) if batch.raters is None else one(batch.image, batch.raters)).logits[0]
            logits.square().mean().backward()
            grads = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in network.parameters()]
            results.append((logits.detach(), *grads))
        largest = max(float(grad.abs().max()) for grad in results[0][1:])
        for plain, made in zip(*results, strict=True):
            size = max(float(plain.abs().max()), 1e-4 * largest)  # of what is 0 but for rounding, that of the others
            torch.testing.assert_close(made, plain, rtol=1e-2, atol=1e-2 * size)
    except Exception as error:
        return str(error).strip()[-300:]
    return None


if __name__ == "__main__":
    said = {str(entry): difference(entry) for entry in entries(*sys.argv[1:])}
    sys.stdout.write(json.dumps(said) + "\n")

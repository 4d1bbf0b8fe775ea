"""Gradients are made of operations whose results repeat on GPUs, as far as torch says so of its kernels."""

import re
from typing import Any

import battery
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medseg.losses.build import LOSSES, build_loss
from medseg.planning.training_step import random_batch
from medseg.types.tensors import Batch, NetworkOutput

# What torch.use_deterministic_algorithms says adds up in any order on a GPU.
UNSTEADY = re.compile(
    r"upsample_\w+_backward|max_pool\w*_backward|adaptive_avg_pool\w*_backward|(replication|reflection)_pad\w*_backward"
    r"|grid_sampler\w*_backward|max_unpool|scaled_dot_product\w*_backward|fractional_max_pool\w*_backward|embedding_dense_backward"
    r"|kthvalue|histc|cumsum|\bput_|scatter_reduce|index_copy|index_reduce"
)
FOREIGN = {"segresnet", "swin_unetr", "unetr", "mednext"}
ATTENDING = {"gg_net", "non_local", "danet", "danet_position"}  # docs/guide/training.md says so


class Recorder(TorchDispatchMode):
    """Names of the operations that would not repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        averages = name.startswith("avg_pool") and name.endswith("backward") and _overlaps(args)
        if UNSTEADY.search(name) or averages or _collides(name, args):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def _overlaps(args: Any) -> bool:
    """Whether windows share voxels: only then average pooling adds up gradients."""
    kernel, stride = list(args[2]), list(args[3])
    return any(k > s for k, s in zip(kernel, stride or kernel, strict=True)) or any(args[4])


def _collides(name: str, args: Any) -> bool:
    """Whether several values are added to one place."""
    if not name.startswith(("scatter_add", "index_add")):
        return False
    axis, index = args[1:3]
    ones = torch.ones(index.shape if name.startswith("scatter") else len(index), dtype=torch.int64)
    axis = axis if name.startswith("scatter") else 0
    size = [max(n, int(index.max()) + 1) for n in ones.shape]
    return bool((torch.zeros(size, dtype=torch.int64).scatter_add_(axis, index, ones) > 1).any())


def _unsteady(entry: battery.Entry) -> set[str]:
    torch.manual_seed(0)
    network = entry.build()
    batch = random_batch(entry.job(), torch.device("cpu"))
    with Recorder() as seen:
        output = network(batch.image) if batch.raters is None else network(batch.image, batch.raters)
        build_loss(entry.losses)(output, batch).total.backward()
    return seen.found


def _entries() -> list[battery.Entry]:
    shapes = ("2d", "3d")
    found = [entry for shape in shapes for entry in battery.backbones(shape, base=4)]
    found += [entry for make in (battery.blocks, battery.heads, battery.losses) for entry in make("3d", base=4)]
    return [entry for entry in found if entry.name not in FOREIGN and battery.refusal(entry) is None]


@pytest.mark.parametrize("entry", _entries(), ids=str)
def test_gradients_repeat(entry: battery.Entry) -> None:
    found = _unsteady(entry)
    assert all(name.startswith("_scaled_dot_product") for name in found)
    assert bool(found) == (entry.name in ATTENDING and entry.table != "loss")


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"distillation"}))
def test_gradients_of_losses_repeat(name: str) -> None:
    logits = torch.randn(1, 3, 4, 8, 8, requires_grad=True)
    batch = Batch(torch.zeros(1, 1, 4, 8, 8), torch.randint(0, 3, (1, 1, 4, 8, 8)))
    with Recorder() as seen:
        LOSSES[name](NetworkOutput((logits,)), batch).backward()
    assert seen.found == set()


def test_the_recorder_sees_what_would_not_repeat() -> None:
    x = torch.randn(1, 1, 4, 4, 4, requires_grad=True)
    with Recorder() as seen:
        torch.nn.functional.max_pool3d(x, 2).sum().backward()
        torch.nn.functional.interpolate(x, (8, 8, 8), mode="trilinear").sum().backward()
        torch.nn.functional.avg_pool3d(x, 2).sum().backward()
        assert not any("avg" in name for name in seen.found)
        torch.nn.functional.avg_pool3d(x, 3, 1, 1).sum().backward()
    assert len(seen.found) == 3, seen.found
    with Recorder() as seen:
        x.flatten(1).gather(1, torch.tensor([[2, 0, 5]])).sum().backward()
        assert seen.found == set()
        x.flatten(1).gather(1, torch.tensor([[2, 0, 2]])).sum().backward()
        x.flatten().index_select(0, torch.tensor([2, 2])).sum().backward()
        torch.zeros(3).scatter_add(0, torch.tensor([1, 0, 1]), torch.ones(3))
    assert seen.found == {"scatter_add", "index_add"}

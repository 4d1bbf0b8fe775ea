"""Every entry of the tables of networks, small: what each is built with, and what its losses are fed."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medseg.errors import PlanError
from medseg.losses.build import LOSSES, WHOLE_LOSSES, build_loss
from medseg.losses.edges import edges_of, reference_masks
from medseg.networks.blocks.activations import ACTS
from medseg.networks.blocks.attention import ATTENTION
from medseg.networks.blocks.norms import NORMS
from medseg.networks.build import BACKBONES, HEADS, build_network
from medseg.networks.encoders import ENCODERS
from medseg.planning.design import HEAD_LOSSES
from medseg.planning.presets import PRESETS
from medseg.planning.topology import topology_for
from medseg.planning.training_step import Job
from medseg.types.plan import LossTerm, Network, Step, Training
from medseg.types.tensors import Batch

OUTPUTS, CHANNELS, POINTS = 3, 1, 2
PATCHES = {"2d": (1, 24, 32), "3d": (16, 16, 16), "anisotropic": (6, 24, 16)}
SPACINGS = {"2d": (1.0, 1.0, 1.0), "3d": (1.0, 1.0, 1.0), "anisotropic": (3.0, 1.0, 1.0)}
MOST = {"direction_fused": 2.0}  # how anisotropic a network may be at most
SHAPES = tuple(PATCHES)
HEAD_OPTIONS = {"dsnt": {"points": POINTS}, "heatmap": {"points": POINTS}}
SMALLER = {"swin_unetr": {"depths": [1, 1, 1, 1], "window": 4}, "unetr": {"hidden": 48, "heads": 4, "places": 2}}
BRANCHING = {"swin_unetr", "unpool_unet"}  # by values, so that a compiler leaves a part to Python
COARSE = {"fcn"}  # its strides of 8 show in small patches
NEEDS = {"side": "cascade", "object_boundary": "object_boundary"}  # losses of what one backbone alone returns


@dataclass(frozen=True)
class Entry:
    """One name of one table, and the plan's network and losses that have it."""

    table: str
    name: str
    network: Network
    patch: tuple[int, int, int]
    losses: tuple[LossTerm, ...] = (LossTerm(1.0, "dice_ce"),)

    def __str__(self):
        return f"{self.table}-{self.name}-{'x'.join(map(str, self.patch))}"

    def build(self, *, seed=0):
        torch.manual_seed(seed)
        return build_network(self.network, channels=CHANNELS, outputs=OUTPUTS)

    def image(self, batch=1, *, seed=0):
        size = self.patch[3 - self.network.topology.ndim :]
        return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(seed))

    def job(self, batch=2, **training):
        settings = Training(self.losses, Step("sgd"), Step("poly"), (), epochs=1, precision="fp32")
        return Job(self.network, CHANNELS, OUTPUTS, self.patch, batch, replace(settings, **training))


def topology(preset, shape, *, base=None, stages=3, patches=PATCHES):
    """What the planner gives the preset for a small patch, with few stages where the network allows."""
    ndim = 2 if shape == "2d" else 3
    small = preset if preset.rigid else replace(preset, stages=stages)
    z, y, x = SPACINGS[shape]
    spacing = (min(z, MOST.get(preset.backbone, z)), y, x)
    return topology_for(patches[shape], spacing, ndim=ndim, preset=small, base=base or preset.bases[0] // 2)


def head(name):
    return Step(name, HEAD_OPTIONS.get(name, {}))


def backbones(shape, **sizes):
    """Every backbone that has the dimension, with the preset's own options, heads and losses."""
    by_backbone = {preset.backbone: preset for preset in PRESETS.values()}
    assert set(by_backbone) == set(BACKBONES), "every backbone needs a preset"
    for name, preset in by_backbone.items():
        if (2 if shape == "2d" else 3) in preset.dimensions:
            made, patch = topology(preset, shape, **sizes)
            heads = (head("segmentation"), *preset.heads)
            terms = [HEAD_LOSSES[step.use] for step in heads if step.use in HEAD_LOSSES]
            options = {**preset.options, **SMALLER.get(name, {})}
            yield Entry("backbone", name, Network(name, made, heads, options), patch, (*terms, *preset.losses))


def joint(shape, **sizes):
    """Every backbone with all heads that go together."""
    for entry in backbones(shape, **sizes):
        own = {step.use for step in entry.network.heads}
        more = [head(name) for name in ("boundary", "distance", "dsnt") if name not in own]
        network = replace(entry.network, heads=(*entry.network.heads, *more))
        yield replace(entry, network=network, losses=(*entry.losses, *(HEAD_LOSSES[step.use] for step in more)))


def blocks(shape, **sizes):
    """Every block as the option of a U-Net that names it."""
    made, patch = topology(PRESETS["unet"], shape, **sizes)
    tables = {"attention": ATTENTION, "encoder": ENCODERS, "norm": NORMS, "act": ACTS}
    for option, table in tables.items():
        for name in table:
            yield Entry(option, name, Network("unet", made, (head("segmentation"),), {option: name}), patch)


def heads(shape, **sizes):
    """Every head beside, or instead of, that for labels."""
    made, patch = topology(PRESETS["unet"], shape, **sizes)
    for name in HEADS:
        several = tuple(dict.fromkeys(("segmentation", name)))
        terms = tuple(HEAD_LOSSES[use] for use in several)
        yield Entry("head", name, Network("unet", made, tuple(head(use) for use in several)), patch, terms)


def losses(shape, **sizes):
    """Every loss with the network that returns what it looks at."""
    homes = {"boundary": "boundary", **{term.use: use for use, term in HEAD_LOSSES.items()}}
    for name in {**LOSSES, **WHOLE_LOSSES}:
        backbone = NEEDS.get(name, "unet")
        made, patch = topology(PRESETS[backbone], shape, **sizes)
        own = homes.get(name, "segmentation")
        several = dict.fromkeys(("segmentation", own))
        options = {"attention": "rater_code"} if name == "rater_prior" else {}
        network = Network(backbone, made, tuple(head(use) for use in several), options)
        yield Entry("loss", name, network, patch, (LossTerm(1.0, name),))


def all_of(shape, **sizes):
    """All of them."""
    for make in (backbones, blocks, heads, losses):
        yield from make(shape, **sizes)


def refusal(entry):
    """What the network is refused with, or None where it can be built."""
    try:
        entry.build()
    except PlanError as error:
        return error
    return None


def few():
    """Backbones in 2D, and in 3D the usual one and the one that is 3D only."""
    yield from backbones("2d")
    yield from (entry for entry in backbones("3d") if entry.name in ("direction_fused", "unet"))


def graphs(shape):
    """What is exported and compiled."""
    for make in (backbones, blocks, heads):
        yield from make(shape)


def tensors(output):
    """Every float tensor of a network's output."""
    parts = [*output.logits, *output.sides, *(t for b in output.boundaries for t in (b.edge, b.mask))]
    return [t for t in (*parts, output.heatmaps, output.points, output.distances) if t is not None]


def check_learns(entry, *, steps=200):
    """One patch by heart: classes and edges wherever they are told (Dice above 0.95), points within half a voxel.

    Where the network is COARSE a Dice of 0.9 is enough.
    """
    network, image = entry.build(), entry.image()
    target = blob(image)
    image = image * 0.1 + (target > 0)  # the core is known by its place alone
    points = torch.tensor([[0.3], [0.6]]) * (torch.tensor(image.shape[2:]) - 1)
    batch = Batch(image, target, points[None], entry.network.topology.spacings()[0])
    alone = entry.table != "head"
    # GG-Net's total, whose boundary terms start 30 times as large, takes longer
    loss = build_loss([term for term in entry.losses if not (alone and term.use == "gg_net")])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        output = network(image)
        missed = unlearnt(output, batch, alone=alone, enough=0.9 if entry.name in COARSE else 0.95)
        if not missed:
            return
        loss(output, batch).total.backward()
        optimizer.step()
    raise AssertionError(f"{entry}: {missed}")


def unlearnt(output, batch, *, alone, enough):
    """What is not learnt yet: the Dice of classes or their edges by name, or how many voxels off the worst point is."""
    pairs, target = {}, batch.target
    for name, values in {"logits": output.logits[0], "distances": output.distances}.items():
        if values is not None:
            found = values.argmax(1, keepdim=True)
            pairs |= {f"{name} {c}": (found == c, target == c) for c in (1, 2)}
    if output.boundaries and not alone:  # not their masks: edges of height 1 hold those near 0, see docs/networks.md
        edges, _ = edges_of(*reference_masks(target, OUTPUTS), batch.spacing, "both")
        pairs |= {f"edges {c}": (output.boundaries[0].edge[:, c] > 0.5, edges[:, c]) for c in (1, 2)}
    missed = {name: dice(*pair) for name, pair in pairs.items() if dice(*pair) <= enough}
    if output.points is not None:
        far = float((output.points.detach() - batch.points).norm(dim=2).max())
        missed |= {"points": far} if far >= 0.5 else {}
    return missed


def dice(one, other):
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def blob(image):
    """A ball of class 1 with a core of class 2."""
    size = image.shape[2:]
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    return ((radius < 0.8).long() + (radius < 0.4).long()).expand(len(image), 1, *size)


def check_half(entry, dtype):
    """Gradients are finite, and logits about those of full precision."""
    network, image = entry.build(), entry.image(2)
    with torch.autocast("cpu", dtype=dtype):
        found = network(image)
    sum(t.float().square().mean() for t in tensors(found) if t.requires_grad).backward()
    grads = [weight.grad for weight in network.parameters() if weight.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)
    wanted = network(image).logits[0]
    assert (found.logits[0].float() - wanted).abs().mean() < 0.2 * wanted.abs().mean()


class Finest(torch.nn.Module):
    """Tensors in a row, as programs return them."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return tensors(self.network(image))


def check_export(entry):
    """A program of the network computes the same."""
    network, image = Finest(entry.build().eval()), entry.image()
    with torch.no_grad():
        wanted = network(image)
        program = torch.export.export(network, (image,), strict=False)
        for one, other in zip(program.module()(image), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def check_compiled(entry):
    """A graph of the network computes the same; by the eager backend, since code generation is the compiler's business.

    One graph, so that nothing is left to Python, but for BRANCHING.
    """
    network, image = entry.build().eval(), entry.image()
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=entry.name not in BRANCHING)
    with torch.no_grad():
        wanted, found = (tensors(one(image)) for one in (network, compiled))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=lambda text: f"{entry}: {text}")


def compile_apart(entries):
    """Compile in a process of its own, because checked signatures do not survive compiling."""
    code = f"import battery\nfor entry in {entries}: battery.check_compiled(entry)"
    found = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=found)
    assert done.returncode == 0, done.stderr[-3000:]

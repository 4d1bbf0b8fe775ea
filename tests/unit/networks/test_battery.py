"""Every backbone, block, head and loss in 2D, 3D and on anisotropic grids: one battery over the tables."""

import math

import battery
import pytest
import torch
from battery import OUTPUTS, POINTS, SHAPES, tensors
from safetensors.torch import load, save

from medseg.losses.build import build_loss
from medseg.planning.memory import estimate_step, measure_step
from medseg.planning.training_step import random_batch

BACKBONES = [entry for shape in SHAPES for entry in battery.backbones(shape)]
NETWORKS = [entry for shape in SHAPES for make in (battery.blocks, battery.heads) for entry in make(shape)]
ALL = [*BACKBONES, *NETWORKS]
ALL_2D = [entry for entry in ALL if entry.network.topology.ndim == 2 or entry.name == "direction_fused"]
SLOW = ("swin_unetr", "unetr", "fcn")  # to compute or to learn, in 3D
LEARNERS = [
    *battery.backbones("2d"),
    *battery.blocks("2d"),
    *(e for shape in ("3d", "anisotropic") for e in battery.backbones(shape) if e.name not in SLOW),
]
FEW_MEASURED = ("gg_net", "vnet", "cascade", "botnet", "dense", "switchable", "dsnt", "cldice")
MEASURED = [
    *(entry for entry in battery.all_of("2d", base=16) if entry.name in FEW_MEASURED),
    *(entry for entry in battery.joint("anisotropic", base=16) if entry.name in ("resenc_unet", "vnet")),
]
assert set(FEW_MEASURED) <= {entry.name for entry in MEASURED}
LOSSES = [entry for shape in ("2d", "anisotropic") for entry in battery.losses(shape)]


@pytest.mark.parametrize("entry", ALL, ids=str)
def test_output_has_the_size_of_the_image_and_a_channel_per_class(entry):
    network, image = entry.build(), entry.image(2)
    output = network(image)
    assert output.logits[0].shape == (2, OUTPUTS, *image.shape[2:])
    assert all(logits.shape[:2] == (2, OUTPUTS) for logits in output.logits)
    sizes = [math.prod(logits.shape[2:]) for logits in output.logits]
    assert sizes == sorted(sizes, reverse=True)
    if {"dsnt", "heatmap"} & {step.use for step in entry.network.heads}:
        assert output.heatmaps.shape == (2, POINTS, *image.shape[2:])
        assert output.points.shape == (2, POINTS, entry.network.topology.ndim)
    with torch.inference_mode():
        finest = network.eval()(image)
    assert len(finest.logits) == 1 and finest.logits[0].shape == output.logits[0].shape
    assert all(torch.isfinite(t).all() for t in tensors(finest))


@pytest.mark.parametrize("entry", ALL, ids=str)
def test_a_gradient_reaches_every_parameter(entry):
    missing = None
    for seed in range(3):  # a narrow layer may start with all its units off
        network = entry.build(seed=seed)
        for step in range(3):  # what starts as an identity lets gradients through to what lies behind it later
            network.zero_grad()
            output = network(entry.image(2, seed=step))
            noise = torch.Generator().manual_seed(step)
            sum(
                (t * torch.randn(t.shape, generator=noise)).sum() for t in tensors(output) if t.requires_grad
            ).backward()
            weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
            dead = {name for name, w in weights.items() if w.grad is None or not w.grad.abs().sum() > 0}
            missing = dead if missing is None else missing & dead
            if not missing:
                return
            with torch.no_grad():
                for weight in weights.values():
                    if weight.grad is not None:
                        weight.sub_(weight.grad / weight.grad.norm().clamp_min(1e-6), alpha=1e-2)
    # a norm takes away what the bias before it adds
    assert {name for name in missing if not name.endswith("bias")} == set()
    network, image = entry.build().eval(), entry.image(2)
    weights = dict(network.named_parameters())
    with torch.no_grad():
        before = tensors(network(image))
        for name in missing:
            weights[name].add_(1.0)
        for one, other in zip(tensors(network(image)), before, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, msg=lambda text: f"{missing}: {text}")


@pytest.mark.parametrize("entry", LEARNERS, ids=str)
def test_it_learns_one_patch_by_heart(entry):
    """The others in tests/acceptance/test_networks_learn.py."""
    battery.check_learns(entry)


@pytest.mark.parametrize("entry", ALL_2D, ids=str)
def test_half_precision_gives_about_the_same(entry):
    battery.check_half(entry, torch.bfloat16)


@pytest.mark.parametrize("entry", ALL, ids=str)
def test_saved_weights_give_the_same_network(entry, tmp_path):
    first, second, image = entry.build().eval(), entry.build(seed=1).eval(), entry.image()
    stored = save({name: tensor.contiguous() for name, tensor in first.state_dict().items()})
    second.load_state_dict(load(stored))
    with torch.inference_mode():
        for one, other in zip(tensors(first(image)), tensors(second(image)), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("entry", [*battery.few(), *battery.blocks("2d"), *battery.heads("2d")], ids=str)
def test_it_exports_and_the_export_computes_the_same(entry):
    """The others in tests/acceptance/test_networks_graphs.py."""
    battery.check_export(entry)


def test_networks_compile_as_one_graph():
    battery.compile_apart('[*battery.few(), *battery.blocks("2d"), *battery.heads("2d")]')


@pytest.mark.parametrize("entry", [*battery.backbones("2d"), *battery.losses("2d"), *battery.heads("3d")], ids=str)
def test_memory_is_estimated_with_heads_and_losses(entry):
    job = entry.job()
    what = {"channels": job.channels, "outputs": job.outputs, "patch": job.patch, "training": job.training}
    weights = sum(weight.nbytes for weight in entry.build().parameters())
    assert estimate_step(entry.network, batch=job.batch, **what).live_bytes > 2 * weights  # and their gradients


@pytest.mark.parametrize("entry", MEASURED, ids=str)
def test_the_estimate_is_what_the_allocator_counts(entry):
    """A few of those that tests/acceptance/test_networks_memory.py holds to 2 %."""
    job = entry.job(4)
    what = {"channels": job.channels, "outputs": job.outputs, "patch": job.patch, "training": job.training}
    estimate = estimate_step(entry.network, batch=job.batch, gpu=False, **what)
    measured = measure_step(entry.network, batch=job.batch, device=torch.device("cpu"), **what)
    assert estimate.live_bytes == pytest.approx(measured.live_bytes, rel=0.04)  # kernels differ by processor


@pytest.mark.parametrize("entry", LOSSES, ids=str)
def test_a_loss_is_finite_and_reaches_the_network(entry):
    network, batch = entry.build(), random_batch(entry.job(), torch.device("cpu"))
    output = network(batch.image) if batch.raters is None else network(batch.image, batch.raters)
    value = build_loss(entry.losses)(output, batch).total
    value.backward()
    assert torch.isfinite(value)
    grads = [weight.grad for weight in network.parameters() if weight.grad is not None]
    assert any(grad.abs().sum() > 0 for grad in grads) and all(torch.isfinite(grad).all() for grad in grads)

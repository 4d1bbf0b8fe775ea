"""Members of a bundle as functions, alone and together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medseg.errors import BundleError, ImageError
from medseg.inference.ensemble import load_members, network_forward, predict_scores
from medseg.inference.streaming import turn_to_thinnest
from medseg.networks.build import build_network
from medseg.types.geometry import Geometry
from medseg.types.image import Image
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
from medseg.types.result import Member, ModelBundle

CPU = torch.device("cpu")


def make_plan(ndim):
    flat = ndim == 2
    stride, kernel = ((1, 2, 2), (1, 3, 3)) if flat else ((2, 2, 2), (3, 3, 3))
    return Plan(
        "medseg.plan/1",
        "tiny",
        ("T1", "T2"),
        Labels((Label("a", (1,)), Label("b", (2,)))),
        Preprocess((1.0, 1.0, 1.0), (Step("z_score"), Step("z_score"))),
        Network("unet", Topology(ndim, (4, 8), ((1, 1, 1), stride), (kernel, kernel), (1, 1))),
        Sampling((1, 8, 8) if flat else (8, 8, 8), 3),
        Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), 1),
        Inference(),
        (),
        Origin("0.1.0", "0" * 64, Budget(4.0), "unet"),
        {},
    )


def make_network(plan, seed):
    torch.manual_seed(seed)
    return build_network(plan.network, channels=2, outputs=3)


def make_bundle(folder: Path, plan: Plan, folds) -> ModelBundle:
    members = []
    for seed, fold in enumerate(folds):
        state = {name: value.contiguous() for name, value in make_network(plan, seed).state_dict().items()}
        save_file(state, folder / f"{fold}.safetensors")
        members.append(Member(fold, f"{fold}.safetensors", ""))
    return ModelBundle(folder, plan, tuple(members), {})


def make_image(*shape):
    array = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    return Image(array, Geometry(shape, (1.0, 1.0, 1.0)), ("T1", "T2"))


def whole(slabs):
    return np.concatenate([slab.scores for slab in slabs], axis=1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_members_are_averaged_on_the_grid_of_the_image(tmp_path, ndim):
    plan = make_plan(ndim)
    bundle = make_bundle(tmp_path, plan, [0, 1])
    image = make_image(8, 8, 8)
    found = whole(predict_scores(load_members(bundle, device=CPU), image, plan, device=CPU))
    networks = [make_network(plan, seed).eval() for seed in (0, 1)]
    window = torch.from_numpy(image.array)
    window = window.transpose(0, 1) if ndim == 2 else window[None]
    with torch.inference_mode():
        expected = sum(network(window).logits[0] for network in networks) / 2
    expected = expected.transpose(0, 1) if ndim == 2 else expected[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_folds_choose_members_and_unknown_ones_are_refused(tmp_path):
    plan = make_plan(3)
    bundle = make_bundle(tmp_path, plan, [0, "all"])
    window = torch.from_numpy(make_image(8, 8, 8).array)[None]
    both = load_members(bundle, device=CPU)
    only = load_members(bundle, device=CPU, folds=["all"])
    assert len(both) == 2 and len(only) == 1
    torch.testing.assert_close(only[0](window), both[1](window))
    for folds in ([3], []):
        with pytest.raises(BundleError, match="folds are 0, all"):
            load_members(bundle, device=CPU, folds=folds)


def test_reduced_precision_stays_close_and_the_network_is_in_eval_mode():
    plan = make_plan(3)
    network = make_network(plan, 0).train()
    window = torch.from_numpy(make_image(8, 8, 8).array)[None]
    exact = network_forward(network, plan, CPU)(window)
    rounded = network_forward(network, plan, CPU, precision="bf16")(window)
    assert not network.training and not exact.requires_grad and exact.dtype == torch.float32
    assert (exact - rounded.float()).abs().max() < 0.1 * exact.abs().max()


def test_damaged_weights_and_pickles_are_refused(tmp_path):
    bundle = make_bundle(tmp_path, make_plan(3), [0])
    path = tmp_path / "0.safetensors"
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(BundleError, match=r"do not fit the plan.*copy"):
        load_members(bundle, device=CPU)
    path.unlink()
    with pytest.raises(BundleError, match="do not fit"):
        load_members(bundle, device=CPU)


def test_a_scan_with_other_channels_is_refused(tmp_path):
    plan = make_plan(3)
    image = make_image(8, 8, 8)
    with pytest.raises(ImageError, match="needs 2: T1, T2"):
        predict_scores((lambda x: x,), replace(image, array=image.array[:1]), plan, device=CPU)


@pytest.mark.parametrize("labels", [
    Labels((Label("kidney_left", (1,)), Label("spine", (2,)), Label("kidney_right", (3,)))),
    Labels((Label("kidney_left", (1,)), Label("both", (1, 3)), Label("kidney_right", (3,)))),
])  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_mirrored_averaging_keeps_left_and_right_apart(labels, turned):
    """A network that tells the sides by where they lie, as trained ones do; it is right on mirrored scans too."""
    plan = replace(make_plan(3), labels=labels)
    first = 0 if labels.are_regions() else 1

    def network(image):
        columns = torch.arange(image.shape[-1])
        bright = image[:, 0] > 0.5
        logits = torch.zeros(len(image), labels.outputs(), *image.shape[2:])
        logits[:, first] = 4.0 * (bright & (columns > 4))
        logits[:, first + 2] = 4.0 * (bright & (columns < 3))
        return logits

    def predicted(inference):
        array = np.zeros((2, 8, 40 if turned else 8, 8), np.float32)
        array[0, 2:6, 2:6, 6], array[0, 2:6, 2:6, 1] = 1, 1
        image = Image(array, Geometry(array.shape[1:], (1.0, 1.0, 1.0)), ("T1", "T2"))
        turned_image, turned_plan, members = turn_to_thinnest(image, replace(plan, inference=inference), [network])
        assert (turned_image is image) != turned
        return whole(predict_scores(members, turned_image, turned_plan, device=CPU))

    alone = predicted(Inference())
    pair = (("kidney_left", "kidney_right"),)
    for axes in ((2,), (0, 2), (0, 1, 2)):
        swapped = predicted(Inference(mirror_axes=axes, swap_axis=2, swap_labels=pair))
        np.testing.assert_allclose(swapped, alone, atol=1e-5)
    mixed = predicted(Inference(mirror_axes=(2,)))
    assert not np.allclose(mixed, alone, atol=1)


def test_the_axis_between_the_sides_turns_with_the_others():
    plan = replace(make_plan(3), inference=Inference(mirror_axes=(1, 2), swap_axis=2, swap_labels=(("a", "b"),)))
    _, turned, _ = turn_to_thinnest(make_image(8, 8, 40), plan, [lambda image: image])
    assert turned.inference.mirror_axes == (2, 0) and turned.inference.swap_axis == 0

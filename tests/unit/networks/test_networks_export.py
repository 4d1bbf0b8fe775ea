"""Exported programs are fused and give the numbers of the network; compilers take every block."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from medseg.errors import PlanError
from medseg.networks.blocks.conv import Style
from medseg.networks.blocks.repvgg import RepVggBlock
from medseg.networks.blocks.residual import ResidualBlock
from medseg.networks.build import BACKBONES, HeadedNetwork, build_network
from medseg.networks.export import Exported, exported
from medseg.types.plan import Network, Step, Topology

FLAT = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (2, 1))
THICK = Topology(3, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (3, 3, 3)), (1, 2))
SIZES = {2: (6, 8), 3: (4, 4, 6)}
BOTH = pytest.mark.parametrize("topology", [FLAT, THICK], ids=["2d", "3d"])


def _build(use: str, topology: Topology, *heads: Step, seed: int = 0, **options: object) -> HeadedNetwork:
    """A network whose norms do something and whose batch statistics are not those of the start."""
    torch.manual_seed(seed)
    plan = Network(use, topology, heads or (Step("segmentation"),), options)  # type: ignore[arg-type]
    network = build_network(plan, channels=2, outputs=3 if not heads else 0)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.2, 1.5)
    for _ in range(3):
        network(torch.randn(2, 2, *SIZES[topology.ndim]))
    return network.eval()


def takes(use: str, option: str) -> bool:
    return option in inspect.signature(BACKBONES[use]).parameters


def _count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def _calls(made: Exported, operation: str) -> int:
    """How often a program calls operations whose names hold this, also within blocks of its graph."""
    graphs = [part.graph for part in made.program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    return sum(operation in str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function")


@BOTH
@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("unet", {"norm": "batch"}),
        ("unet", {"norm": "batch", "encoder": "repvgg", "act": "prelu"}),
        ("unet", {"norm": "batch", "encoder": "separable", "act": "maxout", "dropout": 0.5}),
        ("resenc_unet", {"norm": "batch"}),
        ("unet", {"norm": "batch", "attention": "aspp"}),
        ("mel_net", {"norm": "batch"}),
        ("vnet", {"norm": "batch"}),
    ],
    ids=str,
)
def test_a_program_has_no_batch_norms_one_convolution_per_block_and_the_same_numbers(
    use: str, options: dict[str, object], topology: Topology
) -> None:
    network = _build(use, topology, **options)
    norms, blocks, convolutions = (_count(network, kind) for kind in (_BatchNorm, RepVggBlock, _ConvNd))
    assert norms > 0 and blocks == (sum(topology.blocks) if options.get("encoder") == "repvgg" else 0)
    made = exported([network], channels=2, size=SIZES[topology.ndim], batch=2)
    assert _calls(made, "batch_norm") == 0
    assert _calls(made, "aten.conv") == convolutions - blocks, "of the two of a RepVGG block one is left"
    weights = [sum(p.numel() for p in parameters) for parameters in (made.program.parameters(), network.parameters())]
    assert weights[0] < weights[1]
    image = torch.randn(2, 2, *SIZES[topology.ndim])
    (logits,) = made.program.module()(image)
    torch.testing.assert_close(logits, network(image).logits[0], rtol=1e-4, atol=1e-4)
    assert _count(network, _BatchNorm) == norms, "the network itself is left alone"


@BOTH
@pytest.mark.parametrize("use", [name for name in BACKBONES if takes(name, "norm")])
def test_every_network_with_batch_norm_is_exported_with_its_numbers(use: str, topology: Topology) -> None:
    wide = Topology(topology.ndim, (8, 16), topology.strides, topology.kernels, topology.blocks)
    try:
        network = _build(use, wide, norm="batch")
    except PlanError:
        pytest.skip("this network refuses two stages, batch norm or the dimension")
    made = exported([network], channels=2, size=SIZES[topology.ndim], batch=2)
    image = torch.randn(2, 2, *SIZES[topology.ndim])
    torch.testing.assert_close(made.program.module()(image)[0], network(image).logits[0], rtol=1e-3, atol=1e-3)


def test_without_fusing_a_program_has_every_norm_and_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above counts is found where it is."""
    network = _build("unet", FLAT, norm="batch", encoder="repvgg")
    monkeypatch.setattr("medseg.networks.export._fuse", lambda module: module)
    made = exported([network], channels=2, size=SIZES[2], batch=2)
    assert _calls(made, "batch_norm") == _count(network, _BatchNorm)
    assert _calls(made, "aten.conv") == _count(network, _ConvNd)


@BOTH
@pytest.mark.parametrize("options", [{}, {"norm": "batch", "encoder": "repvgg"}, {"dropout": 0.5}], ids=str)
def test_a_program_takes_any_batch_and_gives_the_numbers_of_the_network(
    options: dict[str, object], topology: Topology
) -> None:
    size = SIZES[topology.ndim]
    network = _build("unet", topology, **options).train()
    made = exported([network], channels=2, size=size)
    assert made.outputs == ("logits",) and made.size == size and network.training and network.channels_last
    network.eval()
    for batch in (1, 2, 5):
        image = torch.randn(batch, 2, *size)
        (logits,) = made.program.module()(image)
        torch.testing.assert_close(logits, network(image).logits[0], rtol=1e-4, atol=1e-4)


def test_a_program_of_several_members_returns_their_mean() -> None:
    members = [_build("unet", FLAT, seed=seed) for seed in (0, 1)]
    made = exported(members, channels=2, size=(6, 8), batch=1)
    image = torch.randn(1, 2, 6, 8)
    expected = sum(member(image).logits[0] for member in members) / 2
    torch.testing.assert_close(made.program.module()(image)[0], expected, rtol=1e-4, atol=1e-4)


def test_landmarks_leave_by_their_names_and_are_not_averaged() -> None:
    network = _build("unet", FLAT, Step("dsnt", {"points": 2}))
    made = exported([network], channels=2, size=(6, 8))
    image = torch.randn(3, 2, 6, 8)
    found, expected = dict(zip(made.outputs, made.program.module()(image), strict=True)), network(image)
    torch.testing.assert_close(found["points"], expected.points, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["heatmaps"], expected.heatmaps, rtol=1e-4, atol=1e-4)
    with pytest.raises(PlanError, match="export one fold"):
        exported([network, network], channels=2, size=(6, 8))


def test_a_network_that_counts_its_images_needs_a_fixed_batch() -> None:
    cube = Topology(3, (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (1, 1))
    network = _build("direction_fused", cube)
    with pytest.raises(PlanError, match="fix the number of images"):
        exported([network], channels=2, size=(4, 4, 4))
    made = exported([network], channels=2, size=(4, 4, 4), batch=1)
    image = torch.randn(1, 2, 4, 4, 4)
    torch.testing.assert_close(made.program.module()(image)[0], network(image).logits[0], rtol=1e-4, atol=1e-4)


def test_compiled_layers_learn_as_plain_ones() -> None:
    """The lean norm is taken apart for compilers; the checker of shapes in tests is in the way of whole networks."""
    torch.manual_seed(0)
    layers = ResidualBlock(2, 4, (1, 3, 3), (1, 1, 2), Style())
    image, results = torch.randn(2, 2, 2, 4, 4), []
    for run in (layers, torch.compile(layers, backend="eager", fullgraph=True)):
        layers.zero_grad()
        result = run(image)
        result.square().mean().backward()
        results.append([result, *(p.grad for p in layers.parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)


def test_a_whole_backbone_compiles_into_one_graph() -> None:
    backbone, image = (
        _build("unet", Topology(2, FLAT.channels, FLAT.strides, FLAT.kernels, (1, 1))).backbone,
        torch.randn(1, 2, 4, 4),
    )
    compiled = torch.compile(backbone.train(), backend="eager", fullgraph=True)
    for found, expected in zip(compiled(image), backbone(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

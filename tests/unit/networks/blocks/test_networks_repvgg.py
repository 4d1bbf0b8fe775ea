"""RepVGG: the branches by definition, and one convolution that equals them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.conv import ConvNormAct, Style
from medseg.networks.blocks.norms import NoNorm
from medseg.networks.blocks.repvgg import RepVggBlock

CASES = [
    ((3, 3), (1, 1), 4, 4),
    ((3, 3), (2, 1), 4, 4),
    ((3, 1), (1, 1), 3, 6),
    ((1, 3, 3), (1, 1, 1), 4, 4),
    ((3, 3, 3), (2, 2, 1), 3, 5),
]


def _learnt(block: nn.Module, x: Tensor) -> nn.Module:
    """The block after a few batches, with norms that do something, in eval mode."""
    for module in block.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    for _ in range(3):
        block(x + torch.randn(()))
    return block.eval()


@pytest.mark.parametrize(("kernel", "stride", "inputs", "outputs"), CASES)
@pytest.mark.parametrize("act", ["relu", "prelu"])
def test_the_fused_convolution_equals_the_branches(
    kernel: tuple[int, ...], stride: tuple[int, ...], inputs: int, outputs: int, act: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, inputs, *(6, 4, 4)[: len(kernel)])
    block = _learnt(RepVggBlock(inputs, outputs, kernel, stride, Style(act=act)), x)
    one = block.fuse()
    torch.testing.assert_close(one(x), block(x), rtol=1e-5, atol=1e-5)
    assert sum(isinstance(m, nn.modules.conv._ConvNd) for m in one.modules()) == 1
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in one.modules())
    assert one[0].weight.numel() == block.wide["conv"].weight.numel()


def test_the_block_is_the_sum_of_its_branches() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 6)
    block = RepVggBlock(4, 4, (3, 3), (1, 1), Style(act="relu"))
    norm = lambda t: F.batch_norm(t, None, None, training=True)  # noqa: E731
    wide = F.conv2d(x, block.wide["conv"].weight, padding=1)
    point = F.conv2d(x, block.point["conv"].weight)
    torch.testing.assert_close(block(x), (norm(wide) + norm(point) + norm(x)).relu(), rtol=1e-4, atol=1e-5)
    assert RepVggBlock(4, 4, (3, 3), (2, 2), Style()).same is None
    assert RepVggBlock(4, 5, (3, 3), (1, 1), Style()).same is None


def test_a_convolution_and_its_batch_norm_fold_into_one_convolution() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    layer = _learnt(ConvNormAct(3, 6, (3, 3), (1, 1), Style(norm="batch"), act=False, groups=3), x)
    nn.init.normal_(layer.conv.bias)
    expected = layer(x)
    fused = layer.fuse()
    assert isinstance(fused.norm, NoNorm)
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)


def test_norms_that_look_at_the_image_stay() -> None:
    layer = ConvNormAct(3, 6, (3, 3), (1, 1), Style())
    names = [n for n, _ in layer.named_parameters()]
    assert [n for n, _ in layer.fuse().named_parameters()] == names

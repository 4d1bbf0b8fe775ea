"""Networks of MONAI as backbones: their last convolution makes way for the plan's heads.

MONAI takes seconds to import and is no dependency: the builders import it, and say so where it is missing. Norms,
activations and kernels are MONAI's, and there are no options for other blocks; of the topology only what a builder
names is used.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.resample import resized
from medseg.types.plan import Topology


def segresnet(topology: Topology, *, in_channels: int, dropout: float = 0.0) -> nn.Module:
    """SegResNet without its autoencoder (Myronenko 2018).

    Stages, blocks per stage and the channels of the first stage are the topology's; channels double per stage. Raises
    PlanError unless every stage but the first halves every axis, or if MONAI is missing.
    """
    _halving(topology, "segresnet")
    with _needed("segresnet"):
        from monai.networks.nets.segresnet import SegResNet
    base = topology.channels[0]
    network: Any = SegResNet(
        spatial_dims=topology.ndim,
        init_filters=base,
        in_channels=in_channels,
        norm=("GROUP", {"num_groups": _largest_divisor(base, 8)}),
        dropout_prob=dropout or None,
        blocks_down=topology.blocks,
        blocks_up=(1,) * (len(topology.blocks) - 1),
    )
    network.conv_final[-1] = nn.Identity()
    return FromMonai(network, (base,), topology.divisor()[3 - topology.ndim :])


def swin_unetr(
    topology: Topology,
    *,
    in_channels: int,
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window: int = 7,
    v2: bool = False,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Swin UNETR: shifted-window attention in the encoder, convolutions in the decoder (Hatamizadeh 2022).

    It halves every axis five times whatever the topology says, and pads images to multiples of 32 inside; the feature
    size is the multiple of 12 nearest to the channels of the first stage. A feature smaller than the window has a
    smaller one, with the biases of the same offsets. Raises PlanError if MONAI is missing.
    """
    with _needed("swin_unetr"):
        import einops  # noqa: F401  # MONAI finds out too late
        from monai.networks.nets.swin_unetr import SwinTransformerBlock, SwinUNETR
    size = max(12, 12 * round(topology.channels[0] / 12))
    network: Any = SwinUNETR(
        in_channels=in_channels,
        out_channels=1,
        depths=tuple(depths),
        num_heads=tuple(heads),
        window_size=window,
        feature_size=size,
        drop_rate=dropout,
        dropout_path_rate=drop_path,
        spatial_dims=topology.ndim,
        use_v2=v2,
    )
    network.out = nn.Identity()
    for block in network.modules():
        if isinstance(block, SwinTransformerBlock):
            fitted = BiasOfOffset(block.attn.window_size)
            block.register_forward_pre_hook(fitted.narrow)
            block.register_forward_hook(fitted.widen, always_call=True)
    return FromMonai(network, (size,), (32,) * topology.ndim)


def unetr(
    topology: Topology, *, in_channels: int, hidden: int = 768, heads: int = 12, places: int = 6, dropout: float = 0.0
) -> nn.Module:
    """UNETR: a vision transformer over cubes of 16 voxels as encoder, convolutions as decoder (Hatamizadeh 2022).

    The channels of the first stage are the topology's, the rest of it is not used; images are padded to multiples of 16
    inside. Learnt positions stand at `places` per axis and are interpolated for images of other sizes. Raises PlanError
    unless `heads` divides `hidden`, or if MONAI is missing.
    """
    if min(hidden, heads, places) < 1 or hidden % heads:
        raise PlanError(f"{heads} heads of {hidden} channels", where="network.options", hint="use 12 of 768")
    with _needed("unetr"):
        from monai.networks.nets.unetr import UNETR
    network: Any = UNETR(
        in_channels=in_channels,
        out_channels=1,
        img_size=16 * places,
        feature_size=topology.channels[0],
        hidden_size=hidden,
        mlp_dim=4 * hidden,
        num_heads=heads,
        dropout_rate=dropout,
        spatial_dims=topology.ndim,
    )
    network.out = nn.Identity()
    for block in network.vit.blocks:
        block.norm_cross_attn = nn.Identity()  # made and never used
    network.vit.patch_embedding = Patches(network.vit.patch_embedding, (places,) * topology.ndim)
    return FromMonai(AnySize(network, hidden), (topology.channels[0],), (16,) * topology.ndim)


def mednext(
    topology: Topology, *, in_channels: int, expansion: int = 2, kernel: int = 3, response_norm: bool = False
) -> nn.Module:
    """MedNeXt: inverted bottlenecks with large depthwise kernels in every stage and between them (Roy 2023).

    Stages, blocks per stage and the channels of the first stage are the topology's; channels double per stage. Raises
    PlanError unless every stage but the first halves every axis, or if MONAI is missing.
    """
    _halving(topology, "mednext")
    with _needed("mednext"):
        from monai.networks.nets.mednext import MedNeXt
    *blocks, bottom = topology.blocks
    network: Any = MedNeXt(
        spatial_dims=topology.ndim,
        init_filters=topology.channels[0],
        in_channels=in_channels,
        encoder_expansion_ratio=expansion,
        decoder_expansion_ratio=expansion,
        bottleneck_expansion_ratio=expansion,
        kernel_size=kernel,
        deep_supervision=True,
        use_residual_connection=True,
        blocks_down=blocks,
        blocks_bottleneck=bottom,
        blocks_up=blocks[::-1],
        global_resp_norm=response_norm,
    )
    network.out_0 = nn.Identity()
    network.out_blocks = nn.ModuleList(nn.Identity() for _ in blocks)
    channels = tuple(topology.channels[0] << k for k in range(len(blocks)))
    return FromMonai(network, channels, topology.divisor()[3 - topology.ndim :])


class FromMonai(nn.Module):
    """A network whose results are features, finest first; images are padded to multiples of `divisor` for it.

    The padding repeats the last voxel at the end of an axis and is cut off the features. Where nothing but one voxel
    would be left at the coarsest stage, the last axis is padded to two: norms need them.
    """

    def __init__(self, network: nn.Module, feature_channels: tuple[int, ...], divisor: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.feature_channels = feature_channels
        self.divisor = tuple(divisor)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        size = image.shape[2:]
        padding = [-n % d for n, d in zip(size, self.divisor, strict=True)]
        if all(n + p == d for n, p, d in zip(size, padding, self.divisor, strict=True)):
            padding[-1] += self.divisor[-1]
        if any(padding):
            image = F.pad(image, [n for end in reversed(padding) for n in (0, end)], mode="replicate")
        found = self.network(image)
        features = found if isinstance(found, tuple) else (found,)
        return tuple(
            feature[
                (..., *(slice(n * f // p) for n, f, p in zip(size, feature.shape[2:], image.shape[2:], strict=True)))
            ]
            for feature in features[: len(self.feature_channels)]
        )


class BiasOfOffset:
    """Hooks of one Swin block that keep the bias of an offset the same where a feature is smaller than the window.

    MONAI then reads the first rows and columns of an index made for the whole window, in which a token's number is that
    of another place.
    """

    def __init__(self, window: Sequence[int]) -> None:
        self.window = tuple(window)
        self.whole: list[Tensor] = []

    def narrow(self, block: Any, inputs: tuple[Any, ...]) -> None:
        """Before a block: its index for the window that fits the feature (b, *s, c)."""
        used = [slice(min(n, w)) for n, w in zip(inputs[0].shape[1:-1], self.window, strict=True)]
        whole = block.attn.relative_position_index
        self.whole.append(whole)
        count = math.prod(part.stop for part in used)
        fitted = whole.reshape(*self.window, *self.window)[(*used, *used)].reshape(count, count)
        block.attn.relative_position_index = fitted

    def widen(self, block: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """After a block: the index as it was."""
        block.attn.relative_position_index = self.whole.pop()


class Patches(nn.Module):
    """Tokens (b, n, c) of an image of any size: MONAI's convolution plus its positions at `grid`, interpolated."""

    def __init__(self, monai: Any, grid: Sequence[int]) -> None:
        super().__init__()
        self.conv, self.dropout = monai.patch_embeddings, monai.dropout
        self.positions = nn.Parameter(monai.position_embeddings.detach().mT.unflatten(2, tuple(grid)))

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        return self.dropout((x + resized(self.positions, x.shape[2:])).flatten(2).mT)  # type: ignore[no-any-return]


class AnySize(nn.Module):
    """UNETR told the size of every image's grid of tokens, which it otherwise fixes when it is built."""

    def __init__(self, network: Any, hidden: int) -> None:
        super().__init__()
        self.network, self.hidden = network, hidden

    def forward(self, image: Tensor) -> Tensor:
        self.network.proj_view_shape = [*(n // 16 for n in image.shape[2:]), self.hidden]
        return self.network(image)  # type: ignore[no-any-return]


@contextmanager
def _needed(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        package = (error.name or "monai").partition(".")[0]
        raise PlanError(
            f'"{name}" needs {package}, which is not installed',
            where="network.use",
            hint="pip install medseg[monai], or use another network",
        ) from error


def _halving(topology: Topology, name: str) -> None:
    """Raise PlanError unless every stage but the first halves every axis."""
    skip = 3 - topology.ndim
    strides = [row[skip:] for row in topology.strides]
    wanted = [(1,) * topology.ndim] + [(2,) * topology.ndim] * (len(strides) - 1)
    if strides != wanted or len(strides) < 2:
        raise PlanError(
            f'"{name}" halves every axis at every stage but the first, not {strides}',
            where="network.topology.strides",
            hint="use unet, or strides of 2 in two stages or more",
        )


def _largest_divisor(channels: int, most: int) -> int:
    return next(n for n in range(min(channels, most), 0, -1) if channels % n == 0)

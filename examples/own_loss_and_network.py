"""An own loss and an own network, named in the plan as "module:function"; nothing is subclassed or registered.

    python examples/own_loss_and_network.py [OUT]

A bundle lists the modules it needs, and they are imported only where the user trusts them by name.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from train_small import DATASET, small_plan

import medseg


def focal_tversky(
    output: medseg.NetworkOutput, batch: medseg.Batch, *, alpha: float = 0.7, gamma: float = 0.75
) -> Tensor:
    """(1 - Tversky index) ** gamma, mean over classes; misses weigh `alpha` (Abraham and Khan 2019)."""
    chance = torch.softmax(output.logits[0].float(), dim=1)[:, 1:]
    classes = torch.arange(1, chance.shape[1] + 1, device=chance.device).view(1, -1, *[1] * (chance.dim() - 2))
    truth = (batch.target == classes).float()
    axes = (0, *range(2, chance.dim()))
    hit, missed = (chance * truth).sum(axes), ((1 - chance) * truth).sum(axes)
    false = (chance * (1 - truth) * (batch.target >= 0)).sum(axes)
    return ((1 - (hit + 1) / (hit + alpha * missed + (1 - alpha) * false + 1)) ** gamma).mean()


def dilated(topology: medseg.Topology, *, in_channels: int, dilations: str = "1 2 4") -> nn.Module:
    """Convolutions of growing dilation at full resolution; the head on top is medseg's."""
    width, layers = topology.channels[0], nn.Sequential()
    for before, dilation in zip([in_channels, width, width, width], map(int, dilations.split()), strict=False):
        layers.extend([nn.Conv3d(before, width, 3, padding=dilation, dilation=dilation), nn.InstanceNorm3d(width)])
        layers.append(nn.LeakyReLU())
    return Features(layers, width)


class Features(nn.Module):
    """A backbone returns its features per scale, finest first, and says how many channels each has."""

    def __init__(self, layers: nn.Module, width: int) -> None:
        super().__init__()
        self.layers, self.feature_channels = layers, (width,)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (self.layers(image),)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "example-output/own")
    plan, me = small_plan(), "own_loss_and_network"
    terms = (medseg.LossTerm(1.0, "dice_ce"), medseg.LossTerm(0.5, f"{me}:focal_tversky", {"alpha": 0.6}))
    plan = replace(plan, training=replace(plan.training, losses=terms))
    plan = replace(plan, network=replace(plan.network, use=f"{me}:dilated"))
    bundle = medseg.train(plan, DATASET, out, folds=0, device="cpu")
    model = medseg.load_model(bundle.root, device="cpu", trust=[me])
    print(bundle.code_refs, model.predict(DATASET / "imagesTs" / "hippocampus_001_0000.nii.gz").volumes_ml)

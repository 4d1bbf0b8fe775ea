"""A backbone that hands the image on, for bundles whose answer is known; processes of their own import it by name."""

import torch


class Same(torch.nn.Module):
    feature_channels = (1,)

    def forward(self, image):
        return (image,)


def same(topology, *, in_channels):
    return Same()

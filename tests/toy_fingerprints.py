"""Small fingerprints and a stand-in for the memory estimate."""

import math
from dataclasses import dataclass, replace

from medseg.types.fingerprint import CaseFingerprint, Fingerprint, IntensityStats
from medseg.types.labels import Label, Labels

STATS = IntensityStats(100.0, 20.0, 0.0, 10.0, 100.0, 200.0, 300.0)
TWO = Labels((Label("anterior", (1,)), Label("posterior", (2,))))


def toy(
    shapes,
    spacings,
    *,
    ndim=3,
    unit="mm",
    channels=("MRI",),
    stats=STATS,
    cropped=None,
    labels=TWO,
    mirror_labels=(0.9, 0.3, 0.9),
    mirror_image=(0.9, 0.9, 0.9),
    stored="LPS",
):
    cropped = cropped or shapes
    cases = tuple(
        CaseFingerprint(f"case_{i:03}", s, mm, c, stored, (stats,) * len(channels), (100,) * len(labels.items))
        for i, (s, mm, c) in enumerate(zip(shapes, spacings, cropped, strict=True))
    )
    return Fingerprint(
        schema="medseg.fingerprint/1",
        dataset="toy",
        channels=channels,
        labels=labels,
        ndim=ndim,
        unit=unit,
        orientation="LPS",
        cases=cases,
        intensity=(stats,) * len(channels),
        mirror_labels=mirror_labels,
        mirror_image=mirror_image,
    )


def alike(shape, spacing, count, **more):
    return toy([shape] * count, [spacing] * count, **more)


def with_stats(**values):
    return replace(STATS, **values)


@dataclass(frozen=True)
class Bytes:
    count: int
    workspace_bytes: int = 0
    context_bytes: int = 2**29

    def total_bytes(self):
        return self.count + self.context_bytes


def feature_bytes(network, *, channels, outputs, patch, batch, training, regions=False):
    """Ten float32 maps of each stage's channels, and half a GiB for the context."""
    voxels, total = math.prod(patch) * batch, 0.0
    shrunk = 1
    for width, stride in zip(network.topology.channels, network.topology.strides, strict=True):
        shrunk *= math.prod(stride)
        total += voxels / shrunk * width * 40
    return Bytes(int(total))


def voxel_seconds(network, sampling, training):
    """Two microseconds per voxel for 32 first channels."""
    return math.prod(sampling.patch) * sampling.batch * network.topology.channels[0] / 32 * 2e-6

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.planning.presets import PRESETS
from medseg.planning.topology import shrink, topology_for

UNET, RESENC = PRESETS["unet"], PRESETS["resenc"]
SIZES = st.tuples(*[st.integers(4, 300)] * 3)
SPACINGS = st.tuples(*[st.floats(0.1, 6.0)] * 3)


def test_the_published_prostate_network():
    """nnU-Net's plan of the MSD prostate data: patch 20 x 320 x 256 at 3.6 x 0.625 x 0.625 mm."""
    topology, padded = topology_for((20, 320, 256), (3.6, 0.625, 0.625), ndim=3, preset=UNET)
    assert padded == (20, 320, 256)
    assert topology.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert topology.kernels == ((1, 3, 3),) * 2 + ((3, 3, 3),) * 5
    assert topology.channels == (32, 64, 128, 256, 320, 320, 320)
    assert topology.blocks == (2,) * 7


def test_isotropic_and_residual():
    topology, padded = topology_for((128, 128, 128), (1.0, 1.0, 1.0), ndim=3, preset=RESENC)
    assert topology.strides == ((1, 1, 1),) + ((2, 2, 2),) * 5 and padded == (128, 128, 128)
    assert topology.blocks == (1, 3, 4, 6, 6, 6)
    assert set(topology.kernels) == {(3, 3, 3)}


def test_2d_leaves_z_alone():
    topology, padded = topology_for((1, 500, 400), (1.0, 0.3, 0.3), ndim=2, preset=UNET, base=16)
    assert {row[0] for row in (*topology.strides, *topology.kernels)} == {1}
    assert padded == (1, 512, 448) and topology.channels == (16, 32, 64, 128, 256, 256, 256)


def test_a_tiny_patch_is_one_stage():
    topology, padded = topology_for((5, 6, 7), (1.0, 1.0, 1.0), ndim=3, preset=UNET)
    assert len(topology.strides) == 1 and padded == (5, 6, 7) and topology.kernels == ((3, 3, 3),)


@given(SIZES, SPACINGS)
@settings(max_examples=100, deadline=None)
def test_patches_divide_and_no_feature_map_is_below_four_voxels(size, spacing):
    topology, padded = topology_for(size, spacing, ndim=3, preset=UNET)
    assert all(p % d == 0 and 0 <= p - n < d for p, n, d in zip(padded, size, topology.divisor(), strict=True))
    assert all(d == 1 or p // d >= 4 for p, d in zip(padded, topology.divisor(), strict=True))
    assert topology.kernels[-1] == (3, 3, 3)


@given(SIZES, SPACINGS)
@settings(max_examples=400, deadline=None)
def test_shrinking_ends_and_every_step_is_smaller(size, spacing):
    patch = topology_for(size, spacing, ndim=3, preset=UNET)[1]
    while True:
        smaller = shrink(patch, (200.0, 180.0, 160.0), spacing, ndim=3, preset=UNET)
        if smaller is None:
            break
        assert math.prod(smaller) < math.prod(patch)
        patch = smaller


def test_the_axis_that_covers_most_shrinks_first():
    assert shrink((128, 128, 128), (512.0, 128.0, 512.0), (1.0, 1.0, 1.0), ndim=3, preset=UNET) == (128, 112, 128)
    assert shrink((32, 32, 32), (64.0, 64.0, 64.0), (1.0, 1.0, 1.0), ndim=3, preset=UNET) is None

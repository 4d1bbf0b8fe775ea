import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from medseg.augment import intensity
from medseg.augment.chain import AUGMENT
from medseg.types.tensors import Patch

GREY = sorted(set(AUGMENT) - {"affine", "elastic", "mirror", "truncation"})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def patch_of(shape, channels=2):
    torch.manual_seed(0)
    return Patch(torch.randn(channels, *shape), torch.randint(0, 3, (1, *shape)).to(torch.int16))


@pytest.mark.parametrize("shape", [(12, 10), (8, 12, 10)])
@pytest.mark.parametrize("name", GREY)
def test_grey_values_change_and_labels_do_not(name, shape):
    patch = patch_of(shape)
    options = {"p": 1.0} | ({"p_channel": 1.0, "high": 0.8} if name in ("blur", "low_resolution") else {})
    out = AUGMENT[name](patch, generator(), **options)
    assert out.labels is patch.labels
    assert out.image.shape == patch.image.shape and out.image.dtype == torch.float32
    assert not torch.allclose(out.image, patch.image)


@pytest.mark.parametrize("name", GREY)
def test_nothing_happens_with_chance_zero(name):
    patch = patch_of((6, 6))
    assert AUGMENT[name](patch, generator(), p=0.0) is patch


def test_steps_fire_with_their_chance():
    patch = patch_of((2, 2))
    rng = generator()
    fired = sum(intensity.brightness(patch, rng) is not patch for _ in range(1000))
    assert 110 < fired < 190


@pytest.mark.parametrize("shape", [(40, 60), (20, 30, 40)])
def test_erasing_fills_one_box_with_what_the_patch_looks_like(shape):
    patch = Patch(7 + 3 * torch.randn(2, *shape, generator=generator()), torch.zeros(1, *shape, dtype=torch.int16))
    rng, places = generator(1), []
    for _ in range(30):
        changed = (intensity.erase(patch, rng, p=1.0, low=0.2, high=0.5).image != patch.image).all(0)
        found = changed.nonzero()
        sides = found.amax(0) - found.amin(0) + 1
        assert changed.sum() == sides.prod()  # a full box, in both channels
        assert all(0.19 * n - 1 <= k <= 0.5 * n + 1 for n, k in zip(shape, sides.tolist(), strict=True))
        places.append(found.float().mean(0) / torch.tensor(shape))
    assert (torch.stack(places).amax(0) > 0.65).all() and (torch.stack(places).amin(0) < 0.35).all()
    whole = intensity.erase(patch, rng, p=1.0, low=1.0, high=1.0).image
    assert float(whole.mean()) == pytest.approx(7, abs=0.3) and float(whole.std()) == pytest.approx(3, abs=0.3)


def test_noise_has_a_standard_deviation_up_to_the_option():
    patch = Patch(torch.zeros(1, 40, 40), torch.zeros(1, 40, 40, dtype=torch.int16))
    rng = generator()
    spreads = [float(intensity.noise(patch, rng, p=1.0, std=0.5).image.std()) for _ in range(60)]
    assert max(spreads) < 0.55 and max(spreads) > 0.4 and min(spreads) < 0.1


def test_speckle_leaves_the_darkest_voxel_and_grows_with_brightness():
    ramp = torch.linspace(-1, 3, 4000).reshape(1, 40, 100)
    change = intensity.speckle(Patch(ramp, ramp.to(torch.int16)), generator(4), p=1.0, std=0.3).image - ramp
    assert change[0, 0, 0] == 0
    assert change[:, 30:].std() > 3 * change[:, :10].std()


@pytest.mark.parametrize("shape", [(11, 13), (9, 11, 13)])
def test_blur_agrees_with_scipy(shape):
    patch = patch_of(shape, channels=1)
    out = intensity.blur(patch, generator(), p=1.0, p_channel=1.0, low=0.8, high=0.8)
    want = gaussian_filter(patch.image[0].numpy(), 0.8, mode="mirror", radius=3)
    assert abs(out.image[0].numpy() - want).max() < 1e-5


def test_low_resolution_agrees_with_torch_interpolation():
    patch = patch_of((12, 16, 10), channels=1)
    out = intensity.low_resolution(patch, generator(), p=1.0, p_channel=1.0, low=0.5, high=0.5)
    coarse = interpolate(patch.image[None], size=(6, 8, 5), mode="nearest-exact")
    want = interpolate(coarse, size=(12, 16, 10), mode="trilinear")[0]
    assert torch.allclose(out.image, want, atol=1e-5)


@pytest.mark.parametrize("name", ["blur", "low_resolution"])
def test_in_plane_steps_do_not_mix_slices(name):
    image = torch.randn(1, 1, 12, 12).repeat(1, 4, 1, 1) * torch.tensor([1.0, 0, 1, 0]).reshape(1, 4, 1, 1)
    patch = Patch(image, torch.zeros(1, 4, 12, 12, dtype=torch.int16))
    out = AUGMENT[name](patch, generator(), p=1.0, p_channel=1.0, high=0.8, in_plane=True)
    assert out.image[:, 1::2].abs().max() == 0 and out.image[:, ::2].abs().max() > 0


def test_contrast_keeps_mean_side_and_range():
    patch = patch_of((20, 20), channels=1)
    out = intensity.contrast(patch, generator(1), p=1.0).image
    assert out.min() >= patch.image.min() and out.max() <= patch.image.max()
    mean = patch.image.mean()
    ratio = ((out - mean) / (patch.image - mean))[(patch.image - mean).abs() < 0.5]
    assert ratio.std() < 1e-2 and 0.75 <= ratio.mean() <= 1.25


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_keeps_order_mean_and_spread(invert):
    patch = patch_of((20, 20))
    out = intensity.gamma(patch, generator(), p=1.0, invert=invert).image
    for before, after in zip(patch.image, out, strict=True):
        assert torch.equal(before.flatten().argsort(), after.flatten().argsort())
        assert torch.allclose(torch.stack(torch.std_mean(before)), torch.stack(torch.std_mean(after)), atol=1e-4)


def test_a_constant_image_stays_finite():
    flat = Patch(torch.full((1, 8, 8), 3.0), torch.zeros(1, 8, 8, dtype=torch.int16))
    for name in GREY:
        assert AUGMENT[name](flat, generator(), p=1.0).image.isfinite().all(), name

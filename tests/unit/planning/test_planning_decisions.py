from dataclasses import replace

import pytest
from toy_fingerprints import TWO, alike, toy, with_stats

from medseg.planning import decisions


def test_target_spacing_is_the_median_per_axis():
    fingerprint = toy([(100, 100, 100)] * 3, [(1.0, 0.5, 0.5), (2.0, 0.7, 0.7), (1.5, 0.9, 0.9)])
    decision = decisions.target_spacing(fingerprint)
    assert decision.value == (1.5, 0.7, 0.7)
    assert "3 scans" in decision.reason and "1 x 0.5 x 0.5" in decision.reason


def test_a_coarse_axis_with_few_slices_gets_its_tenth_percentile():
    spacings = [(5.0, 0.5, 0.5)] * 8 + [(3.0, 0.5, 0.5)] * 2
    decision = decisions.target_spacing(toy([(20, 300, 300)] * 10, spacings))
    assert decision.value == (3.0, 0.5, 0.5)
    assert "z is 10.0 times coarser" in decision.reason


def test_the_percentile_never_falls_below_the_other_axes():
    spacings = [(5.0, 1.0, 1.0)] * 6 + [(0.5, 1.0, 1.0)] * 4
    assert decisions.target_spacing(toy([(20, 300, 300)] * 10, spacings)).value[0] == pytest.approx(1.00001)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((20, 300, 300), (3.0, 1.0, 1.0)), ((101, 300, 300), (5.0, 1.0, 1.0))],
    ids=["not more than 3 times coarser", "not 3 times fewer slices"],
)
def test_an_axis_that_is_not_special_keeps_its_median(shape, spacing):
    fine = (1.0, *spacing[1:])
    decision = decisions.target_spacing(toy([shape] * 10, [spacing] * 8 + [fine] * 2))
    assert decision.value == spacing


def test_a_mixture_of_resolutions_is_said():
    spacings = [(0.1,) * 3] * 2 + [(0.15,) * 3] * 4 + [(0.4,) * 3] * 3
    reason = decisions.target_spacing(toy([(300, 300, 300)] * 9, spacings)).reason
    assert "3 of 9 up-sampled more than 2 times" in reason
    assert "warning" in reason and "75th percentile would be 0.4 x 0.4 x 0.4" in reason
    assert "warning" not in decisions.target_spacing(alike((30, 30, 30), (1.0, 1.0, 1.0), 4)).reason


def test_2d_images_keep_slices_and_pixels_without_spacing_stay():
    flat = alike((1, 500, 600), (1.0, 0.2, 0.1), 3, ndim=2)
    assert decisions.target_spacing(flat).value == (None, 0.2, 0.1)
    pixels = decisions.target_spacing(replace(flat, unit="px"))
    assert pixels.value == (None, None, None) and "no physical spacing" in pixels.reason


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CT", "ct"), ("CTA portal", "ct"), ("CBCT", "cbct"), ("cone-beam CT", "cbct"), ("T1w", "mr"),
        ("T2 FLAIR", "mr"),
        ("MRI", "mr"), ("ADC", "mr"), ("mr_t1gd", "mr"), ("US", "us"), ("B-mode", "us"), ("ultrasound", "us"),
        ("Red", "colour"), ("noNorm", "none"), ("zscore", "mr"), ("channel_0", None), ("active", None), ("used", None),
    ],
)  # fmt: skip
def test_names_of_channels(name, kind):
    assert decisions.modality(name) == kind


@pytest.mark.parametrize(
    ("name", "use"),
    [("CT", "clip_z_score"), ("CBCT", "anchor_scale"), ("T1", "z_score"), ("US", "fan_z_score"), ("none", "none")],
)
def test_the_intensity_rule_follows_the_name(name, use):
    decision = decisions.intensity_steps(alike((9, 9, 9), (1.0, 1.0, 1.0), 2, channels=(name,)))
    assert [step.use for step in decision.value] == [use]
    assert f'"{name}"' in decision.reason


def test_ct_takes_the_foreground_statistics_of_the_data_set():
    stats = with_stats(mean=80.123456789, std=30.0, minimum=-900.0, p005=-50.0, p995=190.0)
    decision = decisions.intensity_steps(alike((9, 9, 9), (1.0, 1.0, 1.0), 2, channels=("CT",), stats=stats))
    assert dict(decision.value[0].options) == {"low": -50.0, "high": 190.0, "mean": 80.1235, "std": 30.0}
    assert "-50 to 190" in decision.reason and "warning" not in decision.reason
    shifted = alike((9, 9, 9), (1.0, 1.0, 1.0), 2, channels=("CT",), stats=with_stats(minimum=24.0))
    assert "make sure they are HU" in decisions.intensity_steps(shifted).reason


def test_an_unknown_name_is_decided_from_the_values_and_said():
    air = alike((9, 9, 9), (1.0, 1.0, 1.0), 2, channels=("scan",), stats=with_stats(minimum=-1000.0))
    decision = decisions.intensity_steps(air)
    assert decision.value[0].use == "clip_z_score" and "names no modality; the lowest value is -1000" in decision.reason
    other = decisions.intensity_steps(replace(air, cases=alike((9, 9, 9), (1.0, 1.0, 1.0), 2).cases))
    assert other.value[0].use == "z_score" and "names no modality; the lowest value is 0" in other.reason


def test_ct_without_any_contrast_is_not_clipped_to_nothing():
    constant = alike((9, 9, 9), (1.0,) * 3, 2, channels=("CT",), stats=with_stats(p005=5.0, p995=5.0, std=0.0))
    assert decisions.intensity_steps(constant).value[0].use == "z_score"


def test_every_channel_has_its_rule():
    decision = decisions.intensity_steps(alike((9, 9, 9), (1.0, 1.0, 1.0), 2, channels=("T1", "CT")))
    assert [step.use for step in decision.value] == ["z_score", "clip_z_score"]


@pytest.mark.parametrize(
    ("edge", "crop", "nonzero"), [(60, "nonzero", True), (75, "nonzero", True), (80, "none", False)]
)
def test_cropping_and_masks_from_a_quarter_saved(edge, crop, nonzero):
    fingerprint = alike((100, 10, 10), (1.0, 1.0, 1.0), 3, cropped=[(edge, 10, 10)] * 3)
    assert decisions.cropping(fingerprint).value == crop
    assert f"{100 - edge}%" in decisions.cropping(fingerprint).reason
    assert decisions.intensity_steps(fingerprint).value[0].options == {"nonzero": nonzero}


def test_median_shape_uses_the_crop_only_where_it_is_made():
    fingerprint = alike((100, 10, 10), (1.0, 1.0, 1.0), 3, cropped=[(60, 10, 10)] * 3)
    assert decisions.median_shape(fingerprint, (2.0, None, 0.5), "nonzero") == (30, 10, 20)
    assert decisions.median_shape(fingerprint, (2.0, None, 0.5), "none") == (50, 10, 20)


def test_orientation_counts_the_scans_that_are_turned():
    fingerprint = toy([(9, 9, 9)] * 3, [(1.0,) * 3] * 3, stored="RAS")
    decision = decisions.orientation(fingerprint)
    assert decision.value == "LPS" and decision.reason.startswith("3 of 3 scans are stored otherwise")
    assert decisions.orientation(replace(fingerprint, ndim=2)).value == "stored"


def test_batch_dice_where_a_batch_holds_little_of_a_scan():
    assert decisions.batch_dice(TWO, config="2d", has_lowres=False).value
    assert decisions.batch_dice(TWO, config="3d_fullres", has_lowres=True).value
    assert not decisions.batch_dice(TWO, config="3d_fullres", has_lowres=False).value
    assert not decisions.batch_dice(TWO, config="3d_lowres", has_lowres=True).value


def test_air_is_looked_for_in_the_whole_scan_and_not_in_the_organ():
    fingerprint = alike((40, 40, 40), (1.0,) * 3, 3, channels=("image",), stats=with_stats(minimum=20.0))
    assert decisions.intensity_steps(fingerprint).value[0].use == "z_score"
    cases = tuple(replace(case, lowest=(-1024.0,)) for case in fingerprint.cases)
    decision = decisions.intensity_steps(replace(fingerprint, cases=cases))
    assert decision.value[0].use == "clip_z_score" and "the lowest value is -1024" in decision.reason
    assert "no value is below 0" not in decision.reason

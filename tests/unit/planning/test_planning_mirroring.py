from dataclasses import replace

import pytest
from toy_fingerprints import alike

from medseg.planning.mirroring import Mirroring, mirroring
from medseg.types.labels import Label, Labels

SIDED = Labels((Label("condyle_left", (3,)), Label("condyle_right", (5,)), Label("mandible", (1,))))
ALIKE = {"mirror_labels": (0.1, 0.1, 0.9), "mirror_image": (0.9, 0.9, 0.9)}


def scans(labels=SIDED, **more):
    return alike((40, 40, 40), (1.0,) * 3, 3, labels=labels, **{**ALIKE, **more})


def test_axes_that_are_not_their_own_mirror_image_are_never_mirrored():
    hippocampus = alike((36, 50, 35), (1.0,) * 3, 3, mirror_labels=(0.75, 0.1, 0.8), mirror_image=(0.8, 0.9, 0.4))
    decision = mirroring(hippocampus)
    assert decision.value == Mirroring((0,))
    assert "y no (labels 0.10, image 0.90)" in decision.reason and "x no (labels 0.80, image 0.40)" in decision.reason


def test_a_2d_image_is_never_mirrored_across():
    flat = alike((1, 50, 35), (1.0,) * 3, 3, ndim=2, mirror_labels=(1.0, 0.2, 0.9), mirror_image=(1.0, 0.9, 0.9))
    assert mirroring(flat).value.axes == (2,)


def test_names_that_pair_are_exchanged_along_the_axis_between_the_sides():
    decision = mirroring(scans())
    assert decision.value == Mirroring((2,), 2, (("condyle_left", "condyle_right"),))
    assert "exchanges condyle_left and condyle_right" in decision.reason
    step = decision.value.step(scans())
    assert step.use == "mirror" and step.options == {"axes": [2], "swap_axis": 2, "swap_values": [3, 5]}
    inference = decision.value.inference()
    assert inference.mirror_axes == (2,) and inference.swap_axis == 2
    assert inference.swap_labels == (("condyle_left", "condyle_right"),) and inference.swap_points == ()


def test_the_axis_follows_the_orientation():
    turned = replace(scans(mirror_labels=(0.9, 0.9, 0.1)), orientation="PSL")
    decision = mirroring(turned).value
    assert decision.swap_axis == 0 and decision.axes == (0, 1)
    assert decision.within(2) == Mirroring((1,))


def test_a_side_without_a_partner_is_not_mirrored():
    lonely = Labels((Label("condyle_left", (1,)), Label("mandible", (2,))))
    decision = mirroring(scans(lonely, mirror_labels=(0.9, 0.1, 0.9)))
    assert decision.value == Mirroring((0,))
    assert "not mirrored, since condyle_left has no partner" in decision.reason


def test_sides_of_pictures_whose_orientation_nobody_knows_are_left_alone():
    pictures = alike((1, 50, 35), (1.0,) * 3, 3, ndim=2, labels=SIDED, mirror_labels=(1.0, 0.9, 0.9))
    decision = mirroring(pictures)
    assert decision.value == Mirroring() and "no axis is known" in decision.reason


def test_what_does_not_look_like_its_mirror_image_is_not_mirrored_either_way():
    assert mirroring(scans(mirror_image=(0.9, 0.9, 0.2))).value == Mirroring()


def test_landmarks_beside_the_middle_without_a_partner_keep_scans_from_being_mirrored():
    names = ("menton", "condyle_l", "condyle_r", "canine")
    known = replace(scans(Labels(()), mirror_labels=(0.9,) * 3), landmarks=names)
    pairs = (("condyle_l", "condyle_r"),)
    middle = mirroring(replace(known, landmark_across=(0.42, 0.75, 0.15, 0.48)))  # the middle is that of the pair: 0.45
    assert middle.value == Mirroring((2,), 2, (), pairs)
    beside = mirroring(replace(known, landmark_across=(0.42, 0.75, 0.15, 0.51)))
    assert beside.value == Mirroring() and "canine has no partner" in beside.reason
    labels = replace(scans(SIDED), landmarks=("menton", "canine"))
    assert mirroring(replace(labels, landmark_across=(0.5, None))).value.axes == (2,)
    assert mirroring(replace(labels, landmark_across=(0.5, 0.6))).value == Mirroring()


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (("menton", "condyle_l", "condyle_r"), Mirroring((2,), 2, (), (("condyle_l", "condyle_r"),))),
        (("menton", "nasion"), Mirroring()),
        (("menton", "condyle_l"), Mirroring()),
    ],
)
def test_whole_scans_with_landmarks_are_mirrored_between_their_sides_only(points, expected):
    decision = mirroring(replace(scans(Labels(()), mirror_labels=(0.9,) * 3), landmarks=points))
    assert decision.value == expected
    if expected.axes:
        step = expected.step(replace(scans(Labels(())), landmarks=points))
        assert step.options == {"axes": [2], "swap_axis": 2, "swap_points": [1, 2]}

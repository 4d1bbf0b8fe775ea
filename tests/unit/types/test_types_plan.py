from dataclasses import replace

import pytest

from medseg.errors import PlanError
from medseg.types.labels import Label, Labels
from medseg.types.plan import (
    Budget,
    Inference,
    LossTerm,
    Network,
    Origin,
    Plan,
    Preprocess,
    Sampling,
    Step,
    Topology,
    Training,
)

TOPOLOGY = Topology(3, (8, 16, 32), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (2, 2, 2))
PLAN = Plan(
    schema="medseg.plan/1",
    name="phantom",
    channels=("CT",),
    labels=Labels((Label("ball", (1,)),)),
    preprocess=Preprocess((None, 1.0, 1.0), (Step("z_score"),)),
    network=Network("unet", TOPOLOGY),
    sampling=Sampling((8, 16, 16), 2),
    training=Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), epochs=1),
    inference=Inference(),
    postprocess=(),
    origin=Origin("0.1.0", "00", Budget(8.0), "unet"),
    reasons={},
)


def test_divisor_is_the_product_of_strides_per_axis():
    assert TOPOLOGY.divisor() == (2, 4, 4)


def test_a_plan_of_landmarks_needs_no_labels():
    plan = replace(PLAN, labels=Labels(()), landmarks=("menton",))
    assert plan.labels.outputs() == 0


def test_spacing_grows_with_the_strides_of_each_axis():
    thick = replace(TOPOLOGY, spacing_mm=(3.0, 1.0, 0.5))
    assert thick.spacings() == ((3.0, 1.0, 0.5), (3.0, 2.0, 1.0), (6.0, 4.0, 2.0))


@pytest.mark.parametrize(
    "change",
    [
        {"channels": (8, 16)},
        {"channels": (8, 16, 0)},
        {"ndim": 2},
    ],
)
def test_a_topology_that_cannot_be_built_is_refused(change):
    with pytest.raises(PlanError, match=r"network\.topology"):
        replace(TOPOLOGY, **change)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"channels": ("CT", "PET")}, "preprocess.intensity"),
        ({"labels": Labels(())}, "labels.items"),
        ({"sampling": Sampling((8, 16, 18), 2)}, "sampling.patch"),
        ({"sampling": Sampling((8, 16, 16), 0)}, "sampling.batch"),
    ],
)
def test_a_contradictory_plan_names_the_field(change, field):
    with pytest.raises(PlanError, match=field.replace(".", r"\.")):
        replace(PLAN, **change)

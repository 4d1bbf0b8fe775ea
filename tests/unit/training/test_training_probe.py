import pytest
import torch
from tiny_run import fill_cache, tiny_plan

from medseg.io.cache import open_case
from medseg.training import probe
from medseg.training.batches import batches


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return [open_case(folder, name) for name in fill_cache(folder, 2)]


def test_on_a_cpu_nothing_is_measured(cases):
    assert probe.faster_device(tiny_plan(), cases, torch.device("cpu"), workers=0) == (torch.device("cpu"), {})


@pytest.mark.parametrize(("card_s", "workers", "chosen"), [(0.1, 1, "cuda"), (0.5, 1, "cpu"), (0.1, 8, "cpu")])
def test_the_device_with_the_sooner_patch_is_chosen(cases, monkeypatch, card_s, workers, chosen):
    monkeypatch.setattr(probe, "_seconds", lambda plan, patches, device: 0.3 if device.type == "cpu" else card_s)
    device, seconds = probe.faster_device(tiny_plan(), cases, torch.device("cuda", 0), workers=workers)
    assert device.type == chosen and set(seconds) == {"cpu", "cuda"}


def test_a_patch_takes_time(cases):
    samples = [cases[0].read(probe_box()) for _ in range(2)]
    patches = [
        probe.Patch(torch.from_numpy(image), torch.from_numpy(labels.astype("int16"))[None])
        for image, labels in samples
    ]
    assert 0 < probe._seconds(tiny_plan(), patches, torch.device("cpu")) < 5


def probe_box():
    from medseg.types.geometry import Box

    return Box((0, 0, 0), (16, 16, 16))


def test_augmenting_late_gives_the_same_batches_as_augmenting_in_the_loader(cases):
    plan = tiny_plan()

    class NotCpu:
        type = "elsewhere"

    early, late = (next(batches(plan, cases, device=torch.device("cpu"), augment_on=on)) for on in (None, NotCpu()))
    assert torch.equal(early.image, late.image) and torch.equal(early.target, late.target)

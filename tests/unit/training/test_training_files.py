import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from full_disk import full_disk
from PIL import Image
from torch import nn

from medseg.errors import TrainingError
from medseg.io.files import file_sha256
from medseg.training import checkpoint, journal
from medseg.training.curves import draw_curves, tensorboard
from medseg.training.lock import locked
from medseg.training.signals import stop_requests

HOLDER = "import sys, time; from pathlib import Path; from medseg.training.lock import locked\n"
HOLDER += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


def trained(optimizer_of, steps=3):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.Conv3d(4, 2, 1))
    network = network.to(memory_format=torch.channels_last_3d)
    optimizer = optimizer_of(network.parameters())
    for _ in range(steps):
        move(network, optimizer)
    return network, optimizer


def move(network, optimizer):
    optimizer.zero_grad()
    network(torch.ones(1, 1, 6, 6, 6).add(torch.arange(6.0))).square().sum().backward()
    optimizer.step()


class Restless(torch.optim.SGD):
    """Keeps numbers where others do: in its groups, as schedule-free optimisers do, and in its state, as SparseAdam."""

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        group["seen"] = group.get("seen", 0.0) + 1 / 3
        for p in group["params"]:
            self.state[p]["steps"] = self.state[p].get("steps", 0) + 1
            p.sub_(p.grad, alpha=1e-6 / (self.state[p]["steps"] + group["seen"]))


@pytest.mark.parametrize(
    "optimizer_of",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: Restless(p, lr=0.01),
    ],
)
def test_training_goes_on_exactly_from_a_checkpoint(tmp_path, optimizer_of):
    network, optimizer = trained(optimizer_of)
    average = {name: t + 1 for name, t in network.state_dict().items()}
    path = tmp_path / "with space" / "checkpoint.safetensors"
    checkpoint.save(path, checkpoint.pack(network, optimizer, average), {"step": 3})
    fresh, fresh_optimizer = trained(optimizer_of, steps=0)
    fresh_average = {name: torch.zeros_like(t) for name, t in average.items()}
    tensors, values = checkpoint.load(path)
    assert values == {"step": 3}
    checkpoint.unpack(tensors, fresh, fresh_optimizer, fresh_average)
    move(network, optimizer)
    move(fresh, fresh_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True))
    assert all(torch.equal(average[name], fresh_average[name]) for name in average)


def test_what_no_checkpoint_can_hold_is_refused_and_not_forgotten():
    network, optimizer = trained(lambda p: torch.optim.SGD(p, lr=0.01))
    optimizer.state[next(network.parameters())]["past"] = [torch.zeros(1)]
    with pytest.raises(TrainingError, match='keeps "past" as list'):
        checkpoint.pack(network, optimizer, None)
    network, optimizer = trained(lambda p: torch.optim.SGD(p, lr=0.01))
    optimizer.state["everything"] = {"d": 1.0}
    with pytest.raises(TrainingError, match="no parameter"):
        checkpoint.pack(network, optimizer, None)
    network, optimizer = trained(lambda p: torch.optim.SGD(p, lr=torch.tensor(0.01)))
    with pytest.raises(TrainingError, match="tensors in its groups"):
        checkpoint.pack(network, optimizer, None)


def test_equal_content_gives_equal_bytes(tmp_path):
    network, _ = trained(lambda p: torch.optim.SGD(p, lr=0.01))
    for name in ("one", "two"):
        checkpoint.save(tmp_path / name, network.state_dict(), {"b": 1.5, "a": [1]})
    assert file_sha256(tmp_path / "one") == file_sha256(tmp_path / "two")


def test_a_damaged_checkpoint_is_an_error_with_a_hint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(TrainingError, match=r"no readable checkpoint.*delete it"):
        checkpoint.load(path)


def test_a_checkpoint_of_another_network_is_refused():
    network, optimizer = trained(lambda p: torch.optim.SGD(p, lr=0.01))
    with pytest.raises(TrainingError, match="does not fit the plan"):
        checkpoint.unpack({"network/other": torch.zeros(1)}, network, optimizer, None)


def test_the_journal_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for epoch in range(3):
        journal.append(path, {"epoch": epoch, "loss": 1.0 / (epoch + 1), "dice x": float("nan")})
    path.write_text(path.read_text() + '{"epoch": 3, "lo')
    journal.truncate(path, 2)
    rows = journal.read(path)
    assert [row["epoch"] for row in rows] == [0, 1] and rows[0]["dice x"] is None
    assert path.read_text().count("\n") == 2
    journal.truncate(tmp_path / "none.jsonl", 0)


def test_curves_are_a_picture_also_without_validation(tmp_path):
    rows = [
        {"epoch": e, "loss": 1.0, "val_loss": None, "dice a": 0.5, "dice": 0.5, "learning_rate": 0.1} for e in (0, 1)
    ]
    draw_curves(rows, tmp_path / "curves.png")
    draw_curves([{"epoch": 0, "loss": 1.0}], tmp_path / "few.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_curves_of_landmarks_have_a_panel_of_their_own(tmp_path):
    dice = {"dice a": 0.5, "dice": 0.5}
    far = {"radial_error_mm": 2.0, "radial_error_mm nasion": 2.0, "radial_error_mm sella": None}
    heights = []
    for more in (dice, far, {**dice, **far}):
        draw_curves([{"epoch": e, "loss": 1.0, "learning_rate": 0.1, **more} for e in (0, 1)], tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as picture:
            heights.append(picture.height)
    assert heights[0] == heights[1] < heights[2]


def test_a_second_run_is_refused_with_the_process_of_the_first(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(TrainingError, match=f"process {os.getpid()} is already training"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_run_may_wait_for_its_turn(tmp_path):
    order = []

    def second():
        with locked(tmp_path, wait=True):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(timeout=20)
    assert order == ["first", "second"]


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline().strip() == b"held"
        with pytest.raises(TrainingError, match=f"process {holder.pid} "), locked(tmp_path):
            pass
        holder.kill()
    assert (tmp_path / "lock").read_text().strip() == str(holder.pid)
    with locked(tmp_path):
        pass


def test_a_signal_is_noted_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as asked:
        assert asked() is None
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert asked() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def look():
        with stop_requests() as asked:
            found.append(asked())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [None]


def test_tensorboard_is_given_every_metric_of_every_epoch(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path)

        def add_scalar(self, name, value, epoch):
            written.append((name, value, epoch))

        def flush(self):
            written.append("flushed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    write = tensorboard(tmp_path)
    write(SimpleNamespace(epoch=3, metrics={"loss": 0.5, "dice": 0.25}))
    write(SimpleNamespace(epoch=4, metrics={"loss": 0.4}))
    assert written == [("loss", 0.5, 3), ("dice", 0.25, 3), "flushed", ("loss", 0.4, 4), "flushed"]


def test_without_tensorboard_the_hint_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"medseg\[track\]"):
        tensorboard(tmp_path)


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path):
    path = tmp_path / "fold.safetensors"
    checkpoint.save(path, {"w": torch.ones(4)}, {"step": 1})
    with full_disk(1000), pytest.raises(TrainingError, match=r"cannot be written.*make room"):
        checkpoint.save(path, {"w": torch.ones(4000)}, {"step": 2})
    assert checkpoint.load(path)[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]

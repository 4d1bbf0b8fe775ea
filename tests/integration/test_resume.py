import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from tiny_run import fill_cache, tiny_plan, with_hours

from medseg.errors import Interrupted, TrainingError
from medseg.io.files import file_sha256
from medseg.networks.critics import CRITICS
from medseg.training import loop
from medseg.training.loop import fit
from medseg.types.plan import Adversary, LossTerm, Step

CPU = torch.device("cpu")
SCRIPT = Path(tiny_run.__file__)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    fill_cache(folder)
    return folder


def train(plan, cache, run, **options):
    known = {"raters": {"a": "A", "b": "B"}} if plan.raters else {}
    return fit(plan, ("a", "b"), ("c",), cache, run, device=CPU, **{**known, **options})


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stop_at(step, how):
    def report(progress):
        if progress.done == step and progress.stage.startswith("train"):
            how()

    return report


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


class Crash(Exception):
    pass


def crash():
    raise Crash


PLANS = {
    "sgd": tiny_plan(ema=0.9),
    "critic": tiny_plan(adversary=Adversary("segan", options={"width": 4})),
    "learnt weights": tiny_plan(
        losses=(LossTerm(1.0, "dice"), LossTerm(1.0, "cross_entropy")), weighting="uncertainty"
    ),
    "raters": replace(
        tiny_plan(losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "rater_prior", {"cases": 2}))),
        network=replace(tiny_plan().network, options={"attention": "rater_code", "rater_code_raters": 2}),
        raters=("A", "B"),
    ),
    "adamw 2d": tiny_plan(ndim=2, optimizer=Step("adamw"), schedule=Step("cosine_restarts", {"warmup": 0.1})),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_run_stopped_after_any_step_ends_in_the_same_bytes(cache, tmp_path, name):
    plan = PLANS[name]
    whole = file_sha256(train(plan, cache, tmp_path / "whole"))
    for step in (2, 3, 5):
        run = tmp_path / f"stopped {step}"
        with pytest.raises(Interrupted) as stopped:
            train(plan, cache, run, report=stop_at(step, ask))
        assert stopped.value.signum == signal.SIGTERM
        assert not (run / "weights.safetensors").exists()
        assert file_sha256(train(plan, cache, run, workers=1)) == whole
        assert [row["epoch"] for row in rows(run)] == [0, 1]
        measured = [{k: v for k, v in row.items() if k not in ("trained_s", "patches_per_s")} for row in rows(run)]
        unbroken = [
            {k: v for k, v in row.items() if k not in ("trained_s", "patches_per_s")}
            for row in rows(tmp_path / "whole")
        ]
        assert measured == unbroken


@pytest.mark.parametrize("use", sorted(CRITICS))
def test_a_critic_is_logged_and_thrown_away(cache, tmp_path, use):
    weights = train(tiny_plan(adversary=Adversary(use, options={"width": 4})), cache, tmp_path / "with")
    without = train(tiny_plan(), cache, tmp_path / "without")
    assert {"loss adversary", "loss critic"} <= set(rows(tmp_path / "with")[-1])
    learnt, other = load_file(weights), load_file(without)
    assert learnt.keys() == other.keys()
    assert not all(torch.equal(learnt[name], other[name]) for name in learnt)


def test_learnt_weights_of_terms_move_are_logged_and_thrown_away(cache, tmp_path):
    plan = PLANS["learnt weights"]
    weights = load_file(train(plan, cache, tmp_path / "learnt"))
    fixed = load_file(train(tiny_plan(losses=plan.training.losses), cache, tmp_path / "fixed"))
    first, last = rows(tmp_path / "learnt")
    assert last["weight dice"] != first["weight dice"] != 1.0
    assert not any(name.startswith("weight ") for name in rows(tmp_path / "fixed")[-1])
    assert weights.keys() == fixed.keys()
    assert not all(torch.equal(weights[name], fixed[name]) for name in weights)


def test_a_run_of_other_raters_is_not_gone_on_with(cache, tmp_path):
    plan = tiny_plan(losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "rater_prior", {"cases": 2})))
    options = {"attention": "rater_code", "rater_code_raters": 2}
    plan = replace(plan, raters=("A", "B"), network=replace(plan.network, options=options))
    train(plan, cache, tmp_path / "run", raters={"a": "A", "b": "B"})
    assert file_sha256(train(plan, cache, tmp_path / "other", raters={"a": "B", "b": "A"})) != file_sha256(
        tmp_path / "run" / "weights.safetensors"
    )
    with pytest.raises(TrainingError, match="other cases"):
        train(plan, cache, tmp_path / "run", raters={"a": "A"})


def test_a_run_that_crashed_goes_on_from_its_last_epoch(cache, tmp_path):
    plan = tiny_plan()
    whole = file_sha256(train(plan, cache, tmp_path / "whole"))
    with pytest.raises(Crash):
        train(plan, cache, tmp_path / "run", report=stop_at(5, crash))
    seen = []
    train(plan, cache, tmp_path / "run", report=lambda p: seen.append(p.done))
    assert seen[0] == 4
    assert file_sha256(tmp_path / "run" / "weights.safetensors") == whole


def launch(cache, run, pause_s):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(cache), str(run), str(pause_s)], env=environment, stderr=subprocess.DEVNULL
    )


def wait_for(path, process):
    end = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def test_kill_9_at_random_moments_changes_nothing(cache, tmp_path):
    run, chance = tmp_path / "killed", random.Random(0)
    for _ in range(2):
        with launch(cache, run, 0.02) as process:
            wait_for(run / "run.json", process)
            time.sleep(chance.uniform(0.0, 0.6))
            process.kill()
        assert not (run / "weights.safetensors").exists()
        (run / "run.json").unlink(missing_ok=True)
    torch.set_num_threads(1)
    tiny_run.main(cache, run, 0.0)
    tiny_run.main(cache, tmp_path / "whole", 0.0)
    assert file_sha256(run / "weights.safetensors") == file_sha256(tmp_path / "whole" / "weights.safetensors")


def test_a_finished_run_is_not_trained_again(cache, tmp_path):
    plan = tiny_plan(epochs=1)
    weights = train(plan, cache, tmp_path)
    before = weights.stat().st_mtime_ns
    train(plan, cache, tmp_path, report=stop_at(0, crash))
    assert weights.stat().st_mtime_ns == before
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["finished"] and facts["steps"] == 3 and facts["augment_on"] == "cpu"


def test_a_folder_of_another_plan_or_split_is_refused(cache, tmp_path):
    train(tiny_plan(epochs=1), cache, tmp_path)
    with pytest.raises(TrainingError, match="another plan or other cases"):
        train(tiny_plan(epochs=1, seed=3), cache, tmp_path)
    with pytest.raises(TrainingError, match="another plan or other cases"):
        fit(tiny_plan(epochs=1), ("a",), ("c",), cache, tmp_path, device=CPU)


def nan_at_the_end(output, batch, *, after):
    value = output.logits[0].mean()
    nan_at_the_end.calls += 1
    return value * float("nan") if nan_at_the_end.calls > after else value


def test_nan_stops_with_step_terms_and_the_kept_checkpoint(cache, tmp_path, monkeypatch):
    nan_at_the_end.calls = 0
    term = LossTerm(1.0, f"{__name__}:nan_at_the_end", {"after": 2})
    plan = tiny_plan(losses=(LossTerm(1.0, "dice_ce"), term), deep_supervision=False)
    with pytest.raises(
        TrainingError, match=r"stopped at step \d: the loss is not finite: dice .*nan_at_the_end nan"
    ) as error:
        fit(plan, ("a", "b"), (), cache, tmp_path, device=CPU, report=lambda p: None)
    assert "kept" not in error.value.hint and "learning rate" in error.value.hint


def test_the_checkpoint_before_a_nan_is_named(cache, tmp_path):
    nan_at_the_end.calls = 0
    plan = tiny_plan(losses=(LossTerm(1.0, f"{__name__}:nan_at_the_end", {"after": 4}),), deep_supervision=False)
    with pytest.raises(TrainingError, match=r"stopped at step 4.*checkpoint is kept at .*checkpoint\.safetensors"):
        fit(plan, ("a", "b"), (), cache, tmp_path, device=CPU)
    assert (tmp_path / "checkpoint.safetensors").exists() and not (tmp_path / "weights.safetensors").exists()


def test_hooks_see_every_epoch_and_may_stop(cache, tmp_path):
    ends = []

    def hook(end):
        ends.append((end.epoch, end.metrics["dice"], end.network.training))
        return "stop" if end.epoch == 1 else None

    train(tiny_plan(epochs=5), cache, tmp_path, hooks=[hook])
    assert [e[0] for e in ends] == [0, 1] and not any(e[2] for e in ends)
    assert [row["step"] for row in rows(tmp_path)] == [3, 6]
    assert (tmp_path / "weights.safetensors").exists()


def test_training_ends_within_its_hours_with_the_schedule_completed(cache, tmp_path, caplog):
    limit_s = 4.0
    plan = with_hours(tiny_plan(epochs=100, steps_per_epoch=20, augment=()), limit_s / 3600)
    with caplog.at_level(logging.INFO, "medseg"):
        train(plan, cache, tmp_path, report=lambda p: time.sleep(0.005))
    facts = json.loads((tmp_path / "run.json").read_text())
    assert 0.5 * limit_s < facts["trained_s"] < 1.5 * limit_s
    assert facts["steps"] == facts["total_steps"] < facts["planned_steps"] == 2000
    assert "steps fit in" in caplog.text
    rates = [row["learning_rate"] for row in rows(tmp_path)]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.2 * plan.training.optimizer.options["lr"]


def test_training_leaves_global_randomness_alone(cache, tmp_path):
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    train(tiny_plan(epochs=1), cache, tmp_path)
    assert torch.equal(torch.rand(3), want)


def test_progress_tells_loss_dice_speed_and_time_left(cache, tmp_path):
    seen = []
    train(tiny_plan(epochs=2, steps_per_epoch=8), cache, tmp_path / "fold_0", report=seen.append)
    assert {p.stage for p in seen} == {"train fold_0"} and seen[-1].done == seen[-1].total == 16
    assert {"loss", "dice", "dice shell", "dice core", "patches_per_s", "seconds_left"} <= set(seen[-2].values)
    assert (tmp_path / "fold_0" / "curves.png").exists()


def test_averaged_weights_are_the_ones_kept(cache, tmp_path):
    plain = train(tiny_plan(), cache, tmp_path / "plain")
    averaged = train(tiny_plan(ema=0.5), cache, tmp_path / "averaged")
    assert file_sha256(plain) != file_sha256(averaged)
    again = train(replace(tiny_plan(ema=0.5)), cache, tmp_path / "again")
    assert file_sha256(again) == file_sha256(averaged)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["device", "torch", "python"],
)
def test_memory_that_runs_out_is_an_error_and_the_checkpoint_goes_on(cache, tmp_path, monkeypatch, error):
    plan, whole, steps = tiny_plan(), loop.train_step, []

    def short(*arguments, **options):
        steps.append(1)
        if len(steps) == 5:
            raise error
        return whole(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", short)
    with pytest.raises(TrainingError, match="run: out of memory") as found:
        train(plan, cache, tmp_path / "run")
    assert "checkpoint" in found.value.hint and "--vram" in found.value.hint
    seen = []
    train(plan, cache, tmp_path / "run", report=lambda progress: seen.append(progress.done))
    assert seen[0] == 4 and (tmp_path / "run" / "weights.safetensors").exists()


def test_other_errors_of_a_step_stay_what_they_are(cache, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(loop, "train_step", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(tiny_plan(), cache, tmp_path / "run")

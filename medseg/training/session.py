"""What one fold trains with, and how it is put on disk and taken up again."""

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from medseg import __version__
from medseg.errors import TrainingError
from medseg.io.cache import VERSION, CachedCase, open_case
from medseg.io.records import record_sha256, to_plain, write_record
from medseg.losses.build import Loss, build_loss
from medseg.networks.build import HeadedNetwork, build_network
from medseg.training import checkpoint
from medseg.training.adversary import Opponent, open_opponent
from medseg.training.balance import Balance, open_balance
from medseg.training.batches import batches
from medseg.training.focus import Sampler, build_sampler
from medseg.training.optim import Schedule, build_optimizer
from medseg.training.position import Position
from medseg.training.probe import faster_device
from medseg.training.step import averaged, new_average, new_scaler
from medseg.training.teacher import Teacher
from medseg.types.plan import Plan
from medseg.types.tensors import Batch

_LOG = logging.getLogger("medseg")
CHECKPOINT, WEIGHTS, METRICS, FACTS = "checkpoint.safetensors", "weights.safetensors", "metrics.jsonl", "run.json"
NOBODY: Mapping[str, str] = MappingProxyType({})
_CRITIC, _BALANCE = "critic/", "balance/"


@dataclass(frozen=True, eq=False)
class Session:
    """Everything of a fold but its position; `facts` are what was decided on this machine, kept when resuming."""

    plan: Plan
    folder: Path
    device: torch.device
    network: HeadedNetwork
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    scaler: GradScaler
    average: Mapping[str, Tensor] | None
    train: tuple[CachedCase, ...]
    val: tuple[CachedCase, ...]
    facts: Mapping[str, Any]
    workers: int
    asked_to_stop: Callable[[], int | None]
    sampler: Sampler
    opponent: Opponent | None = None
    teacher: Teacher | None = None
    balance: Balance | None = None


def identity(
    plan: Plan,
    train_ids: Sequence[str],
    val_ids: Sequence[str],
    teacher: Teacher | None = None,
    raters: Mapping[str, str] = NOBODY,
) -> str:
    """Hash of all that decides the weights; a checkpoint with another one is not taken up."""
    parts = [plan.channels, plan.labels, plan.preprocess, plan.network, plan.sampling]
    training = to_plain(replace(plan.training, precision="fp32"))
    for name, default in (("members", training["members"]), ("weighting", "fixed")):
        if training[name] == default:
            del training[name]  # as before there was a choice; how many others there are changes no network
    cases: list[Any] = [list(train_ids), list(val_ids)]
    if plan.raters:
        cases.append([list(plan.raters), {case: raters.get(case) for case in (*train_ids, *val_ids)}])
    model = [] if teacher is None else [teacher.identity]
    return record_sha256([*(to_plain(part) for part in parts), training, *cases, *model, VERSION])


def find_checkpoint(folder: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and values of the checkpoint in `folder`, None if there is none.

    Raises TrainingError if it belongs to another plan or split.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    tensors, values = checkpoint.load(path)
    if values["identity"] != expected:
        raise TrainingError(
            "was trained with another plan or other cases",
            where=folder,
            hint="delete this folder to train it anew, or choose another output folder",
        )
    return tensors, values


def open_session(
    plan: Plan,
    cases: tuple[Sequence[str], Sequence[str]],
    cache: Path,
    folder: Path,
    *,
    device: torch.device,
    workers: int,
    facts: Mapping[str, Any] | None,
    asked_to_stop: Callable[[], int | None],
    teacher: Teacher | None = None,
    raters: Mapping[str, str] = NOBODY,
) -> Session:
    """Build network, loss and optimiser, open the (train, val) `cases`, and decide what `facts` do not hold yet."""
    opened = partial(_open_case, plan, cache, raters)
    torch.manual_seed(plan.training.seed)
    network = build_network(
        plan.network,
        channels=len(plan.channels),
        outputs=plan.labels.outputs(),
        deep_supervision=plan.training.deep_supervision,
    ).to(device)
    optimizer, schedule = build_optimizer(network, plan.training.optimizer, plan.training.schedule)
    train = tuple(opened(case) for case in cases[0])
    if not train:
        raise TrainingError("no training cases", where=folder, hint="check the splits")
    network.taught_by(sorted({c.rater for c in train if c.rater is not None and c.rater >= 0}))
    balance = open_balance(plan, device)
    return Session(
        plan=plan,
        folder=folder,
        device=device,
        network=network,
        loss=build_loss(plan.training.losses, learnt=None if balance is None else balance.weights),
        optimizer=optimizer,
        schedule=schedule,
        scaler=new_scaler(plan.training.precision, device),
        average=None if plan.training.ema is None else new_average(network),
        train=train,
        val=tuple(opened(case) for case in cases[1]),
        facts=_facts(plan, train, device, workers, facts),
        workers=workers,
        asked_to_stop=asked_to_stop,
        sampler=build_sampler(plan.sampling.focus, train, plan.labels, validated=bool(cases[1])),
        opponent=open_opponent(plan, device),
        teacher=teacher,
        balance=balance,
    )


def _open_case(plan: Plan, cache: Path, raters: Mapping[str, str], case_id: str) -> CachedCase:
    """A case of the cache, with the number of its rater if the plan knows raters."""
    case, name = open_case(cache, case_id), raters.get(case_id)
    if not plan.raters:
        return case
    return replace(case, rater=plan.raters.index(name) if name in plan.raters else -1)


def open_stream(session: Session, position: Position) -> Generator[Batch, None, None]:
    """The training batches from `position` on, as long as what the sampler knows stays."""
    return batches(
        session.plan,
        session.train,
        device=session.device,
        start=position.step,
        workers=session.workers,
        augment_on=torch.device(session.facts["augment_on"]),
        known=position.known,
    )


def next_stream(session: Session, position: Position, stream: Generator[Batch, None, None]) -> Generator[Batch]:
    """The batches of the epoch that begins: of the same stream, unless the sampler has learnt."""
    if session.sampler.learn is None:
        return stream
    stream.close()
    return open_stream(session, position)


def restore(session: Session, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Position:
    """Put a checkpoint's tensors in place; returns where it was."""
    checkpoint.unpack(tensors, session.network, session.optimizer, session.average)
    for prefix, module, optimizer in _beside(session):
        checkpoint.unpack(tensors, module, optimizer, None, prefix=prefix)
    if session.scaler.is_enabled() and values["scaler"]:
        session.scaler.load_state_dict(values["scaler"])
    return Position(**values["position"])


def save(session: Session, position: Position, *, expected: str, finished: bool = False) -> None:
    """Write the resume point."""
    values = {
        "identity": expected,
        "position": asdict(position),
        "facts": dict(session.facts),
        "scaler": session.scaler.state_dict() if session.scaler.is_enabled() else None,
        "finished": finished,
    }
    tensors = checkpoint.pack(session.network, session.optimizer, session.average)
    for prefix, module, optimizer in _beside(session):
        tensors |= checkpoint.pack(module, optimizer, None, prefix=prefix)
    checkpoint.save(session.folder / CHECKPOINT, tensors, values)


def _beside(session: Session) -> Iterator[tuple[str, nn.Module, Optimizer]]:
    """What learns beside the network: where it lies in a checkpoint, its parameters and their optimiser."""
    if session.opponent is not None:
        yield _CRITIC, session.opponent.critic, session.opponent.optimizer
    if session.balance is not None:
        yield _BALANCE, session.balance.weights, session.balance.optimizer


def save_weights(session: Session) -> Path:
    """Write the weights that are kept: the averaged ones if the plan averages."""
    path = session.folder / WEIGHTS
    with averaged(session.network, session.average):
        checkpoint.save(path, session.network.state_dict())
    return path


def write_facts(session: Session, position: Position, *, finished: bool) -> None:
    """Write run.json: what ran, on what, how far."""
    record = {
        "schema": "medseg.run/1",
        **session.facts,
        "seed": session.plan.training.seed,
        "train": [case.case_id for case in session.train],
        "val": [case.case_id for case in session.val],
        "planned_steps": session.plan.training.epochs * session.plan.training.steps_per_epoch,
        "total_steps": position.total,
        "steps": position.step,
        "trained_s": round(position.trained_s, 3),
        "finished": finished,
    }
    write_record(record, session.folder / FACTS)


def is_finished(folder: Path) -> bool:
    """Whether the fold trained in `folder` reached its end."""
    return bool(read_facts(folder).get("finished")) and (folder / WEIGHTS).exists()


def read_facts(folder: Path) -> dict[str, Any]:
    """What `write_facts` wrote; nothing where there is none."""
    try:
        return dict(json.loads((folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError):
        return {}


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators and settings as they were; kernels on a GPU repeat their results."""
    devices = [device] if device.type == "cuda" else []
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=devices):
        if device.type != "cuda":
            yield
            return
        torch.set_num_threads(1)  # loader threads work side by side; each with its own pool would fight
        try:
            tf32 = torch.backends.cudnn.allow_tf32  # as the caller has it, and as steps were timed
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
                yield
        finally:
            torch.set_num_threads(threads)


def seed_step(seed: int, step: int) -> None:
    """Make layers that draw numbers themselves (dropout) a function of (seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence((seed, 2, step)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _facts(
    plan: Plan,
    train: Sequence[CachedCase],
    device: torch.device,
    workers: int,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    now = {
        "medseg": __version__,
        "torch": torch.__version__,
        "device": device.type,
        "precision": plan.training.precision,
        "threads": torch.get_num_threads(),
    }
    if before is not None:
        changed = {name: (before.get(name), value) for name, value in now.items() if before.get(name) != value}
        if changed:
            _LOG.warning("resumed with other %s: weights may differ in the last bits", changed)
        kept = before["augment_on"] if device.type == before["device"] else "cpu"
        return {**now, "augment_on": kept, "augment_s": before["augment_s"]}
    chosen, seconds = faster_device(plan, train, device, workers=workers)
    return {**now, "augment_on": str(chosen), "augment_s": seconds}

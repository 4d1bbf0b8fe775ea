"""Work in processes of its own: a crash, a hang or a hunger for memory costs the one item it happened on."""

import contextlib
import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from medseg.errors import MedsegError
from medseg.io.quiet import quiet_libraries

T = TypeVar("T")
R = TypeVar("R")

# Threads of numerical libraries are fixed when these are first imported. Pickles pass between the two ends of these
# pipes only, never from a file: a process with the same rights could do no more by them than without.
_START = (
    "import os, pickle, sys; "
    "[os.environ.setdefault(name, sys.argv[1]) for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')]; "
    "requests = sys.stdin.buffer; sys.path[:] = pickle.load(requests); "
    "from medseg.io.processes import serve; serve(requests)"
)


@dataclass(frozen=True)
class Lost:
    """What became of an item whose process could not finish it."""

    reason: str


@dataclass(frozen=True)
class Limits:
    """`workers` processes; `seconds` for each item; `memory_bytes` of address space for each process; None = no limit.

    `ahead`: items handed to a process at once, so that short ones do not wait for the next.
    """

    workers: int = 1
    seconds: float | None = None
    memory_bytes: int | None = None
    ahead: int = 1


@dataclass(eq=False)
class _Worker:
    """One process, the items it holds in order, and the time by which the first of them must be done.

    `late`: it was ended for being over that time; `spared`: but had just finished, so no item is to blame.
    """

    process: "subprocess.Popen[bytes]"
    held: deque[int] = field(default_factory=deque)
    deadline: float | None = None
    ready: bool = False
    late: bool = False
    spared: bool = False
    listener: threading.Thread | None = None

    def bury(self) -> int:
        """Wait for the end, close the pipes; returns the exit code."""
        code = self.process.wait()
        if self.listener is not None:
            self.listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code


class _Pool(Generic[T, R]):
    """The processes of one `run_apart`."""

    def __init__(self, build: Callable[..., Callable[[T], R]], arguments: tuple[Any, ...], limits: Limits) -> None:
        self.start_with = (build, arguments, limits.memory_bytes)
        self.limits = limits
        self.workers: list[_Worker] = []
        self.replies: queue.SimpleQueue[tuple[_Worker, str, Any]] = queue.SimpleQueue()

    def start(self) -> None:
        threads = str(max(1, (os.cpu_count() or 1) // self.limits.workers))
        command = [sys.executable, "-c", _START, threads]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        worker = _Worker(process)
        self.workers.append(worker)
        worker.listener = threading.Thread(target=self._listen, args=(worker,), daemon=True)
        worker.listener.start()
        _send(worker, sys.path)
        _send(worker, self.start_with)

    def _listen(self, worker: _Worker) -> None:
        source = worker.process.stdout
        assert source is not None
        try:
            while True:
                kind, value = pickle.load(source)
                self.replies.put((worker, kind, value))
        except Exception:  # the end of the pipe, or a reply that was cut off
            self.replies.put((worker, "ended", None))

    def feed(self, worker: _Worker, todo: deque[int], items: Sequence[T]) -> None:
        """Top up what a worker holds."""
        if worker.ready and len(worker.held) <= self.limits.ahead // 2:
            chunk = [todo.popleft() for _ in range(min(self.limits.ahead - len(worker.held), len(todo)))]
            if not worker.held:
                self.renew(worker)
            worker.held.extend(chunk)
            if chunk:
                _send(worker, [items[index] for index in chunk])

    def renew(self, worker: _Worker) -> None:
        """Give the next item of a worker its full time."""
        worker.deadline = None if self.limits.seconds is None else time.monotonic() + self.limits.seconds

    def next_reply(self) -> tuple[_Worker, str, Any]:
        """The next message of any worker; those that are over their time are ended meanwhile."""
        while True:
            due = [w.deadline for w in self.workers if w.held and w.deadline is not None and not w.late]
            wait = max(0.0, min(due) - time.monotonic()) if due else None
            try:
                return self.replies.get(timeout=wait)
            except queue.Empty:
                for worker in self.workers:
                    if worker.held and worker.deadline is not None and worker.deadline <= time.monotonic():
                        worker.late = True
                        worker.process.kill()

    def close(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.bury()


def run_apart(
    build: Callable[..., Callable[[T], R]], arguments: tuple[Any, ...], items: Sequence[T], limits: Limits
) -> Iterator[tuple[int, R | Lost]]:
    """Index and result of `build(*arguments)(item)` for every item, as they come.

    `build` is a function of a module; it runs once in every process. A process that dies or is over its time costs
    the item it was at and is replaced. Raises MedsegError if a process cannot start.
    """
    if not items:
        return
    todo, missing = deque(range(len(items))), len(items)
    pool: _Pool[T, R] = _Pool(build, arguments, limits)
    try:
        for _ in range(min(limits.workers, len(items))):
            pool.start()
        while missing:
            worker, kind, value = pool.next_reply()
            if kind == "failed":
                raise value
            worker.ready = True if kind == "ready" else worker.ready
            found: tuple[int, R | Lost] | None = None
            if kind == "done":
                found = worker.held.popleft(), value
                worker.late, worker.spared = False, worker.late
                pool.renew(worker)
            if kind == "ended":
                found = _take_off(pool, worker, todo)
            else:
                pool.feed(worker, todo, items)
            if found is not None:
                missing -= 1
                yield found
    finally:
        pool.close()


def _take_off(pool: _Pool[T, R], worker: _Worker, todo: deque[int]) -> tuple[int, Lost] | None:
    """Replace a dead worker: the item it was at is lost, those behind it are to be done by another."""
    pool.workers.remove(worker)
    code = worker.bury()
    if not worker.ready:
        raise MedsegError(f"a worker process ended ({_ending(code)}) before it was ready", hint="use fewer workers")
    lost = None
    if worker.held and not worker.spared:
        limit = pool.limits.seconds
        reason = (
            f"took longer than {limit:g} s and was stopped" if worker.late else f"its process ended ({_ending(code)})"
        )
        lost = worker.held.popleft(), Lost(reason)
    todo.extendleft(reversed(worker.held))
    if todo:
        pool.start()
    return lost


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name


def _send(worker: _Worker, value: object) -> None:
    """Write to a worker; one that has died is found out by its end of the other pipe."""
    target = worker.process.stdin
    assert target is not None
    with contextlib.suppress(BrokenPipeError):
        pickle.dump(value, target)
        target.flush()


def serve(requests: io.BufferedReader) -> None:
    """The whole life of a worker process: build the function, then answer chunks of items until the parent is gone."""
    with quiet_libraries():
        _serve(requests)


def _serve(requests: io.BufferedReader) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing a library prints gets between the replies
    chunks: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()

    def answer(kind: str, value: object) -> None:
        replies.write(pickle.dumps((kind, value)))
        replies.flush()

    try:
        build, arguments, memory_bytes = pickle.load(requests)
        _limit_memory(memory_bytes)
        function = build(*arguments)
    except Exception as error:
        clear = error if isinstance(error, MedsegError) else MedsegError(f"worker cannot start: {error!r}")
        answer("failed", MedsegError(str(clear)))
        return
    threading.Thread(target=_receive, args=(requests, chunks), daemon=True).start()
    answer("ready", None)
    while True:
        for item in chunks.get():
            try:
                result = function(item)
            except Exception as error:
                result = Lost(f"internal error {type(error).__name__}: {error}")
            answer("done", result)


def _receive(requests: io.BufferedReader, chunks: "queue.SimpleQueue[list[Any]]") -> None:
    """Hand on what the parent sends; when its end of the pipe closes, this process ends at once."""
    try:
        while True:
            chunks.put(pickle.load(requests))
    except Exception:
        os._exit(1)


def _limit_memory(limit_bytes: int | None) -> None:
    """Bound the address space, where the system can."""
    if limit_bytes is None or sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))

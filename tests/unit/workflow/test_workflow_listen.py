"""The job of the listener with prediction and network replaced; both are real in tests/integration/test_pacs.py."""

import json
import logging
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from medseg.errors import BundleError, MedsegError, NetworkError
from medseg.io.dicom_node import NodeSettings, Peer, PeerRefused
from medseg.io.inbox import Inbox, hashed
from medseg.types.result import CaseReport, RunReport
from medseg.workflow import listen as job
from medseg.workflow.listen import ListenOptions, listen

FAST = ListenOptions(quiet_s=0.0, resend_s=0.001)


class _Bundle:
    """A model of these classes."""

    root = Path("bundle")

    def __init__(self, items):
        self.plan = SimpleNamespace(labels=SimpleNamespace(items=items))


class Killed(BaseException):
    """The process ends here, at once."""


class World:
    """What stands in for prediction and peer: each call is noted; `fate` maps a study to what predicting it does."""

    def __init__(self, root):
        self.root = root
        self.fate = {}
        self.sending = []  # exceptions of the next sendings
        self.predicted, self.sent = [], []

    def receive(self, study, series="1.2", instances=("1.1",)):
        inbox = Inbox(self.root, 9, 10**6)
        for uid in instances:
            inbox.receive(study, series, uid, b"x")

    def predict_folder(self, bundle, inputs, out, *, options, report):
        study = Path(inputs[0]).parent.name
        self.predicted.append(study)
        fate = self.fate.get(study, "ok")
        if isinstance(fate, BaseException):
            raise fate
        Path(out).mkdir(parents=True, exist_ok=True)
        cases = []
        for series in sorted(path.name for path in Path(inputs[0]).iterdir()):
            status = fate.get(series, "ok") if isinstance(fate, dict) else fate
            name = f"CT-{series}.seg.dcm"
            (Path(out) / name).write_bytes(b"seg")
            error = "a slice is missing" if status == "failed" else None
            cases.append(CaseReport(f"CT-{series}", status, 0.0, (name,) if status == "ok" else (), error=error))
        return RunReport("medseg.report/1", "0", "0", "cpu", tuple(cases))

    def send_files(self, files, peer, *, aet):
        if self.sending:
            error = self.sending.pop(0)
            if error:
                raise error
        self.sent += [path.name for path in files]

    def run(self, turns=12):
        left = iter(range(turns))
        listen(
            "bundle", self.root, Peer("PACS", "h", 1), node=NodeSettings(0), options=FAST, stop=lambda: not any(left)
        )

    def folders(self, part):
        return sorted(path.name for path in (self.root / part).iterdir())

    def reasons(self, study):
        return json.loads((self.root / "failed" / hashed(study) / "reason.json").read_text())["reasons"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(tmp_path / "node")

    @contextmanager
    def no_network(settings, keep):
        yield settings.port

    monkeypatch.setattr(job, "running_node", no_network)
    monkeypatch.setattr(job, "load_bundle", lambda path, *, trust: _Bundle(("bone",)))
    monkeypatch.setattr(job, "predict_folder", made.predict_folder)
    monkeypatch.setattr(job, "send_files", made.send_files)
    monkeypatch.setattr(job, "_POLL_S", 0.002)
    return made


def seg(series):
    return f"CT-{hashed(series)}.seg.dcm"


def test_a_model_that_finds_landmarks_only_is_refused(world, monkeypatch):
    monkeypatch.setattr(job, "load_bundle", lambda path, *, trust: _Bundle(()))
    with pytest.raises(BundleError, match="landmarks only"):
        world.run()


def test_every_study_is_predicted_sent_and_cleared(world):
    world.receive("1")
    world.receive("2", series="1.3")
    world.run()
    assert sorted(world.sent) == sorted([seg("1.2"), seg("1.3")])
    assert world.folders("incoming") == world.folders("work") == world.folders("failed") == []
    assert world.folders("results") == sorted([hashed("1"), hashed("2")])


def test_a_peer_that_is_away_gets_the_result_later_and_prediction_is_not_repeated(world, caplog):
    caplog.set_level(logging.INFO, "medseg")
    world.sending = [NetworkError("cannot be reached"), OSError("disk"), None]
    world.receive("1")
    world.run(30)
    assert world.predicted == [hashed("1")]
    assert world.sent == [seg("1.2")]
    assert "cannot be reached" in caplog.text


def test_others_are_predicted_while_one_waits_for_the_peer(world):
    world.sending = [NetworkError("busy")]
    world.receive("1")
    world.receive("2", series="1.3")
    world.run(30)
    assert sorted(world.predicted) == sorted([hashed("1"), hashed("2")])
    assert sorted(world.sent) == sorted([seg("1.2"), seg("1.3")])


def test_a_refused_object_fails_its_study_and_keeps_the_result(world):
    world.sending = [PeerRefused("refuses the object")]
    world.receive("1")
    world.run()
    assert "refuses the object" in world.reasons("1")[0]
    assert (world.root / "failed" / hashed("1") / "results" / seg("1.2")).is_file()
    assert list((world.root / "failed" / hashed("1") / "scans").rglob("*.dcm"))


def test_killed_between_prediction_and_sending_it_sends_the_same_result(world):
    world.sending = [Killed()]
    world.receive("1")
    with pytest.raises(Killed):
        world.run()
    world.run()
    assert world.predicted == [hashed("1")]
    assert world.sent == [seg("1.2")]


def test_killed_while_closing_a_study_nothing_is_predicted_again(world, monkeypatch):
    world.receive("1")

    def killed(*args, **options):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("shutil.rmtree", lambda path, **options: killed() if "work" in str(path.parent) else None)
        world.run()
    world.run()
    assert world.predicted == [hashed("1")]
    assert world.folders("work") == []
    assert (world.root / "results" / hashed("1") / seg("1.2")).is_file()


def test_a_study_that_ends_the_process_again_and_again_is_put_aside(world):
    world.fate[hashed("1")] = Killed()
    world.receive("1")
    for _ in range(3):
        with pytest.raises(Killed):
            world.run()
    world.receive("2", series="1.3")
    world.run()
    assert "begun 3 times" in world.reasons("1")[0]
    assert world.sent == [seg("1.3")]


@pytest.mark.parametrize("error", [MedsegError("no scans given"), {hashed("1.2"): "failed"}])
def test_a_bad_study_is_failed_with_its_reason_and_others_go_on(world, error):
    world.fate[hashed("1")] = error
    world.receive("1")
    world.receive("2", series="1.3")
    world.run()
    assert world.reasons("1")
    assert world.sent == [seg("1.3")]


def test_good_series_of_a_bad_study_are_sent_once_and_the_bad_one_may_come_again(world):
    world.fate[hashed("1")] = {hashed("1.3"): "failed"}
    world.receive("1", "1.2")
    world.receive("1", "1.3")
    world.run()
    assert world.sent == [seg("1.2")]
    assert world.reasons("1") == [f"CT-{hashed('1.3')}: a slice is missing"]
    world.fate.clear()
    world.receive("1", "1.2")
    world.receive("1", "1.3")
    world.run()
    assert world.sent == [seg("1.2"), seg("1.3")]


def test_a_study_without_a_scan_is_no_failure(world):
    world.fate[hashed("1")] = "skipped"
    world.receive("1")
    world.run()
    assert world.sent == []
    assert world.folders("failed") == world.folders("work") == []


def test_the_same_study_again_is_not_predicted_again_but_a_fuller_one_is(world):
    world.receive("1", instances=("1.1", "1.2"))
    world.run()
    world.receive("1", instances=("1.1", "1.2"))
    world.run()
    assert len(world.predicted) == 1
    world.receive("1", instances=("1.3",))
    world.run()
    assert "arrived after" in world.reasons("1")[0]
    world.receive("1", instances=("1.1", "1.2", "1.3"))
    world.run()
    assert len(world.predicted) == 2


def test_two_processes_do_not_share_a_folder(world, monkeypatch):
    world.run()
    with job.locked(world.root), pytest.raises(NetworkError, match="already listening here"):
        world.run()


def test_a_bad_bundle_ends_it_at_once(tmp_path):
    with pytest.raises(BundleError):
        listen(tmp_path, tmp_path / "node", Peer("PACS", "h", 1), node=NodeSettings(0), stop=lambda: True)

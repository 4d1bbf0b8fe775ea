import json
import threading

import pytest

from medseg.io.inbox import Inbox, InboxFull, Outcome, hashed

DONE = Outcome((), (hashed("1.2"),))


def inbox(folder, studies=3, room=1000):
    return Inbox(folder / "node", studies, room)


def files(folder, part):
    return sorted(
        path.relative_to(folder / "node" / part).as_posix() for path in (folder / "node" / part).rglob("*.dcm")
    )


def receive(box, study="1", series="1.2", instances=("1.2.3",), content=b"x" * 10):
    for uid in instances:
        box.receive(study, series, uid, content)


def test_a_received_file_is_there_whole_under_hashes(tmp_path):
    receive(inbox(tmp_path))
    (name,) = files(tmp_path, "incoming")
    assert name == f"{hashed('1')}/scans/{hashed('1.2')}/{hashed('1.2.3')}.dcm"
    assert (tmp_path / "node" / "incoming" / name).read_bytes() == b"x" * 10


def test_a_study_is_taken_only_when_quiet(tmp_path):
    box = inbox(tmp_path)
    receive(box)
    assert box.take(60.0) is None
    assert box.take(0.0) == hashed("1")
    assert box.take(0.0) is None
    assert box.working() == [hashed("1")]


def test_the_study_that_waits_longest_goes_first(tmp_path):
    box = inbox(tmp_path)
    for study in ("9", "5", "7"):
        receive(box, study)
    receive(box, "9", instances=("8.8",))
    assert [box.take(0.0) for _ in range(3)] == [hashed("5"), hashed("7"), hashed("9")]


def test_further_studies_are_refused_but_not_further_files_of_those_that_wait(tmp_path):
    box = inbox(tmp_path, studies=2)
    receive(box, "1")
    receive(box, "2")
    box.take(0.0)
    with pytest.raises(InboxFull, match="2 studies wait"):
        receive(box, "3")
    receive(box, "1", instances=("4.4",))
    receive(box, "2", instances=("4.4",))
    assert len(files(tmp_path, "incoming")) == 3


def test_bytes_are_bounded_over_restarts_and_freed_by_finishing(tmp_path):
    receive(inbox(tmp_path, room=25), instances=("1.1", "1.2"))
    box = inbox(tmp_path, room=25)
    with pytest.raises(InboxFull, match="25 bytes"):
        receive(box, instances=("1.3",))
    study = box.take(0.0)
    box.finish(study, DONE)
    receive(box, instances=("1.3",))


def test_failed_studies_count_towards_the_bytes(tmp_path):
    box = inbox(tmp_path, room=15)
    receive(box)
    box.fail(box.take(0.0), "no reason")
    with pytest.raises(InboxFull):
        receive(box, "2")


def test_a_restart_finds_what_was_received_and_what_was_begun(tmp_path):
    first = inbox(tmp_path)
    receive(first, "1")
    receive(first, "2")
    begun = first.take(0.0)
    second = inbox(tmp_path)
    assert second.working() == [begun] == [hashed("1")]
    assert second.take(0.0) == hashed("2")


def test_parts_of_files_are_cleared_at_the_start(tmp_path):
    receive(inbox(tmp_path))
    part = tmp_path / "node" / "incoming" / hashed("1") / "scans" / ".part-abc-file.dcm"
    part.write_bytes(b"half")
    inbox(tmp_path)
    assert not part.exists()


def test_finishing_keeps_results_beside_older_ones_and_deletes_scans(tmp_path):
    box = inbox(tmp_path)
    for name, series in (("a.seg.dcm", "1.2"), ("b.seg.dcm", "1.3")):
        receive(box, series=series)
        study = box.take(0.0)
        box.results(study).mkdir()
        (box.results(study) / name).write_bytes(b"seg")
        box.finish(study, Outcome((name,), (hashed(series),)))
    assert files(tmp_path, "results") == [f"{study}/a.seg.dcm", f"{study}/b.seg.dcm"]
    assert files(tmp_path, "work") == files(tmp_path, "incoming") == []


@pytest.mark.parametrize(
    ("again", "faults", "left"),
    [(("1", "2"), 0, 0), (("1",), 0, 0), (("1", "2", "3"), 0, 3), (("3",), 1, 1), (("2", "3"), 1, 2)],
)
def test_what_an_earlier_result_covers_is_left_out_and_fragments_are_faults(tmp_path, again, faults, left):
    box = inbox(tmp_path)
    receive(box, instances=("1", "2"))
    box.finish(box.take(0.0), DONE)
    receive(box, instances=again)
    study = box.take(0.0)
    assert len(box.leave_out_known(study)) == faults
    assert sum(map(len, box.series(study).values())) == left
    assert box.is_empty(study) == (left == 0)


def test_a_new_series_of_a_finished_study_is_new(tmp_path):
    box = inbox(tmp_path)
    receive(box)
    box.finish(box.take(0.0), DONE)
    receive(box)
    receive(box, series="1.9")
    study = box.take(0.0)
    assert box.leave_out_known(study) == ()
    assert list(box.series(study)) == [hashed("1.9")]


def test_a_failed_series_is_not_taken_for_done(tmp_path):
    box = inbox(tmp_path)
    receive(box)
    receive(box, series="1.9")
    box.finish(box.take(0.0), Outcome((), (hashed("1.2"),), ("1.9: a slice is missing",)))
    reason = json.loads((tmp_path / "node" / "failed" / hashed("1") / "reason.json").read_text())
    assert reason["reasons"] == ["1.9: a slice is missing"]
    assert len(files(tmp_path, "failed")) == 2
    receive(box)
    receive(box, series="1.9")
    study = box.take(0.0)
    box.leave_out_known(study)
    assert list(box.series(study)) == [hashed("1.9")]


def test_an_outcome_and_attempts_survive_a_restart(tmp_path):
    box = inbox(tmp_path)
    receive(box)
    study = box.take(0.0)
    assert box.outcome(study) is None
    assert [box.count_attempt(study), inbox(tmp_path).count_attempt(study)] == [1, 2]
    outcome = Outcome(("a.seg.dcm",), (hashed("1.2"),), ("x",))
    box.keep_outcome(study, outcome)
    assert inbox(tmp_path).outcome(study) == outcome


def test_threads_lose_nothing_while_studies_are_taken(tmp_path):
    box = inbox(tmp_path, room=10**6)
    taken = []

    def send(series):
        receive(box, series=series, instances=[f"{series}.{i}" for i in range(20)])

    threads = [threading.Thread(target=send, args=(f"1.{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        study = box.take(0.0)
        if study:
            taken += files(tmp_path, "work")
            box.fail(study, "test")
    taken += files(tmp_path, "incoming")
    assert len(set(taken)) == 80


def test_the_folder_is_private(tmp_path):
    inbox(tmp_path)
    assert (tmp_path / "node").stat().st_mode & 0o077 == 0

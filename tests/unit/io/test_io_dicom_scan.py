import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from medseg.io import dicom_scan
from medseg.io.dicom_headers import Header
from medseg.io.dicom_scan import scan_headers, walk
from medseg.io.processes import Limits


@pytest.fixture
def tree(tmp_path):
    """A small CT file under many names, and junk."""
    data = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    for i in np.random.default_rng(0).permutation(30):
        folder = tmp_path / "tree" / f"series {i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"I{i}").write_bytes(data)
    (tmp_path / "tree" / "notes.txt").write_text("no image")
    (tmp_path / "tree" / "empty").write_bytes(b"")
    return tmp_path / "tree"


def test_walking_ends_and_opens_regular_files_only(tree, tmp_path):
    (tree / ".hidden").write_text("x")
    (tree / "loop").symlink_to(tree)
    (tree / "gone").symlink_to(tmp_path / "nothing")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked").write_text("x")
    (tree / "link").symlink_to(elsewhere)
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tree / "socket"))
        files, refused = walk(tree)
    assert len(files) == 33 and list(files) == sorted(files) and tree / "link" / "linked" in files
    assert refused == {
        tree / "gone": "is a broken link",
        tree / "pipe": "is no regular file",
        tree / "socket": "is no regular file",
    }
    assert walk(tmp_path / "nothing")[1] == {tmp_path / "nothing": "cannot be opened (No such file or directory)"}


def test_processes_find_what_one_finds(tree):
    files, _ = walk(tree)
    steps = []
    alone = scan_headers(files)
    together = scan_headers(files, few=5, report=steps.append)
    assert alone == together and list(together) == list(files)
    assert sum(isinstance(header, Header) for header in together.values()) == 30
    assert together[tree / "empty"] == "is empty"
    assert [step.done for step in steps] == list(range(1, 33))


def disaster():
    """A reader that fails as broken native code would."""
    from medseg.io.dicom_headers import read_header

    def read(path):
        if path.name == "I7":
            os.kill(os.getpid(), signal.SIGSEGV)
        if path.name == "I8":
            time.sleep(60)
        if path.name == "I9":
            bytearray(3 << 30)
        return read_header(path)

    return read


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_a_file_that_ends_its_reader_costs_itself(tree, monkeypatch):
    monkeypatch.setattr(dicom_scan, "_reader", disaster)
    files, _ = walk(tree)
    found = scan_headers(files, few=5, limits=Limits(workers=2, seconds=2, memory_bytes=2 << 30, ahead=8))
    reasons = {path.name: reason for path, reason in found.items() if isinstance(reason, str)}
    assert set(reasons) == {"I7", "I8", "I9", "notes.txt", "empty"}
    assert "SIGSEGV" in reasons["I7"] and "longer than 2 s" in reasons["I8"] and "MemoryError" in reasons["I9"]

"""What the command prints where the terminal or the machine is short of something."""

import io
import sys

import pytest
import torch

from medseg.cli import app as module
from medseg.cli.app import main
from medseg.cli.terms import show


def code_page(monkeypatch):
    """Output as redirected on a Western Windows: cp1252, and an error for what it lacks."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    return streams


def test_text_outside_of_the_code_page_is_escaped(monkeypatch, tmp_path):
    out, err = code_page(monkeypatch)
    assert main(["evaluate", str(tmp_path / "Łódź"), str(tmp_path / "Łódź")]) == 2
    show("größer als Ł")
    out.flush()
    err.flush()
    assert b"gr\xf6\xdfer als \\u0141\n" in out.buffer.getvalue()
    assert b"\\u0141\xf3d\\u017a: does not exist" in err.buffer.getvalue()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["torch", "python"]
)
def test_memory_that_runs_out_is_a_line_and_no_traceback(monkeypatch, capsys, error):
    def short(*arguments, **options):
        raise error

    monkeypatch.setattr(module, "app", short)
    assert main(["train"]) == 2
    assert capsys.readouterr().err.startswith("error: out of memory. close other programs")

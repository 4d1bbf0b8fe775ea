"""docs/security.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_named_test_file_exists():
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"\btest_\w+\.py", PAGE))
    assert len(named) > 10
    assert named <= there


def test_every_promise_names_a_test():
    rows = [row for row in PAGE.splitlines() if row.startswith("| ") and not row.startswith(("| Promise", "| Fuzzer"))]
    promises = [row for row in rows if len(row.strip("|").split("|")) == 3]
    assert len(promises) > 12
    for row in promises:
        assert re.search(r"test_\w+|the same", row.split("|")[3]), row


def test_the_fuzzers_it_names_are_those_there_are():
    there = {path.stem for path in (ROOT / "benchmarks").glob("fuzz_*.py")} - {"fuzz_target"}
    assert set(re.findall(r"\bfuzz_\w+", PAGE)) - {"fuzz_corpus"} == there

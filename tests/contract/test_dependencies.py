"""docs/dependencies.md lists every dependency of the product with the version that is tested, and no other."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEVELOPERS = {"test", "check"}


def required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in set(extras) - DEVELOPERS for line in extras[name])]
    return {re.match(r"[\w.-]+", line)[0].lower(): line for line in lines}


def listed():
    rows = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")]
    return {row[0]: row[1:] for row in cells if row[0] not in ("Package", "---")}


def pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines if line)}


def test_every_dependency_is_listed_with_its_tested_version():
    pins = pinned()
    assert {name: cells[0] for name, cells in listed().items()} == {name: pins[name] for name in required()}


def test_every_row_says_purpose_licence_and_anomalies():
    for name, cells in listed().items():
        assert len(cells) == 4 and all(cells), name


def test_every_tested_version_is_one_that_may_be_installed():
    for name, line in required().items():
        floor = re.search(r">=([\d.]+)", line)[1]
        numbers = [tuple(map(int, version.split(".")[:2])) for version in (pinned()[name], floor + ".0")]
        assert numbers[0] >= numbers[1], line

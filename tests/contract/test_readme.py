import re
import shlex
from pathlib import Path

import pytest

from medseg.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shell_lines():
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    yield page.name, line.strip()


def commands(program):
    return sorted({(page, line) for page, line in shell_lines() if line.split()[0] == program})


@pytest.mark.parametrize(("page", "line"), commands("medseg"))
def test_medseg_commands_parse(page, line):
    command, bound, _ = app.parse_args(shlex.split(line, comments=True)[1:], exit_on_error=False, print_error=False)
    assert callable(command) and bound is not None


@pytest.mark.parametrize(("page", "line"), commands("make"))
def test_make_targets_exist(page, line):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(line.split()[1:]) <= targets


@pytest.mark.parametrize(("page", "line"), [pair for pair in shell_lines() if "python" in pair[1].split()[0]])
def test_scripts_exist(page, line):
    for word in shlex.split(line, comments=True)[1:]:
        if word.endswith(".py"):
            assert (ROOT / word).is_file(), word


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_shows_the_two_commands():
    lines = {line for page, line in shell_lines() if page == "README.md"}
    assert {"make demo", "make test"} <= lines

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import medseg

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "medseg"
HEAVY = {"torch", "numpy", "scipy", "SimpleITK", "monai", "pydantic", "matplotlib", "pydicom", "nibabel"}
PROGRAMS = [*sorted((ROOT / "pipelines").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]


def modules_after(code):
    """Top-level modules a fresh interpreter has loaded after `code`."""
    script = f"import sys; {code}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_huge_pages_are_asked_for_unless_somebody_decided_otherwise(before, after):
    name = "THP_MEM_ALLOC_ENABLE"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment |= {} if before is None else {name: before}
    command = [sys.executable, "-c", f"import os, medseg; print(os.environ['{name}'])"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == after


def trees():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def calls(tree):
    """Dotted names of everything that is called."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_import_medseg_loads_nothing_heavy_and_is_quick():
    assert not modules_after("import medseg") & HEAVY
    script = "import time; t = time.perf_counter(); import medseg; print(time.perf_counter() - t)"
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    assert min(float(run.stdout) for run in runs) < 0.1


def test_help_needs_no_torch_and_no_numpy():
    began = time.perf_counter()
    code = "from medseg.cli import main; main(['--help']); main(['predict', '--help'])"
    assert not modules_after(code) & HEAVY
    assert time.perf_counter() - began < 10  # a hang, not a benchmark


@pytest.mark.parametrize(
    "module",
    [
        *("medseg.types.plan", "medseg.types.result", "medseg.io.images", "medseg.io.datasets", "medseg.io.records"),
        *("medseg.postprocess.chain", "medseg.metrics.cases", "medseg.workflow.check_dataset"),
    ],
)
def test_readers_cleaning_and_metrics_run_without_torch(module):
    assert not modules_after(f"import {module}") & {"torch", "monai"}


def test_layers_hold():
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed (extra: check)")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_nothing_in_a_model_or_data_set_is_executed():
    forbidden = ("pickle.load", "pickle.loads", "torch.load", "eval", "exec", "np.load", "joblib.load", "yaml.load")
    own_pipes = "medseg/io/processes.py"  # what it and its child processes say to each other, nothing from a file
    found = {(name, call) for name, tree in trees() for call in calls(tree) if call in forbidden}
    assert found == {(own_pipes, "pickle.load")}
    imported = {
        (name, alias.name)
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert {pair for pair in imported if pair[1] in {"pickle", "dill", "joblib", "shelve", "marshal"}} == {
        (own_pipes, "pickle")
    }


def test_the_library_prints_nothing_and_reads_no_environment_variable():
    assert {name for name, tree in trees() if "print" in calls(tree)} == set()
    readers = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "getenvb", "environb"}
    }
    assert readers == {"medseg/__init__.py"}  # which sets one for torch


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_use_public_names_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(alias.name.partition(".")[0] != "medseg" or alias.name == "medseg" for alias in node.names)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "medseg":
            assert node.module == "medseg" and {alias.name for alias in node.names} <= set(medseg.__all__)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "medseg":
            assert node.attr in medseg.__all__, node.attr


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_stay_short_and_say_what_they_do(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= (150 if path.parent.name == "pipelines" else 60)
    assert ast.get_docstring(ast.parse(text))

"""What the fuzzers of benchmarks/ found: one small input per outcome, replayed through the same checks."""

import contextlib
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "fuzz_corpus"
FORMATS = ("nifti", "headers", "bundle", "images")


@pytest.fixture(scope="module", params=FORMATS)
def fuzzer(request, tmp_path_factory):
    """A fuzzing program as a module, without the fuzzer itself."""
    kind = request.param
    stub = types.SimpleNamespace(
        instrument_imports=lambda **options: contextlib.nullcontext(), instrument_func=lambda f: f
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "atheris", stub)
        patch.syspath_prepend(ROOT / "benchmarks")
        for name in ("fuzz_target", f"fuzz_{kind}"):
            patch.delitem(sys.modules, name, raising=False)
        module = __import__(f"fuzz_{kind}")
        home = tmp_path_factory.mktemp(kind)
        patch.setattr(module, "HOME", home)
        if kind == "bundle":
            patch.setattr(module, "ROOT", home / "bundle")
            module.make()
        yield kind, module


def test_every_kept_input_leads_to_an_image_a_record_or_an_error_of_medseg(fuzzer, capfd):
    kind, module = fuzzer
    found = sorted((CORPUS / kind).iterdir())
    assert len(found) > 10
    for path in found:
        try:
            module.one(path.read_bytes())
        except BaseException as error:
            raise AssertionError(f"{kind}/{path.name}") from error


def test_the_seeds_of_a_fuzzer_are_sound(fuzzer):
    _, module = fuzzer
    seeds = module.seeds()
    assert len(seeds) > 3
    for data in seeds.values():
        module.one(data)


def test_the_corpus_stays_small():
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 200_000

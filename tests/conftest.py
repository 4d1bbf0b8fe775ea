import os
import random
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook


def pytest_addoption(parser):
    parser.addoption("--data", type=Path, help="folder of real data sets for -m acceptance")


@pytest.fixture(scope="session")
def real_data(request):
    """The folder given with --data."""
    folder = request.config.getoption("--data")
    if folder is None:
        pytest.skip("give the folder of real data sets with --data")
    return folder


def pytest_configure(config):
    """One torch thread per test process, so that workers side by side do not fight for cores; must precede torch."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    install_import_hook("medseg", "shape_checks.check")
    settings.register_profile("medseg", deadline=None)
    settings.load_profile("medseg")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """The same random numbers in every run, whichever tests came before in this process."""
    import torch

    random.seed(0)
    torch.manual_seed(0)

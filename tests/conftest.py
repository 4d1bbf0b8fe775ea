import os

from hypothesis import settings


def pytest_configure(config):
    """One torch thread per test process, so that workers side by side do not fight for cores; must precede torch."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings.register_profile("medseg", deadline=None)
    settings.load_profile("medseg")

"""Settings that must stand before anything imports scipy or scikit-learn."""

import os
from importlib.util import find_spec

import pytest

# Without it scikit-learn silently skips its array checks; scipy reads it once, at import.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# No window opens where displays are tested.
os.environ.setdefault("MPLBACKEND", "agg")
# The tests' models are tiny, and a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The examples of displays draw, and those of extras need them.
extras = {"matplotlib": "skvae/display.py", "distributed": "skvae/dask.py"}
collect_ignore = [path for extra, path in extras.items() if not find_spec(extra)]


@pytest.fixture
def one_thread():
    """As many as other processes have: sums are rounded alike."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lose(monkeypatch):
    """What lets another process be lost in the nth call of a trainer's method; gives its calls."""
    from skvae.training import History, Trainer

    def patch(method, nth):
        original, calls = getattr(Trainer, method), []

        def lost(self, *args, **kwargs):
            calls.append(method)
            if len(calls) == nth:
                error = ConnectionError("another one is lost")
                error.history = History()  # as `Trainer.fit` has it
                raise error
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Trainer, method, lost)
        return calls

    return patch

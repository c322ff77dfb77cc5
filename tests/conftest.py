import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from rich.console import Console

from gmvq import recipes
from gmvq.training import Interrupted
from gmvq.training.loop import Loop

# one thread for each test process: pytest-xdist runs several, and two threads on a busy core wait for each other
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained_digits(tmp_path_factory):
    """Folder of a tokenizer of the bundled digits, hardly trained; not to be written to."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    run = recipes.changed(recipes.digits(), steps=3, width=8, blocks=1, batch_size=8, codebook_size=16)
    recipes.run(run, folder, console=Console(quiet=True), report=False)
    return folder


@pytest.fixture
def run(trained_digits, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(trained_digits, tmp_path / "run")


@pytest.fixture
def stopping_at(monkeypatch):
    """A context in which a training stops when it has saved a step, and must."""

    @contextmanager
    def context(step):
        saved = Loop._save

        def stop(running):
            saved(running)
            if running.step == step:
                raise Interrupted(step, running.training.steps, running.out)

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "_save", stop)
            with pytest.raises(Interrupted):
                yield

    return context


if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests of signals hold under nohup, too

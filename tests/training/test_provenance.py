import subprocess
from pathlib import Path

import torch

from gmvq.training import provenance


def test_versions_and_hardware():
    assert provenance.versions()["torch"] == torch.__version__
    assert f"{torch.get_num_threads()} threads" in provenance.hardware()


def test_hardware_without_proc(monkeypatch):
    def missing(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert provenance.hardware().count(", ") >= 3


def git(folder, *words):
    settings = [
        "-c",
        "user.name=x",
        "-c",
        "user.email=x@y",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "core.hooksPath=/dev/null",
    ]
    return subprocess.run(
        ["git", "-C", folder, *settings, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_is_that_of_our_own_checkout(tmp_path):
    git(tmp_path, "init", "-q")
    ours = tmp_path / "provenance.py"
    ours.write_text("x")
    assert provenance.commit(tmp_path) is None  # a repository around us that does not hold us
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.commit(tmp_path) == head
    ours.write_text("y")
    assert provenance.commit(tmp_path) == f"{head}+"


def test_no_commit_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() is None

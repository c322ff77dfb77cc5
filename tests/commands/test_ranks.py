"""What the processes of torchrun print: one result, of the first of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gmvq
from gmvq import commands
from gmvq.__main__ import main

SMALL = ["--steps", "12", "--batch-size", "4", "--width", "8", "--codebook-size", "16", "--checkpoint-every", "4"]


@pytest.mark.parametrize("verb", commands.VERBS)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_one_process_of_two_shows_the_result(verb, form, capsys, monkeypatch, tmp_path):
    """Verbs that train together run in both, others in the first one, which then is the only one."""
    ran = []

    def run(options, command):
        ran.append(os.environ.get("WORLD_SIZE"))
        return {"run": "here"}

    monkeypatch.setattr(commands.module_of(verb), "run", run)
    monkeypatch.setattr(commands.module_of(verb), "show", lambda result, console: print(json.dumps(result)))
    monkeypatch.setattr(commands, "parse", lambda verb, words: Asked(bool(form)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main([verb, *form]) == 0
        shown.append(capsys.readouterr().out)
        assert os.environ["WORLD_SIZE"] == "2"
    assert (json.loads(shown[0]), shown[1]) == ({"run": "here"}, "")
    assert ran == (["2", "2"] if verb in commands.SPREAD else [None])


class Asked:
    """Options of any verb."""

    def __init__(self, json):
        self.common = self
        self.json = json


KILLED = """
import os, signal, sys
from gmvq import Autoencoder
forward, calls = Autoencoder.forward, 0
def counted(self, *inputs):
    global calls
    calls += self.training
    if os.environ["RANK"] == "1" and calls == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, *inputs)
Autoencoder.forward = counted
from gmvq.__main__ import main
sys.exit(main())
"""


def torchrun(*words, script=None):
    """The standard output, standard error and status of a command in two processes."""
    folder = str(Path(gmvq.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
    program = ["-m", "gmvq"] if script is None else [str(script)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_under_torchrun_one_object_is_printed_and_a_killed_process_ends_the_run(tmp_path):
    words = ["train", "digits", *SMALL, "--device", "cpu", "--json"]
    straight = torchrun(*words, "--out", str(tmp_path / "straight"))
    assert straight.returncode == 0, straight.stderr
    assert json.loads(straight.stdout)["metrics"]["psnr"] > 0  # of two objects this would fail
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    begin = time.monotonic()
    killed = torchrun(*words, "--out", str(tmp_path / "killed"), script=script)
    assert time.monotonic() - begin < 60 + 60  # to start, and to end
    assert (killed.returncode, killed.stdout) == (1, "")
    assert f"exitcode  : -{signal.SIGKILL.value}" in killed.stderr
    resumed = torchrun(*words, "--out", str(tmp_path / "killed"), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Continuing after step 4 of 12" in resumed.stderr
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("straight", "killed")]
    assert weights[0] == weights[1]
    for verb in (["fit-prior", "--steps", "2", "--batch-size", "4", "--width", "16", "--depth", "1"], ["evaluate"]):
        made = torchrun(verb[0], str(tmp_path / "straight"), *verb[1:], "--device", "cpu", "--json")
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["run"] == str(tmp_path / "straight")

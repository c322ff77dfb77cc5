import io
import shutil

import pytest
from rich.console import Console

from gmvq import hub
from gmvq.data.parsing import DamagedFileError
from gmvq.data.sealing import read_sealed, write_sealed
from gmvq.training import Training, checkpoint, train
from gmvq.training.journal import read_log

TRAINING = Training(
    steps=8, batch_size=8, checkpoint_every=3, log_every=1, evaluate_every=0, warmup_steps=0, averaging_decay=0.5
)


@pytest.fixture
def finished(data, make_model, tmp_path):
    """A finished run, and the call that resumes it with what it said."""
    train(make_model(), data, TRAINING, tmp_path / "run")

    def resume():
        console = Console(file=io.StringIO(), width=1000)
        result = train(make_model(), data, TRAINING, tmp_path / "run", resume=True, console=console)
        return result, console.file.getvalue()

    return tmp_path / "run", resume


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_checkpoint_costs_steps_and_no_bits(finished, damage):
    run, resume = finished
    whole = shutil.copytree(run, run.parent / "whole")
    last = run / checkpoint.FOLDER / checkpoint.FILE
    content = last.read_bytes()
    last.unlink()
    if damage != "missing":
        last.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    result, said = resume()
    assert result.first_step == 6
    assert said.count("Continuing from the checkpoint before it, of step 6.\n") == 1
    assert (run / hub.WEIGHTS).read_bytes() == (whole / hub.WEIGHTS).read_bytes()
    losses = [[(line["step"], line.get("loss")) for line in read_log(folder)] for folder in (run, whole)]
    assert losses[0] == losses[1]
    names = {path.name for path in last.parent.iterdir()}
    assert names == {checkpoint.FILE, checkpoint.PREVIOUS}
    for name, step in ((checkpoint.FILE, 8), (checkpoint.PREVIOUS, 6)):  # the damaged one has not become the one before
        assert read_sealed(last.with_name(name), checkpoint.FORM)[0]["step"] == step


@pytest.mark.parametrize("change", ["shape", "missing", "random"])
def test_a_checkpoint_that_does_not_fit_its_run_is_refused(finished, change):
    run, resume = finished
    last = run / checkpoint.FOLDER / checkpoint.FILE
    state, tensors = read_sealed(last, checkpoint.FORM)
    name = next(name for name in tensors if name.startswith("model.encoder"))
    if change == "shape":
        tensors[name] = tensors[name][:1]
    elif change == "missing":
        del tensors[name]
    else:
        state["random"] = []
    write_sealed(last, checkpoint.FORM, state, tensors)
    with pytest.raises(DamagedFileError, match=r"checkpoint in .* is not of this run"):
        resume()

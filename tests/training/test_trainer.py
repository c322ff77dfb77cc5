import copy
import errno
import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import gmvq
from gmvq import Autoencoder, hub
from gmvq.losses import FeatureLoss
from gmvq.modalities import Image
from gmvq.models import AdversarialConfig
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.quantizers import AbstractBottleneck
from gmvq.quantizers.parts.codebook import MovingAverageCodebook
from gmvq.training import Interrupted, NonFiniteLossError, averaged_model, train
from gmvq.training import checkpoint as checkpoints
from gmvq.training.averaging import WeightAverage
from gmvq.training.interrupts import SIGNALS
from gmvq.training.journal import Journal
from gmvq.training.monitoring import HELD_OUT_SAMPLES, HeldOut, Window

KINDS = ["gaussian-mixture", "vector", "vector-ema", "none"]
TIMES = {"seconds", "items_per_second"}


def read_log(out, *, times=False):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line if times else {key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_state(first, second):
    """The same bits in model, average, optimizer and window."""
    a, b = checkpoints.read_checkpoint(first), checkpoints.read_checkpoint(second)
    assert a.tensors.keys() == b.tensors.keys()
    different = [name for name in a.tensors if not torch.equal(a.tensors[name], b.tensors[name])]
    assert not different
    assert (a.step, a.random) == (b.step, b.random)
    assert hub.fingerprint(gmvq.load(first)) == hub.fingerprint(gmvq.load(second))
    assert read_log(first) == read_log(second)


class Crash(Exception):  # noqa: N818
    pass


def crash_at(model, call):
    """Makes a forward of the model fail, counted from 1."""
    calls = 0

    def count(module, _):
        nonlocal calls
        calls += module.training  # evaluations have hooks too
        if calls == call:
            raise Crash

    return model.encoder.register_forward_pre_hook(count)


def test_a_run_leaves_what_it_should(data, make_model, make_training, tmp_path):
    model, training = make_model(), make_training()
    result = train(model, data, training, tmp_path)
    assert (result.steps, result.first_step) == (20, 0)
    assert result.seconds > 0
    assert result.items_per_second == pytest.approx(20 * 8 / result.seconds)
    assert not result.model.training
    assert hub.fingerprint(gmvq.load(tmp_path)) == hub.fingerprint(result.model)
    lines = read_log(tmp_path, times=True)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [4, 8, 12, 16, 20]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [6, 12, 18, 20]
    terms = {"loss", "reconstruction", "bottleneck", "mse", "gradient_norm"}
    more = {"psnr", "perplexity", "used_codes", "learning_rate", "seconds", "items_per_second"}
    assert all(terms | more <= line.keys() for line in lines if line["kind"] == "train")
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert all({"psnr", "mse", "perplexity", "usage", "used_codes"} <= line.keys() for line in evaluations)
    assert all(value is not None for line in lines for value in line.values())
    assert lines[-2]["loss"] < lines[0]["loss"]


def test_the_log_says_what_was_trained(data, make_model, make_training, tmp_path):
    """A line is the mean over the steps since the last one; its perplexity is that of all their codes together."""
    seen = []
    model = make_model()
    model.register_forward_hook(lambda module, _, output: seen.append((output.loss.item(), output.codes)))
    train(model, data, make_training(steps=7, evaluate_every=0), tmp_path)
    first, second, evaluation = read_log(tmp_path)
    assert (first["step"], second["step"], evaluation["step"]) == (4, 7, 7)
    assert first["loss"] == pytest.approx(sum(loss for loss, _ in seen[:4]) / 4)
    assert second["loss"] == pytest.approx(sum(loss for loss, _ in seen[4:]) / 3)
    counts = torch.cat([codes.flatten() for _, codes in seen[4:]]).bincount(minlength=16).double()
    entropy = torch.special.entr(counts / counts.sum()).sum()
    assert second["perplexity"] == pytest.approx(entropy.exp().item())
    assert second["used_codes"] == int((counts > 0).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_a_crashed_run_resumes_bit_for_bit(data, make_model, make_training, tmp_path, kind):
    """37 images in batches of 8: the checkpoint of step 10 lies within an epoch and within a window of the log."""
    training = make_training()
    train(make_model(kind), data, training, tmp_path / "straight", size=6, mirror=True)
    model = make_model(kind)
    crash_at(model, 13)
    with pytest.raises(Crash):
        train(model, data, training, tmp_path / "crashed", size=6, mirror=True)
    assert [line["step"] for line in read_log(tmp_path / "crashed")] == [4, 6, 8, 12, 12]
    torch.manual_seed(99)  # nothing of this process may matter
    other = make_model(kind)
    torch.nn.init.normal_(other.encoder.layers[0].weight)
    result = train(other, data, training, tmp_path / "crashed", size=6, mirror=True, resume=True)
    assert (result.first_step, result.steps) == (10, 20)
    assert_same_state(tmp_path / "straight", tmp_path / "crashed")


SCRIPT = """
import os, signal, sys, torch
sys.path.insert(0, {folder!r})
from pathlib import Path
from gmvq import Autoencoder, AutoencoderConfig
from gmvq.data import ArrayItems
from gmvq.modalities import Data, Image
from gmvq.training import Training, train
torch.set_num_threads(1)
images = torch.load({images!r}, weights_only=True)
data = Data("noise", ArrayItems(images[:37], 2), ArrayItems(images[37:], 2), Image(1))
torch.manual_seed(0)
config = AutoencoderConfig(quantizer="vector-ema", modality=Image(1), codebook_size=16, width=8, downsampling=2,
                           blocks=1, likelihood="mean-squared-error")
model = Autoencoder(config)
model.bottleneck.moving.place(torch.randn(16, 4), torch.full((16,), 100.0))
training = Training(**{training!r})
calls = 0
def die(module, _):
    global calls
    calls += module.training
    if calls == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)
model.encoder.register_forward_pre_hook(die)
train(model, data, training, {out!r}, {more})
"""


def start(data, out, training, *, kill_at=0, more="", **process):
    """The run of ``SCRIPT`` in a process of its own."""
    out.mkdir(exist_ok=True)
    images = out.parent / "images.pt"
    torch.save(torch.cat([data.train.array, data.held_out.array]), images)
    folder = str(Path(gmvq.__file__).parents[1])
    script = SCRIPT.format(
        folder=folder, images=str(images), out=str(out), kill_at=kill_at, training=training, more=more
    )
    return subprocess.Popen([sys.executable, "-c", script], **{"stderr": subprocess.PIPE, "text": True, **process})


SETTINGS = {
    "steps": 20,
    "batch_size": 8,
    "warmup_steps": 4,
    "evaluate_every": 6,
    "checkpoint_every": 10,
    "log_every": 4,
}


def placed(make_model):
    """The model of ``SCRIPT``."""
    model = make_model("vector-ema", likelihood="mean-squared-error")
    model.bottleneck.moving.place(torch.randn(16, 4), torch.full((16,), 100.0))
    return model


def test_a_killed_process_resumes_bit_for_bit(data, make_model, make_training, tmp_path):
    process = start(data, tmp_path / "killed", SETTINGS, kill_at=13)
    assert process.wait(120) == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    training = make_training(**SETTINGS)
    train(placed(make_model), data, training, tmp_path / "straight")
    train(make_model("vector-ema", likelihood="mean-squared-error"), data, training, tmp_path / "killed", resume=True)
    assert_same_state(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of this kind")
def test_a_closed_terminal_saves_the_step(data, tmp_path):
    import fcntl
    import termios

    ours, theirs = os.openpty()
    settings = {**SETTINGS, "steps": 100_000, "log_every": 10, "checkpoint_every": 0, "evaluate_every": 0}
    process = start(
        data,
        tmp_path / "run",
        settings,
        more="console=__import__('rich.console').console.Console(stderr=True)",
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        shown = b""
        while b"loss" not in shown:
            shown += os.read(ours, 1024)
        os.close(ours)  # the terminal's window
        assert process.wait(60) != 0
    finally:
        process.kill()
    assert checkpoints.read_checkpoint(tmp_path / "run").step >= 10


def test_a_run_under_nohup_goes_on_when_its_terminal_is_closed(data, make_model, make_training, tmp_path):
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        model = make_model()
        model.decoder.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGHUP))
        assert train(model, data, make_training(steps=3), tmp_path).steps == 3
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_resuming_needs_the_same_run(data, make_model, make_training, tmp_path):
    training = make_training(steps=8, checkpoint_every=2)
    model = make_model()
    crash_at(model, 5)
    with pytest.raises(Crash):
        train(model, data, training, tmp_path)
    with pytest.raises(ValueError, match=r"'training.learning_rate' \(0.002 there, 0.001 now\)"):
        train(make_model(), data, replace(training, learning_rate=1e-3), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"'model.width' \(8 there, 16 now\)"):
        train(make_model(width=16), data, training, tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"'drawing.size' \(None there, 4 now\)"):
        train(make_model(), data, training, tmp_path, size=4, resume=True)
    other = data._replace(train=data.train.subset(range(30)))
    with pytest.raises(ValueError, match=r"'data.items' \(37 there, 30 now\)"):
        train(make_model(), other, training, tmp_path, resume=True)
    # what no step depends on may change
    assert (
        train(make_model(), data, replace(training, checkpoint_every=3, threads=1), tmp_path, resume=True).first_step
        == 4
    )


def test_a_model_that_cannot_be_written_is_saved_by_resuming(data, make_model, make_training, tmp_path, monkeypatch):
    def fail(model, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "save", fail)
    with pytest.raises(OSError, match=r"No space left.*checkpoint of its last step is valid.*--resume"):
        train(make_model(), data, make_training(steps=3), tmp_path)
    monkeypatch.undo()
    result = train(make_model(), data, make_training(steps=3), tmp_path, resume=True)
    assert hub.fingerprint(gmvq.load(tmp_path)) == hub.fingerprint(result.model)


def test_nothing_to_resume(data, make_model, make_training, tmp_path):
    with pytest.raises(FileNotFoundError, match="without --resume"):
        train(make_model(), data, make_training(), tmp_path, resume=True)


def test_resuming_a_finished_run_changes_nothing(data, make_model, make_training, tmp_path):
    training = make_training(steps=5)
    first = train(make_model(), data, training, tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    console = Console(file=StringIO(), width=200)
    again = train(make_model(), data, training, tmp_path, resume=True, console=console)
    assert "is finished" in console.file.getvalue()
    assert (again.first_step, again.steps, again.seconds) == (5, 5, first.seconds)
    assert hub.fingerprint(again.model) == hub.fingerprint(first.model)
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_starting_anew_keeps_the_checkpoint_of_an_unfinished_run(data, make_model, make_training, tmp_path):
    training = make_training(steps=6, checkpoint_every=2)
    model = make_model()
    crash_at(model, 5)
    with pytest.raises(Crash):
        train(model, data, training, tmp_path)
    console = Console(file=StringIO(), width=300)
    train(make_model(), data, training, tmp_path, console=console)
    assert "replaced.safetensors" in console.file.getvalue()
    assert (tmp_path / "checkpoint" / "replaced.safetensors").is_file()
    steps = [line["step"] for line in read_log(tmp_path) if line["kind"] == "train"]
    assert steps == [4, 6]


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_saves_the_step_and_says_how_to_go_on(data, make_model, make_training, tmp_path, number):
    training = make_training(checkpoint_every=0)
    train(make_model("vector-ema"), data, training, tmp_path / "straight")
    handlers = [signal.getsignal(n) for n in SIGNALS]
    model = make_model("vector-ema")
    forwards = []

    def interrupt(module, *_):
        forwards.extend([1] * module.training)  # evaluations have hooks too
        if len(forwards) == 7:
            signal.raise_signal(number)

    hook = model.decoder.register_forward_hook(interrupt)
    with pytest.raises(Interrupted, match="--resume") as caught:
        train(model, data, training, tmp_path / "stopped")
    hook.remove()
    assert (caught.value.step, caught.value.steps) == (7, 20)
    assert f"saved in {tmp_path / 'stopped'}. Give the same command with --resume" in str(caught.value)
    assert [signal.getsignal(n) for n in SIGNALS] == handlers
    assert model.bottleneck.updates_itself
    unfinished = averaged_model(tmp_path / "stopped")
    assert unfinished.reconstruct(torch.rand(1, 1, 8, 8)).shape == (1, 1, 8, 8)
    train(make_model("vector-ema"), data, training, tmp_path / "stopped", resume=True)
    assert_same_state(tmp_path / "straight", tmp_path / "stopped")


def test_a_second_interrupt_stops_at_once(data, make_model, make_training, tmp_path):
    model = make_model()
    forwards = []

    def interrupt(module, *_):
        forwards.extend([1] * module.training)  # evaluations have hooks too
        if len(forwards) == 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    model.decoder.register_forward_hook(interrupt)
    with pytest.raises(Interrupted, match="step 4 of 20") as caught:
        train(model, data, make_training(checkpoint_every=4, evaluate_every=0), tmp_path)
    assert caught.value.step == 4
    assert checkpoints.read_checkpoint(tmp_path).step == 4


def test_an_interrupt_before_the_first_checkpoint(data, make_model, make_training, tmp_path):
    model = make_model()
    model.decoder.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted, match="nothing was saved"):
        train(model, data, make_training(), tmp_path)


def poison(model, call, part):
    """Makes one forward give NaN in a part."""
    calls = 0

    def hook(module, _, output):
        nonlocal calls
        calls += 1
        if calls != call:
            return None
        if part == "bottleneck":
            terms = {**output.terms, "commitment": torch.tensor(torch.inf)}
            return output._replace(loss=output.loss * torch.nan, terms=terms)
        return output * torch.nan

    (model.bottleneck if part == "bottleneck" else model.likelihood).register_forward_hook(hook)


@pytest.mark.parametrize(
    ("part", "terms"), [("likelihood", ("reconstruction",)), ("bottleneck", ("bottleneck", "commitment"))]
)
def test_a_loss_that_is_not_finite_stops_and_names_the_term(data, make_model, make_training, tmp_path, part, terms):
    model = make_model("vector-ema", likelihood="mean-squared-error")
    poison(model, 13, part)
    with pytest.raises(
        NonFiniteLossError, match=r"step 13.*checkpoint of step 10 .*still valid.*'learning_rate'"
    ) as caught:
        train(model, data, make_training(), tmp_path)
    assert (caught.value.step, caught.value.terms) == (13, terms)
    assert checkpoints.read_checkpoint(tmp_path).step == 10
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(tensor.isfinite().all() for tensor in averaged_model(tmp_path).state_dict().values())


def test_a_gradient_that_is_not_finite_stops_before_the_step(data, make_model, make_training, tmp_path):
    model = make_model()
    model.decoder.register_full_backward_hook(lambda module, inputs, _: (inputs[0] * torch.nan,))
    with pytest.raises(NonFiniteLossError, match=r"step 1: 'gradient norm' not finite. There is no checkpoint yet"):
        train(model, data, make_training(gradient_clip=None), tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_weight_that_is_not_finite_is_not_saved(data, make_model, make_training, tmp_path, monkeypatch):
    original = WeightAverage.update

    def spoil(self, step):
        original(self, step)
        if step == 10:
            self._parameters[0].fill_(torch.inf)

    monkeypatch.setattr(WeightAverage, "update", spoil)
    with pytest.raises(NonFiniteLossError, match=r"step 10: 'encoder.layers.0.weight' not finite.*of step 5"):
        train(make_model(), data, make_training(checkpoint_every=5, evaluate_every=0), tmp_path)
    assert checkpoints.read_checkpoint(tmp_path).step == 5


class TestWindow:
    @pytest.fixture
    def accelerator(self):
        from accelerate import Accelerator

        return Accelerator(cpu=True)

    def fill(self, window, norms, loss=1.0):
        from gmvq.training.monitoring import StepMetrics

        for norm in norms:
            values = {"loss": torch.tensor(loss), "gradient_norm": torch.tensor(norm)}
            window.add(StepMetrics(values, (torch.tensor([[0], [1], [-1]]),)))

    def test_overflows_of_fp16_are_left_out(self, accelerator):
        window = Window(accelerator, (4,), allow_overflow=True)
        self.fill(window, [2.0, torch.inf, 4.0])
        window.check()
        metrics = window.take()
        assert metrics["gradient_norm"] == 3.0
        assert metrics["perplexity"] == pytest.approx(2)

    def test_endless_overflows_of_fp16_are_an_error(self, accelerator):
        window = Window(accelerator, None, allow_overflow=True)
        self.fill(window, [torch.inf] * 50)
        with pytest.raises(NonFiniteLossError, match="gradient norm"):
            window.check()

    @pytest.mark.parametrize("codebook_size", [4, 2**36])
    def test_goes_on_from_what_it_gave(self, accelerator, codebook_size):
        window, again = Window(accelerator, (codebook_size,)), Window(accelerator, (codebook_size,))
        self.fill(window, [1.0, 3.0])
        again.load({name: tensor.clone() for name, tensor in window.tensors().items()}, 2)
        for each in (window, again):
            self.fill(each, [2.0])
        metrics = again.take()
        assert metrics == window.take()
        assert (metrics["used_codes"], metrics["gradient_norm"]) == (2, 2.0)
        assert metrics["perplexity"] == pytest.approx(2)
        assert again.tensors()["counts.0"].sum() == 0

    def test_finds_the_first_step(self, accelerator):
        window = Window(accelerator, None)
        self.fill(window, [1.0, 1.0])
        window.take()
        self.fill(window, [1.0])
        self.fill(window, [1.0, 1.0], loss=torch.nan)
        with pytest.raises(NonFiniteLossError) as caught:
            window.check()
        assert (caught.value.step, caught.value.terms) == (4, ("loss",))


def test_codebooks_too_large_to_list(data, make_model, make_training, tmp_path):
    model = make_model("binary-spherical", codebook_size=2**36)
    train(model, data, make_training(checkpoint_every=5), tmp_path)
    log = read_log(tmp_path)
    assert any(entry["used_codes"] > 1 for entry in log if entry["kind"] == "train")
    assert any(0 < entry["usage"] < 1e-6 for entry in log if entry["kind"] == "evaluation")


@pytest.mark.parametrize("kind", ["vector", "vector-ema"])
def test_accumulated_batches_equal_one_large_batch(data, make_model, make_training, tmp_path, kind):
    """With a loss that is a mean over images; the logarithm in the Gaussian likelihood sees each batch apart."""
    runs = {}
    for name, batch_size, forwards in (("large", 8, 1), ("accumulated", 4, 2)):
        model = make_model(kind, likelihood="mean-squared-error")
        # started: k-means of the first forward would see half of the images
        model.bottleneck.moving.place(torch.randn(16, 4), torch.full((16,), 100.0))
        training = make_training(batch_size=batch_size, gradient_accumulation=forwards)
        result = train(model, data, training, tmp_path / name)
        runs[name] = (model.state_dict(), result.model.state_dict(), read_log(tmp_path / name))
    for large, accumulated in zip(runs["large"][:2], runs["accumulated"][:2], strict=True):
        for name in large:
            if "revivals" not in name:  # drawn, for dead codes, of which there are none
                torch.testing.assert_close(
                    accumulated[name], large[name], rtol=1e-3, atol=1e-4
                )  # sums in another order
    for large, accumulated in zip(runs["large"][2], runs["accumulated"][2], strict=True):
        assert accumulated.keys() == large.keys()
        assert accumulated["mse"] == pytest.approx(large["mse"], rel=1e-3)


@pytest.mark.parametrize("kind", ["gaussian-mixture", "vector-ema"])
def test_statistics_are_folded_once_for_each_step(data, make_model, make_training, tmp_path, monkeypatch, kind):
    folded, original = [], MovingAverageCodebook.update
    monkeypatch.setattr(MovingAverageCodebook, "update", lambda *call: folded.append(original(*call)) or folded[-1])
    model = make_model(kind)
    train(model, data, make_training(steps=6, gradient_accumulation=3), tmp_path)
    assert sum(folded) == 6
    assert AbstractBottleneck.updates_itself
    assert model.bottleneck.updates_itself


def test_mixed_precision_on_a_cpu(data, make_model, make_training, tmp_path):
    model = make_model()
    types = set()
    model.decoder.register_forward_hook(lambda module, _, output: types.add((module.training, output.dtype)))
    result = train(model, data, make_training(precision="bf16"), tmp_path)
    assert types == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(line["loss"] is not None for line in read_log(tmp_path) if line["kind"] == "train")
    assert result.model.reconstruct(torch.rand(1, 1, 8, 8)).dtype == torch.float32
    assert "forward" not in model.__dict__ or not hasattr(model.forward, "__wrapped__")  # accelerate's wrapper is gone
    # another precision in the same process
    train(make_model(), data, make_training(steps=2), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works there")
@pytest.mark.parametrize("kind", ["gaussian-mixture", "vector-ema", "none"])
def test_a_compiled_model_learns_the_same(data, make_model, make_training, tmp_path, monkeypatch, kind):
    made = []

    def translated(model, **options):  # the whole of it or an error; without the minute that C++ takes
        made.append(model)
        return compiler(model, backend="aot_eager", fullgraph=True, **options)

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", translated)
    plain = train(make_model(kind), data, make_training(steps=6), tmp_path / "plain")
    assert not made
    compiled = train(make_model(kind), data, make_training(steps=6, compile=True), tmp_path / "compiled")
    assert len(made) == 1
    for (name, one), other in zip(plain.model.state_dict().items(), compiled.model.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=name)
    assert [*plain.model.state_dict()] == [*compiled.model.state_dict()]


AGAINST = AdversarialConfig(width=8, layers=2, discriminator_start=0.2, start=0.3, warmup=0.2)


def test_a_tokenizer_is_trained_against_a_discriminator(data, make_model, make_training, tmp_path):
    plain = train(make_model(), data, make_training(), tmp_path / "plain")
    console = Console(file=StringIO(), width=200)
    opposed = train(make_model(), data, make_training(), tmp_path / "opposed", adversarial=AGAINST, console=console)
    assert isinstance(opposed.model, Autoencoder)
    assert hub.fingerprint(hub.load(tmp_path / "opposed")) == hub.fingerprint(opposed.model)
    assert hub.fingerprint(opposed.model) != hub.fingerprint(plain.model)
    lines = [json.loads(line) for line in (tmp_path / "opposed/log.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if line["kind"] == "train"}
    assert logged[4]["discriminator"] is None
    assert logged[8]["discriminator"] > 1  # a mean over the steps in which it learned
    assert logged[4]["adversarial_weight"] is None
    assert logged[20]["adversarial_weight"] > 0
    same = train(
        make_model(),
        data,
        make_training(),
        tmp_path / "same",
        adversarial=replace(AGAINST, discriminator_start=1, start=1, warmup=0),
    )
    for name, tensor in same.model.state_dict().items():  # one that never begins changes nothing
        torch.testing.assert_close(tensor, plain.model.state_dict()[name], msg=name)


def test_an_opposed_run_resumes_bit_for_bit(data, make_model, make_training, tmp_path, stopping_at):
    options = {"adversarial": replace(AGAINST, gradient_penalty=1.0), "features": features()}
    whole = train(make_model(), data, make_training(), tmp_path / "whole", **options).model
    with stopping_at(10):
        train(make_model(), data, make_training(), tmp_path / "stopped", **options)
    assert averaged_model(tmp_path / "stopped").encode(torch.rand(1, 1, 8, 8)).shape == (1, 4, 4)
    resumed = train(make_model(), data, make_training(), tmp_path / "stopped", resume=True, **options).model
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    for others in ({}, {**options, "features": features(2)}, {**options, "features": None}):
        with pytest.raises(ValueError, match="The checkpoint is of another run"):
            train(make_model(), data, make_training(), tmp_path / "stopped", resume=True, **others)


def features(seed=1):
    torch.manual_seed(seed)
    return FeatureLoss(Classifier(ClassifierConfig(Image(1).signal, 4, width=8, features=8)).encoder.layers)


def test_the_discriminator_is_seeded(data, make_model, make_training, tmp_path):
    model, made = make_model(), []
    for number in range(2):
        torch.manual_seed(number)  # whatever came before
        out = tmp_path / str(number)
        made.append(train(copy.deepcopy(model), data, make_training(), out, adversarial=AGAINST).model)
    assert hub.fingerprint(made[0]) == hub.fingerprint(made[1])


def test_the_discriminator_does_not_shorten_the_step_of_the_tokenizer(data, make_model, make_training, tmp_path):
    model, training = make_model(), make_training(steps=6, gradient_clip=1e-3)
    learning = replace(AGAINST, discriminator_start=0.0, start=1.0, warmup=0.0)  # and never against it
    opposed = train(copy.deepcopy(model), data, training, tmp_path / "opposed", adversarial=learning).model
    alone = train(copy.deepcopy(model), data, training, tmp_path / "alone").model
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(opposed.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("option", ["keep_best", "compile"])
def test_what_contradicts_a_discriminator_is_refused(data, make_model, make_training, tmp_path, option):
    with pytest.raises(ValueError, match=f"'{option}' must be False with 'adversarial'"):
        train(make_model(), data, make_training(**{option: True}), tmp_path, adversarial=AGAINST)
    with pytest.raises(ValueError, match=r"'layers' of the discriminator must be fewer for images of 8 pixels"):
        train(make_model(), data, make_training(), tmp_path, adversarial=replace(AGAINST, layers=4))
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


@pytest.mark.parametrize(("bias", "said"), [(9.0, "like guessing"), (None, "its gradient is of little use")])
def test_a_broken_discriminator_is_reported(data, make_model, make_training, tmp_path, monkeypatch, bias, said):
    def broken(discriminator, images):
        logits = images.mean((1, 2, 3))[:, None, None, None]
        if bias is not None:  # it takes all for real
            return 0 * logits + bias
        return logits * 0 + (9.0 if not images.requires_grad and images.unique().numel() <= 256 else -9.0)

    monkeypatch.setattr("gmvq.networks.discriminators.PatchDiscriminator.forward", broken)
    console = Console(file=StringIO(), width=300)
    against = replace(AGAINST, lecam=0.0)
    train(make_model(), data, make_training(), tmp_path, adversarial=against, console=console)
    assert console.file.getvalue().count(said) == 1  # once, not at each line of the log


def test_features_need_a_discriminator(data, make_model, make_training, tmp_path):
    with pytest.raises(ValueError, match="'features' must be None without 'adversarial'"):
        train(make_model(), data, make_training(), tmp_path, features=features())


def test_fp16_needs_a_gpu(data, make_model, make_training, tmp_path):
    with pytest.raises(ValueError, match=r"'precision'.*bf16"):
        train(make_model(), data, make_training(precision="fp16"), tmp_path)


def test_saves_the_average_of_the_weights(data, make_model, make_training, tmp_path):
    """The average by its formula, from the weights after each step."""
    trained = []
    original = WeightAverage.update

    class Recorder(WeightAverage):
        def update(self, step):
            trained.append(self._parameters[0].clone())
            original(self, step)

    model = make_model("vector-ema")
    start_weight = next(model.parameters()).detach().clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmvq.training.loop.WeightAverage", Recorder)
        result = train(model, data, make_training(averaging_decay=0.5), tmp_path)
    average = start_weight
    for n, weight in enumerate(trained, start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    saved = gmvq.load(tmp_path)
    torch.testing.assert_close(next(saved.parameters()), average)
    assert not torch.equal(next(saved.parameters()), next(model.parameters()))
    # running statistics are averages already and are taken as they are
    assert torch.equal(saved.bottleneck.codebook, model.bottleneck.codebook)
    assert saved.bottleneck.progress == 1
    assert saved.bottleneck.moving.has_started
    assert result.model.likelihood.variance > 0


def test_the_best_weights_are_kept_through_a_stop(data, make_model, make_training, tmp_path, monkeypatch, stopping_at):
    offered = []
    scores = iter([3.0, 9.0, 1.0, 2.0, 3.0, 9.0, 1.0, 2.0])

    def score(*_):
        offered.append(next(scores))
        return offered[-1]

    monkeypatch.setattr("gmvq.training.tasks.AutoencoderTask.score", score)
    training = make_training(steps=20, evaluate_every=6, checkpoint_every=10, keep_best=True, averaging_decay=0.0)
    best = train(make_model(), data, training, tmp_path / "best").model
    assert offered == [3.0, 9.0, 1.0, 2.0]
    with stopping_at(20):
        train(make_model(), data, training, tmp_path / "stopped")
    again = train(make_model(), data, training, tmp_path / "stopped", resume=True).model
    for (name, one), other in zip(best.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    last = train(make_model(), data, make_training(steps=20, averaging_decay=0.0), tmp_path / "last").model
    assert not torch.equal(last.encoder.layers[0].weight, best.encoder.layers[0].weight)


def test_without_averaging_the_last_weights_are_saved(data, make_model, make_training, tmp_path):
    model = make_model()
    train(model, data, make_training(steps=3, averaging_decay=0.0), tmp_path)
    saved = gmvq.load(tmp_path)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(saved.get_parameter(name), parameter)


def test_weight_decay_leaves_codes_and_biases_alone(data, make_model, make_training, tmp_path):
    from gmvq.training.preparation import make_optimizer

    model = make_model("vector")
    layers = model.encoder, model.decoder
    optimizer = make_optimizer(model, layers, make_training(weight_decay=0.1), torch.device("cpu"))
    assert isinstance(optimizer, torch.optim.AdamW)
    decaying, others = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert id(model.encoder.layers[0].weight) in decaying
    assert {id(model.encoder.layers[0].bias), id(model.bottleneck.learned)} <= others
    assert optimizer.param_groups[1]["weight_decay"] == 0
    assert len(decaying) + len(others) == len(list(model.parameters()))
    train(model, data, make_training(steps=2, weight_decay=0.1), tmp_path)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_loss_psnr_and_speed(data, make_model, make_training, tmp_path, terminal):
    console = Console(file=StringIO(), force_terminal=terminal, width=160)
    train(make_model(), data, make_training(), tmp_path, console=console)
    shown = console.file.getvalue()
    assert "step 20 of 20, on a sample of held-out images: PSNR " in shown
    assert " dB, perplexity " in shown
    assert "items/s" in shown
    assert ("20/20" in shown) == terminal
    assert ("step 1 of 20 took " in shown) != terminal
    for line in (
        "data        noise: 37 training images, 9 held out",
        "image       8 × 8 pixels, 1 channel",
        "device      cpu, 1 thread",
        "training    20 steps of 8 items",
    ):
        assert line in shown


def test_is_silent_without_a_console(data, make_model, make_training, tmp_path, capfd):
    train(make_model(), data, make_training(steps=3), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_tensorboard(data, make_model, make_training, tmp_path):
    pytest.importorskip("tensorboard")
    train(make_model(), data, make_training(steps=5, tensorboard=True), tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"evaluation/psnr" in content


def test_tensorboard_that_is_missing(data, make_model, make_training, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install gmvq\[tensorboard\]"):
        train(make_model(), data, make_training(tensorboard=True), tmp_path)


def test_a_log_that_cannot_be_written(tmp_path):
    journal = Journal(tmp_path)
    journal.write("train", 1, {"loss": 2.0, "odd": float("inf")})
    assert read_log(tmp_path) == [{"kind": "train", "step": 1, "loss": 2.0, "odd": None}]
    journal._file.close()

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    journal._file = Full()
    with pytest.raises(OSError, match=r"The line of step 2 of .*log\.jsonl .*No space left.*--resume"):
        journal.write("train", 2, {"loss": 1.0})
    journal.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_ends_a_run_with_one_line_on_its_log(data, make_model, make_training, tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"^The line of step 4 of .*log\.jsonl could not .*No space left.*\.$") as caught:
        train(make_model(), data, make_training(), tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_a_log_that_does_not_reach_the_disk_stops_before_the_checkpoint(
    data, make_model, make_training, tmp_path, monkeypatch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"log\.jsonl could not be written .*The last checkpoint is still valid"):
        train(make_model(), data, make_training(), tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_a_log_in_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"The log could not be written to .*file.*another --out\."):
        Journal(tmp_path / "file")


def test_a_log_is_cut_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    whole = '{"kind": "train", "step": 4}\n{"kind": "train", "step": 8}\n'
    path.write_text(whole + '{"kind": "train", "step": 12}\n{"kind": "tra')
    Journal(tmp_path, 8).close()
    assert path.read_text() == whole
    Journal(tmp_path).close()
    assert path.read_text() == ""


def test_no_held_out_images_means_no_evaluation(data, make_model, make_training, tmp_path):
    from gmvq.data import ArrayItems

    empty = data._replace(held_out=ArrayItems(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), 2))
    train(make_model(), empty, make_training(steps=3), tmp_path)
    assert [line["kind"] for line in read_log(tmp_path)] == ["train"]


def test_held_out_images_are_few_and_fixed(make_model):
    from gmvq.data import ArrayItems, ListItems

    many = ArrayItems(torch.zeros(3000, 1, 16, 16, dtype=torch.uint8), 2)
    assert sum(len(batch) for batch in HeldOut(many, Image(1).signal, 64).batches) == HELD_OUT_SAMPLES // 256
    mixed = ListItems(
        [torch.zeros(1, h, w, dtype=torch.uint8) for h, w in ((300, 20), (7, 7), (300, 20))], 2, ["a", "b", "c"]
    )
    held_out = HeldOut(mixed, Image(1).signal, 64)
    assert sorted(tuple(batch.shape) for batch in held_out.batches) == [(1, 1, 7, 7), (2, 1, 256, 20)]
    metrics = held_out.measure(make_model().eval())
    assert metrics["psnr"] > 0


def test_freed_memory_is_kept():
    code = (
        "import resource, torch; from gmvq.training.preparation import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20): torch.ones(2**21)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "first = faults(); keep_freed_memory(); faults(); print(first, faults())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    if platform.libc_ver()[0] == "glibc":
        assert after < before / 10

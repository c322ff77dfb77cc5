"""The training loop: steps, with logs, evaluations and checkpoints between them, until it is finished or stopped."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, cast

import torch
from accelerate.utils import gather_object
from rich.console import Console
from torch import nn

from gmvq.data.parsing import DamagedFileError
from gmvq.data.writing import naming
from gmvq.distributed import broadcast
from gmvq.training import checkpoint as checkpoints
from gmvq.training.averaging import BestWeights, WeightAverage
from gmvq.training.checkpoint import Checkpoint
from gmvq.training.config import Training
from gmvq.training.interrupts import Interrupted, Interrupts
from gmvq.training.journal import Journal, read_log
from gmvq.training.monitoring import GRADIENT, NonFiniteLossError, StepMetrics, Window
from gmvq.training.preparation import (
    Stopwatch,
    describe_run,
    keep_freed_memory,
    make_accelerator,
    make_optimizer,
    seed_everything,
)
from gmvq.training.progress import ProgressLine
from gmvq.training.symptoms import symptoms
from gmvq.training.tasks import AbstractTask, Model
from gmvq.types import Batch

CALIBRATION_STEPS = 8
"""Steps whose items calibrate the scale of the averaged model's likelihood."""


class TrainingResult(NamedTuple, Generic[Model]):
    """Result of a run.

    Attributes:
        model: The model with averaged weights, in evaluation mode, as saved in the run's folder.
        steps: Total optimizer steps of the run.
        seconds: Time of all steps, without evaluations and checkpoints, over all starts of the run.
        items_per_second: Training items per second in that time, over all ranks.
        first_step: Steps finished before this start; equal to ``steps`` if nothing was left to do.
        warnings: Problems of the run and what to try, each in one line.
    """

    model: Model
    steps: int
    seconds: float
    items_per_second: float
    first_step: int
    warnings: tuple[str, ...] = ()


class Loop(Generic[Model]):
    """One start of a run. Between two steps ``_checkpoint()`` returns its whole state."""

    def __init__(self, task: AbstractTask[Model, Any], training: Training, out: Path, console: Console | None) -> None:
        self.task, self.training, self.out = task, training, out
        self.accelerator = make_accelerator(training, idle_parameters=task.has_idle_parameters)
        device = self.accelerator.device
        if device.type == "cpu":
            keep_freed_memory()
        self.model = task.model.to(device).train()
        self.clipped = [list(part.parameters()) for part in task.clipped_apart()]
        self.averaged = copy.deepcopy(self.model).eval()
        self.optimizer = make_optimizer(self.model, task.layers(), training, device)
        self.prepared, self.stepper = self.accelerator.prepare(self.model, self.optimizer)
        # for a fixed image size: a step compiled for any size is slower
        self.compute = torch.compile(self.prepared, dynamic=False) if training.compile else self.prepared
        self.average = WeightAverage(self.model, training.averaging_decay)
        self.best = BestWeights() if training.keep_best else None
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.loader = task.loader(training.batch_size, training.seed, rank, ranks)
        self.is_main = self.accelerator.is_main_process
        self.measure = task.held_out(training.batch_size) if self.is_main else None
        self.configuration = describe_run(task.description(), training, ranks)
        self.window = Window(self.accelerator, task.codebook_sizes, allow_overflow=training.precision == "fp16")
        self.stopwatch = Stopwatch(device)
        self.progress = ProgressLine(console if self.is_main else None, training.steps, task.headline)
        self.journal: Journal | None = None
        self.step, self.saved_step, self.logged = 0, 0, (0, 0.0)
        self.advised: str | None = None

    def run(self, *, resume: bool) -> TrainingResult[Model]:
        """Trains from the first step or the checkpoint to the end: see :func:`gmvq.training.trainer.learn`."""
        first_step = self._resume() if resume else self._begin()
        try:
            if self.is_main:
                self.journal = Journal(self.out, first_step, tensorboard=self.training.tensorboard)
            self.progress.start(first_step, self._summary())
            self.task.begin()
            with Interrupts() as interrupts:
                self._loop(interrupts)
            return self._finish(first_step)
        except Interrupted:
            raise
        except KeyboardInterrupt:  # within a step, whose state is incomplete
            raise Interrupted(self.saved_step, self.training.steps, self.out) from None
        except NonFiniteLossError as error:
            raise NonFiniteLossError(error.step, error.terms, self._remedy()) from None
        finally:
            self.task.end()
            self.progress.close()
            if self.journal is not None:
                self.journal.close()
            self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)

    def _summary(self) -> dict[str, str]:
        """Returns the information to print before the first step."""
        device, training = self.accelerator.device, self.training
        named = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        threads, ranks = torch.get_num_threads(), self.accelerator.num_processes
        if device.type == "cpu":
            named += f", {threads} thread{'s' if threads > 1 else ''}"
        if ranks > 1:
            named += f", {ranks} processes"
        parameters = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return {
            **self.task.summary(),
            "parameters": f"{parameters:,}",
            "device": named,
            "training": f"{training.steps:,} steps of {self._items_per_step:,} items",
        }

    def _begin(self) -> int:
        seed_everything(self.training.seed, self.accelerator.process_index)
        if self.is_main:
            kept = checkpoints.set_aside(self.out)
            if kept is not None:
                self.progress.say(f"Starting again; the former checkpoint, of an unfinished run, is now {kept}.")
        self.accelerator.wait_for_everyone()
        return 0

    def _resume(self) -> int:
        said: list[str] = []
        checkpoint = checkpoints.read_checkpoint(self.out, said.append)
        checkpoints.check_same(checkpoint.configuration, self.configuration)
        self.accelerator.wait_for_everyone()  # until all ranks have read it
        for line in said:
            self.progress.say(line)
            if self.is_main:
                checkpoints.promote(self.out)
        try:
            self._take(checkpoint)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise DamagedFileError(f"The checkpoint in {self.out} is not of this run ({reason}).") from error
        steps = self.training.steps
        finished = self.step == steps
        self.progress.say(
            f"The run in {self.out} is finished." if finished else f"Continuing after step {self.step} of {steps}."
        )
        return self.step

    def _take(self, checkpoint: Checkpoint) -> None:
        tensors = checkpoint.tensors
        self.model.load_state_dict(checkpoints.with_prefix(tensors, "model"))
        self.average.load(checkpoints.with_prefix(tensors, "average"))
        if self.best is not None:
            self.best.load(checkpoints.with_prefix(tensors, "best"))
        checkpoints.load_optimizer(self.optimizer, tensors)
        self.window.load(checkpoints.with_prefix(tensors, "window"), checkpoint.step)
        if checkpoint.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        checkpoints.set_random_state(checkpoint.random[self.accelerator.process_index], self.accelerator.device)
        self.step = self.saved_step = checkpoint.step
        self.stopwatch.seconds = checkpoint.seconds
        self.logged = (self.step, checkpoint.seconds)

    def _loop(self, interrupts: Interrupts) -> None:
        steps, forwards = self.training.steps, self.training.gradient_accumulation
        prefetched = self.loader.iterate(self.step * forwards, steps * forwards)
        with closing(cast("Generator[Batch]", prefetched)) as batches:
            self.stopwatch.start()
            while self.step < steps:
                self._step(batches)
                self._look()
                if self._is_asked_to_stop(interrupts):
                    with self.stopwatch.paused():
                        self._save()
                    raise Interrupted(self.step, steps, self.out)

    def _step(self, batches: Iterator[Batch]) -> None:
        self.task.before_step(self.step / self.training.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate_at(self.step)
        self.window.add(self._gradient(batches))
        if self.accelerator.device.type == "cpu" and self.accelerator.num_processes == 1:
            self.window.check_last()  # free at this point; elsewhere it waits for the log or the checkpoint
        self.stepper.step()
        self.stepper.zero_grad()
        self.task.after_step()
        self.step += 1
        self.average.update(self.step)

    def _gradient(self, batches: Iterator[Batch]) -> StepMetrics:
        """Runs forward and backward passes of one step."""
        forwards = self.training.gradient_accumulation
        values: dict[str, torch.Tensor] = {}
        codes = []
        for index in range(forwards):
            batch = next(batches)
            inputs = self.task.inputs(batch, self._to_device)
            last = index == forwards - 1
            with nullcontext() if last else self.accelerator.no_sync(self.prepared):
                outcome = self.task.outcome(self.compute(*inputs), batch)
                self.accelerator.backward(outcome.loss)
            for name, value in {"loss": outcome.loss.detach(), **outcome.terms}.items():
                values[name] = values.get(name, 0) + value / forwards
            codes += [] if outcome.codes is None else [outcome.codes]
        values[GRADIENT] = self._clip()
        return StepMetrics(values, tuple(codes))

    def _clip(self) -> torch.Tensor:
        """Clips the gradient; returns its norm before that."""
        self.accelerator.unscale_gradients()
        norms = []
        for parameters in self.clipped:
            if self.training.gradient_clip is not None:
                norms.append(nn.utils.clip_grad_norm_(parameters, self.training.gradient_clip))
            else:
                norms.append(nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None]))
        return norms[0] if len(norms) == 1 else torch.stack([norm.to(norms[0]) for norm in norms]).norm()

    def _to_device(self, items: torch.Tensor) -> torch.Tensor:
        device = self.accelerator.device
        if device.type == "cuda":
            return items.pin_memory().to(device, non_blocking=True)
        return items.to(device)

    def _look(self) -> None:
        """Logs, evaluates and writes a checkpoint if due after this step."""
        training, last = self.training, self.step == self.training.steps
        if last or self.step % training.log_every == 0:
            self._log()
        self.progress.advance(self.step)
        if last or (training.evaluate_every and self.step % training.evaluate_every == 0):
            with self.stopwatch.paused():
                self._evaluate()
        if last or (training.checkpoint_every and self.step % training.checkpoint_every == 0):
            with self.stopwatch.paused():
                self._save()

    def _log(self) -> None:
        self.window.check()
        metrics = self.task.averaged(self.window.take())
        seconds, (step, before) = self.stopwatch.read(), self.logged
        metrics["learning_rate"] = self.training.learning_rate_at(self.step - 1)
        metrics["items_per_second"] = (self.step - step) * self._items_per_step / max(seconds - before, 1e-9)
        metrics["seconds"] = seconds
        self.logged = (self.step, seconds)
        if self.journal is not None:
            self.journal.write("train", self.step, metrics)
        self.progress.show(metrics)
        if (advice := self.task.advice(metrics)) and advice != self.advised:
            self.advised = advice
            self.progress.say(f"step {self.step}: {advice}")

    def _evaluate(self) -> None:
        if self.measure is None:
            return
        self.average.write_to(self.averaged, self.model)
        metrics = self.measure(self.averaged)
        if self.best is not None and (score := self.task.score(metrics)) is not None:
            self.best.offer(score, self.averaged)
        if self.journal is not None:
            self.journal.write("evaluation", self.step, {**metrics, "seconds": self.stopwatch.seconds})
        self.progress.report(self.step, self.task.sample, metrics)

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        self.window.check()
        self._check_weights()
        checkpoint = self._checkpoint()
        if self.journal is not None:
            self.journal.sync()
            checkpoints.write_checkpoint(self.out, checkpoint)
        self.accelerator.wait_for_everyone()
        self.saved_step = self.step

    def _checkpoint(self) -> Checkpoint:
        tensors = checkpoints.model_tensors(self.model) | checkpoints.optimizer_tensors(self.optimizer)
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors().items()}
        if self.best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.tensors().items()}
        tensors |= {f"window.{name}": tensor for name, tensor in self.window.tensors().items()}
        states = gather_object([checkpoints.random_state(self.accelerator.device)])
        scaler = None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
        return Checkpoint(self.step, self.stopwatch.seconds, self.configuration, tensors, states, scaler)

    def _check_weights(self) -> None:
        """Raises if a weight is not finite: such a checkpoint would replace a usable one."""
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise NonFiniteLossError(self.step, (name,))

    def _finish(self, first_step: int) -> TrainingResult[Model]:
        self.average.write_to(self.averaged, self.model)
        if self.best is not None:
            if self.best.state:
                self.averaged.load_state_dict(self.best.state)
            for tensor in self.averaged.state_dict().values():  # only the first rank has evaluated on held-out data
                broadcast(tensor)
        batches = range(CALIBRATION_STEPS * self.training.gradient_accumulation)
        self.task.finish(self.averaged, map(self.loader.batch, batches), self._to_device)
        if self.is_main:
            self._save_model()
        self.accelerator.wait_for_everyone()
        steps, seconds = self.training.steps, self.stopwatch.seconds
        speed = steps * self._items_per_step / max(seconds, 1e-9)
        warnings = symptoms(read_log(self.out)) if self.is_main else ()
        for warning in warnings:
            self.progress.say(f"Warning: {warning}")
        return TrainingResult(self.averaged, steps, seconds, speed, first_step, warnings)

    def _save_model(self) -> None:
        remedy = "The checkpoint of its last step is valid: make room there and finish with --resume."
        with naming("The model", remedy):
            self.task.save(self.averaged, self.out)

    @property
    def _items_per_step(self) -> int:
        return self.training.batch_size * self.training.gradient_accumulation * self.accelerator.num_processes

    def _is_asked_to_stop(self, interrupts: Interrupts) -> bool:
        if self.accelerator.num_processes == 1:
            return interrupts.requested
        if self.step % self.training.log_every:  # ranks must stop at the same step, and agreeing takes communication
            return False
        asked = torch.tensor(float(interrupts.requested), device=self.accelerator.device)
        total = self.accelerator.reduce(asked, "sum")
        assert isinstance(total, torch.Tensor)
        return bool(total > 0)

    def _remedy(self) -> str:
        training = self.training
        remedy = f"Normally all are finite. Lower 'learning_rate' (it is {training.learning_rate:g}) or "
        clip = training.gradient_clip
        remedy += "set 'gradient_clip' to 1.0." if clip is None else f"'gradient_clip' (it is {clip:g})."
        if not self.saved_step:
            return f"There is no checkpoint yet. {remedy}"
        return f"The checkpoint of step {self.saved_step} in {self.out} is still valid. {remedy}"

"""How long, how fast and how carefully to train: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from gmvq.checks import at_least, device, fraction, non_negative, one_of, positive

Precision = Literal["no", "bf16", "fp16"]

_COUNTS = {
    "steps": 1,
    "batch_size": 1,
    "warmup_steps": 0,
    "gradient_accumulation": 1,
    "seed": 0,
    "evaluate_every": 0,
    "checkpoint_every": 0,
    "log_every": 1,
    "threads": 1,
}
"""Least value of each integer."""


@dataclass(frozen=True)
class Training:
    """How to train a model.

    Args:
        steps: Optimizer steps.
        batch_size: Items of one forward on each device; a step sees ``gradient_accumulation`` times as many.
        learning_rate: Of Adam, at its highest.
        warmup_steps: Steps in which the learning rate rises to its highest.
        final_learning_rate_fraction: Where half a cosine takes it in the end, as a fraction of the highest.
        weight_decay: Of AdamW, for the weights of layers; biases, normalizations and codes do not decay.
        betas: Decays of Adam's moments.
        gradient_clip: Largest norm of the gradient, longer ones are shortened to it; None for any.
        gradient_accumulation: Forwards whose gradients make one step.
        averaging_decay: Share of the past in the averaged weights, which are what a run saves; 0 saves the last ones.
        precision: ``no`` for float32, or automatic mixed precision in ``bf16`` or ``fp16``.
        seed: Of crops, order and noise.
        evaluate_every: Steps between evaluations on held-out items; 0 for none but the last.
        checkpoint_every: Steps between checkpoints; 0 for none but the last.
        log_every: Steps between lines of the log.
        tensorboard: Write the log for TensorBoard too, in the folder ``tensorboard`` of the run.
        threads: Threads of the CPU; None leaves them as they are.
        compile: Translate the model by ``torch.compile`` first, which takes a minute and needs a C++ compiler on the
            CPU, Triton on a GPU. The results are those without it up to rounding.
        keep_best: Save the averaged weights that were best at an evaluation, and not the last ones.
        device: ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``mps``; None for the fastest that is here.

    Raises:
        ValueError: If a field is out of range, or the device is not here.
    """

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    final_learning_rate_fraction: float = 0.02
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    gradient_clip: float | None = None
    gradient_accumulation: int = 1
    averaging_decay: float = 0.99
    precision: Precision = "no"
    seed: int = 0
    evaluate_every: int = 250
    checkpoint_every: int = 500
    log_every: int = 20
    tensorboard: bool = False
    threads: int | None = None
    compile: bool = False
    keep_best: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        for name, least in _COUNTS.items():
            if name != "threads" or self.threads is not None:
                at_least(name, getattr(self, name), least, "See Training.")
        positive("learning_rate", self.learning_rate, "See Training.")
        if self.gradient_clip is not None:
            positive("gradient_clip", self.gradient_clip, "Use None for no clipping.")
        non_negative("weight_decay", self.weight_decay, "Use 0.0.")
        fraction("final_learning_rate_fraction", self.final_learning_rate_fraction, "Use 0.02.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"'betas' must be two numbers in [0, 1), got {self.betas}. Use (0.9, 0.99).")
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON gives a list
        if not 0 <= self.averaging_decay < 1:
            raise ValueError(
                f"'averaging_decay' must lie in [0, 1), got {self.averaging_decay}. Use 0.99, or 0 for none."
            )
        one_of("precision", self.precision, get_args(Precision))
        if self.device is not None:
            device("device", self.device)

    def described(self) -> dict[str, Any]:
        """The training as JSON has it, without the device: a record is read on other machines, too."""
        return {name: value for name, value in asdict(self).items() if name != "device"}

    def learning_rate_at(self, step: int) -> float:
        r"""Learning rate of a step, counted from 0: linear warm-up to :math:`\eta`, then half a cosine.

        .. math:: \eta_t = \eta \, (\phi + (1 - \phi) (1 + \cos \pi t) / 2)

        with t the progress after the warm-up and :math:`\phi` the final fraction.

        Example:
            >>> training = Training(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate_fraction=0.0)
            >>> training.learning_rate_at(0), training.learning_rate_at(9), training.learning_rate_at(55)
            (0.1, 1.0, 0.5)
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        t = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        phi = self.final_learning_rate_fraction
        return self.learning_rate * (phi + (1 - phi) * (1 + math.cos(math.pi * t)) / 2)

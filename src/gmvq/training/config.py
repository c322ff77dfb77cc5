"""Settings of training: one frozen dataclass, validated when it is created."""

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
"""Smallest allowed value of each integer."""


@dataclass(frozen=True)
class Training:
    """Settings of a training run.

    Args:
        steps: Number of optimizer steps.
        batch_size: Items per forward pass on each device; a step uses ``gradient_accumulation`` times this number.
        learning_rate: Peak learning rate of Adam.
        warmup_steps: Steps in which the learning rate rises to its peak.
        final_learning_rate_fraction: Final learning rate of the cosine decay, as a fraction of the peak.
        weight_decay: Weight decay of AdamW for layer weights; biases, normalizations and codes do not decay.
        betas: Decay rates of Adam's moments.
        gradient_clip: Largest gradient norm, to which longer gradients are scaled; None for no clipping.
        gradient_accumulation: Forward passes per optimizer step.
        averaging_decay: Decay of the averaged weights, which a run saves; 0 saves the last weights.
        precision: ``no`` for float32, or automatic mixed precision in ``bf16`` or ``fp16``.
        seed: Seed of crops, order and noise.
        evaluate_every: Steps between evaluations on held-out items; 0 for only one at the end.
        checkpoint_every: Steps between checkpoints; 0 for only one at the end.
        log_every: Steps between lines of the log.
        tensorboard: Also write the log for TensorBoard, in the folder ``tensorboard`` of the run.
        threads: CPU threads; None keeps the current number.
        compile: Compile the model with ``torch.compile`` first, which takes a minute and needs a C++ compiler on the
            CPU, Triton on a GPU. The results are equal up to rounding.
        keep_best: Save the averaged weights of the best evaluation instead of the last ones.
        device: ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``mps``; None for the fastest available one.

    Raises:
        ValueError: If a field is out of range, or the device is not available.
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
        """Returns the settings as JSON types, without the device: a run may be continued on other machines."""
        return {name: value for name, value in asdict(self).items() if name != "device"}

    def learning_rate_at(self, step: int) -> float:
        r"""Returns the learning rate of a step, counted from 0: linear warm-up to :math:`\eta`, then half a cosine.

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

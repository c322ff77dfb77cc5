"""Setup of a run before its first step."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from gmvq.training.config import Training
from gmvq.training.ranks import join_ranks, launched

CHANGEABLE = ("checkpoint_every", "device", "tensorboard", "threads")
"""Fields of Training that a resumed run may change: the results do not depend on them."""


_DEVICE = "ACCELERATE_TORCH_DEVICE"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""


class Stopwatch:
    """Measures training time; on a GPU it waits for queued work."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device
        self._since: float | None = None

    def start(self) -> None:
        """Starts or continues."""
        self._since = time.perf_counter()

    def read(self) -> float:
        """Returns the seconds so far."""
        if self._since is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            now = time.perf_counter()
            self.seconds += now - self._since
            self._since = now
        return self.seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager whose duration is not counted."""
        self.read()
        self._since = None
        yield
        self.start()


def make_accelerator(training: Training, *, idle_parameters: bool = False) -> Accelerator:
    """Creates the accelerator: devices, precision and processes of a run.

    Args:
        training: Settings of training.
        idle_parameters: True if some parameters are unused in some steps, which several processes must detect.

    Raises:
        ValueError: If the device does not support the precision, or several processes would share one GPU.
    """
    several = launched() > 1
    if several and ":" in (training.device or ""):
        raise ValueError(
            f"'device' must be 'cpu' or 'cuda' for several processes, got {training.device!r}. Each takes one of the "
            "GPUs: choose them by CUDA_VISIBLE_DEVICES."
        )
    join_ranks(training.device)
    # accelerate keeps one precision and one device per process; a second run in it may need others
    if AcceleratorState._shared_state:
        AcceleratorState._reset_state(reset_partial_state=not several)
    with _preferred(None if several else training.device):
        accelerator = Accelerator(
            cpu=training.device == "cpu" or (several and not torch.accelerator.is_available()),
            mixed_precision=training.precision,
            gradient_accumulation_steps=training.gradient_accumulation,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=idle_parameters)],
        )
    if accelerator.device.type == "cuda" and accelerator.device.index is not None:
        torch.cuda.set_device(accelerator.device)  # for kernels, which run on the current device
    if training.precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would silently use float32
        raise ValueError("'precision' must be 'no' or 'bf16' on a CPU, got 'fp16'. Use 'bf16'.")
    return accelerator


@contextmanager
def _preferred(device: str | None) -> Iterator[None]:
    """Context manager in which accelerate uses this device; its constructor has no argument for it."""
    former = os.environ.get(_DEVICE)
    if device is not None:
        os.environ[_DEVICE] = device
    try:
        yield
    finally:
        os.environ.pop(_DEVICE, None)
        if former is not None:
            os.environ[_DEVICE] = former


def make_optimizer(
    model: nn.Module, layers: Iterable[nn.Module], training: Training, device: torch.device
) -> torch.optim.Optimizer:
    """Creates Adam, or AdamW if there is weight decay.

    Args:
        model: Model with all learned parameters.
        layers: Parts of the model whose weights decay; their biases and scales do not, and codes should stay near the
            latents.
        training: Learning rate, weight decay and moments.
        device: Device of the model.
    """
    decaying = {id(p) for part in layers for p in part.parameters() if p.ndim >= 2}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in decaying], "weight_decay": training.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in decaying], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if training.weight_decay > 0 else torch.optim.Adam
    # fused: one kernel for all parameters, less than half of the time also on a CPU
    return kind(groups, lr=training.learning_rate, betas=training.betas, fused=device.type in ("cpu", "cuda"))


def describe_run(description: Mapping[str, Any], training: Training, ranks: int) -> dict[str, Any]:
    """Returns everything that a step depends on as JSON types: a resumed run must agree in all of it.

    Args:
        description: The task's description of its model and data.
        training: Settings of training.
        ranks: Number of processes.
    """
    fields = {name: value for name, value in asdict(training).items() if name not in CHANGEABLE}
    return {**description, "training": fields, "processes": ranks}


def seed_everything(seed: int, rank: int) -> None:
    """Seeds all random number generators; each rank gets different noise."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed + rank)


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors for the next step.

    By default it returns large blocks to the system and gets them back page by page: a fifth of a step's time on a
    CPU. Other C libraries are not changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    allocator = ctypes.CDLL(None)
    allocator.mallopt(_MMAP_THRESHOLD, 1 << 30)
    allocator.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Context manager that sets the number of CPU threads and restores it."""
    former = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(former)

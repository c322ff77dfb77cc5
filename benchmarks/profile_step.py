"""Profiles a training step of the CIFAR-10 recipe, with its own network, batch size and loader.

GM-VQ with its defaults, VQ-VAE with moving averages, and the same network around vector-quantize-pytorch's
VectorQuantize with the settings of the latter take turns of some steps; values are medians over rounds. A part's time
is that of its forward and its backward pass: the backward pass is run part by part, with equal results. The
quantizer's includes its statistics, the optimizer's the averaged weights. Images per second are those of whole steps,
without this division.

    python benchmarks/profile_step.py --data ../shared/data/cifar10 --out benchmarks/results/profile.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gmvq import recipes
from gmvq.data import Loader
from gmvq.data.writing import write_json
from gmvq.modalities import Data
from gmvq.models import Autoencoder
from gmvq.quantizers import AbstractBottleneck
from gmvq.stages import Run, fitted, load_data
from gmvq.training.averaging import WeightAverage
from gmvq.training.preparation import cpu_threads, keep_freed_memory, make_optimizer
from gmvq.training.provenance import commit, hardware, versions
from gmvq.types import Quantized

PARTS = ("loader", "encoder", "quantizer", "decoder", "optimizer")
PEER = "vector-quantize-pytorch"
SUBJECTS = ("gaussian-mixture", "vector-ema", PEER)
WARM_UP_STEPS = 5


class Peer(nn.Module):
    """vector-quantize-pytorch's VectorQuantize as the bottleneck of an autoencoder."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.codebook_size = codebook_size
        self.quantizer = VectorQuantize(
            dim=dim, codebook_size=codebook_size, decay=0.99, commitment_weight=0.25, kmeans_init=True,
            threshold_ema_dead_code=1, rotation_trick=False,
        )  # fmt: skip

    def forward(self, latents: Tensor, lengths: Tensor | None = None) -> Quantized:
        """Quantizes latents ``(B, h, w, dim)`` as sequences; images have no lengths."""
        values, codes, loss = self.quantizer(latents.flatten(1, -2))
        return Quantized(values.reshape(latents.shape), codes.reshape(latents.shape[:-1]), loss.sum(), {})

    def loss_weight(self, squared_error_weight: Tensor, tokens_per_dimension: float) -> Tensor:
        """Returns the weight of a squared error."""
        return squared_error_weight

    def update(self) -> None:
        """Does nothing: the layer updates itself."""

    def set_progress(self, progress: float) -> None:
        """Does nothing: it has no schedules."""


def subject(name: str, recipe: Run, data: Data) -> Subject:
    """Creates the model of a recipe with one of the quantizers or the other library's."""
    quantizer = "vector-ema" if name == PEER else name
    made = Subject(replace(recipe, model=replace(recipe.model, quantizer=cast("Any", quantizer))), data)
    if name == PEER:
        made.put(cast("AbstractBottleneck", Peer(recipe.model.code_dim, recipe.model.codebook_size)))
    return made


class Subject:
    """A model in training as by :func:`gmvq.training.train`, one step at a time."""

    def __init__(self, recipe: Run, data: Data) -> None:
        torch.manual_seed(0)
        self.training = recipe.training
        self.model = Autoencoder(recipe.model).train()
        self.model.to(memory_format=torch.channels_last)  # as in training
        self.put(self.model.bottleneck)
        self.loader = Loader(
            data.train, self.training.batch_size, window=data.modality.window, size=recipe.data.size,
            mirror=recipe.data.mirror,
        )  # fmt: skip
        self.batches: Iterator[Any] = self.loader.iterate()
        self.steps = 0

    def put(self, bottleneck: AbstractBottleneck) -> None:
        """Sets the bottleneck, and starts training from the beginning."""
        self.model.bottleneck = bottleneck
        bottleneck.updates_itself = False  # as in training: once, after the optimizer's step
        layers = self.model.encoder, self.model.decoder
        self.optimizer = make_optimizer(self.model, layers, self.training, torch.device("cpu"))
        self.average = WeightAverage(self.model, self.training.averaging_decay)

    def step(self) -> None:
        """Runs one whole step."""
        self.model(self._items()).loss.backward()
        self._learn()

    def step_by_parts(self) -> dict[str, float]:
        """Runs the same step, and returns the seconds of each part."""
        clock = Clock()
        model, items = self.model, self._items()
        clock.add("loader")
        images = model.prepared(items)
        latents = model.latents_of(images)
        clock.add("encoder")
        leaves = latents.detach().requires_grad_()
        quantized = model.bottleneck(leaves)
        clock.add("quantizer")
        values = quantized.values.detach().requires_grad_()
        parameters = model.decode_values(values, (images.shape[-2], images.shape[-1]))
        reconstruction = model.likelihood(parameters, images)
        error = (model.likelihood.mean(parameters).detach() - images).square().mean()
        tokens_per_dimension = values[..., 0].numel() / images.numel()
        weight = model.bottleneck.loss_weight(model.likelihood.squared_error_weight(error), tokens_per_dimension)
        reconstruction.backward()
        clock.add("decoder")
        torch.autograd.backward((quantized.values, weight * quantized.loss), (values.grad, torch.ones(())))
        clock.add("quantizer")
        latents.backward(leaves.grad)
        clock.add("encoder")
        self._learn(clock.add)
        return clock.seconds

    def _items(self) -> Tensor:
        self.model.bottleneck.set_progress(min(1.0, self.steps / self.training.steps))
        return next(self.batches).items

    def _learn(self, done: Callable[[str], None] = lambda part: None) -> None:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if not bool(nn.utils.get_total_norm(gradients).isfinite()):
            raise ArithmeticError("The gradient is not finite.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        done("optimizer")
        self.model.bottleneck.update()
        done("quantizer")
        self.steps += 1
        self.average.update(self.steps)
        done("optimizer")


class Clock:
    """Seconds by part, each from the end of the previous part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.last = time.perf_counter()

    def add(self, part: str) -> None:
        """Ends a part."""
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now


def measure(subjects: dict[str, Subject], rounds: int, steps: int) -> dict[str, Any]:
    """Runs subjects in turns; returns each one's images per second in each round, and its parts' shares of a step."""
    speeds: dict[str, list[float]] = {name: [] for name in subjects}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
    names = list(subjects)
    for name in names:
        for _ in range(WARM_UP_STEPS):
            subjects[name].step()
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            subject = subjects[name]
            start = time.perf_counter()
            for _ in range(steps):
                subject.step()
            speeds[name].append(steps * subject.training.batch_size / (time.perf_counter() - start))
            timed = [subject.step_by_parts() for _ in range(steps)]
            parts[name].append({part: statistics.fmean(step[part] for step in timed) for part in PARTS})
        print({name: round(values[-1]) for name, values in speeds.items()}, "images a second")
    return {name: _metrics(speeds[name], parts[name]) for name in names}


def batch_milliseconds(loader: Loader) -> float:
    """Returns the time to create a batch, alone."""
    times = []
    for step in range(20):
        start = time.perf_counter()
        loader.batch(step)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _metrics(speeds: list[float], parts: list[dict[str, float]]) -> dict[str, Any]:
    totals = [sum(seconds.values()) for seconds in parts]
    shares = {part: statistics.median(seconds[part] / total for seconds, total in zip(parts, totals, strict=True))
              for part in PARTS}  # fmt: skip
    milliseconds = {part: 1000 * statistics.median(seconds[part] for seconds in parts) for part in PARTS}
    return {
        "items_per_second": statistics.median(speeds),
        "rounds": speeds,
        "step_milliseconds": 1000 * statistics.median(totals),
        "milliseconds": milliseconds,
        "shares": shares,
    }


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the files of CIFAR-10")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn, whole, and again by parts")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--out", type=Path, default=Path("runs/profile.json"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as in training
    recipe = recipes.cifar10(arguments.data)
    data = load_data(recipe.data)
    recipe = fitted(recipe, data)
    with cpu_threads(arguments.threads):
        subjects = {name: subject(name, recipe, data) for name in arguments.subjects}
        found = measure(subjects, arguments.rounds, arguments.steps)
        where = {"versions": versions(), "hardware": hardware(), "commit": commit()}
    ratios = {
        name: statistics.median(
            ours / theirs for ours, theirs in zip(metrics["rounds"], found[PEER]["rounds"], strict=True)
        )
        for name, metrics in found.items()
        if PEER in found
    }
    protocol = " ".join((__doc__ or "").split("\n\n")[1].split())
    size = {"batch_size": recipe.training.batch_size, "codebook_size": recipe.model.codebook_size,
            "rounds": arguments.rounds, "steps": arguments.steps,
            "batch_milliseconds": batch_milliseconds(next(iter(subjects.values())).loader)}  # fmt: skip
    write_json(arguments.out, {"protocol": protocol, **size, **where, "subjects": found, "ratio": ratios})
    for name, metrics in found.items():
        shares = {part: f"{share:.1%}" for part, share in metrics["shares"].items()}
        print(name, round(metrics["items_per_second"]), "images a second,", shares)
    print("over the peer:", {name: round(value, 3) for name, value in ratios.items()})


if __name__ == "__main__":
    main()

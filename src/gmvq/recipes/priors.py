"""From a tokenizer's run to a prior over its codes: images are tokenized once, the prior learns from the codes.

::

    RUN --load--> tokenizer, images --tokenize--> OUT/tokens/*.safetensors --learn--> OUT/{model.safetensors,
                                                                                           metrics.json, log.jsonl}
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from gmvq import hub
from gmvq.data import ArrayImages, Data, Images, fingerprint
from gmvq.models import Autoencoder
from gmvq.priors import AbstractPrior, CodeShape, Frequencies, NGram, PriorName, make_prior
from gmvq.recipes.catalogue import load_data
from gmvq.recipes.running import METRICS, RECORD, read_json, read_run
from gmvq.tokenization import TokenFile, tokenize
from gmvq.training import Training, provenance
from gmvq.training.tasks import PriorTask
from gmvq.training.trainer import learn
from gmvq.types import CodeBatch

FORMAT = "gmvq.prior-run"
VERSION = 1
FOLDER = "prior"
"""Where the prior of a run is, by default, in the run's folder."""
TOKENS = "tokens"
MEASURED = 2000
"""Held-out images that a prior is measured on."""

_TRAINING = Training(
    steps=3000,
    batch_size=64,
    learning_rate=1e-3,
    warmup_steps=100,
    weight_decay=0.05,
    betas=(0.9, 0.95),
    gradient_clip=1.0,
    averaging_decay=0.995,
    keep_best=True,
    evaluate_every=250,
    checkpoint_every=500,
    log_every=50,
)


@dataclass(frozen=True)
class PriorRun:
    """A prior and how it is learned.

    Args:
        prior: What it is.
        options: Fields of its configuration, beside their defaults.
        training: How it is trained; one that counts is not.
        classes: Learn classes, where the data have labels.
    """

    prior: PriorName = "autoregressive"
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Training = _TRAINING
    classes: bool = True


def fit_prior(
    folder: str | Path,
    recipe: PriorRun | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    data: Data | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fits a prior to the codes of a tokenizer and measures it on held-out images.

    Images are those that the tokenizer learned from. Where they differ in size, or the tokenizer saw crops, they are
    cut into tiles of the size of the crops.

    Args:
        folder: The tokenizer's run.
        recipe: What to fit; an autoregressive prior by default.
        out: Where to; the folder ``prior`` of the run by default. A prior that is there is replaced.
        resume: Go on from the folder's checkpoint.
        data: The data, if they are loaded already.
        command: What was typed, for the record.
        console: Where progress goes; by default standard error.

    Returns:
        What ``metrics.json`` holds: ``bits_per_code`` of held-out codes, ``frequencies_bits_per_code`` and
        ``n_gram_bits_per_code`` of priors that count, and ``bits_per_dim``: of the codes and of the image given them,
        at least the negative log-likelihood of the image.

    Raises:
        FileNotFoundError: If there is no run, or nothing to resume.
        ValueError: If the tokenizer has not one code for each place, or an option is out of range.
        OSError: If data cannot be read or the folder cannot be written.
    """
    folder, recipe = Path(folder), PriorRun() if recipe is None else recipe
    out = folder / FOLDER if out is None else Path(out)
    console = Console(file=sys.stderr) if console is None else console
    tokenizer, run = hub.load(folder), read_run(folder)
    data = load_data(run.data) if data is None else data
    side = run.data.crop
    train, held_out = _tiled(data.train, side, tokenizer), _tiled(data.held_out, side, tokenizer)
    classes = _classes(train, held_out) if recipe.classes else 0
    console.print("Tokenizing ...", highlight=False)
    codes = _codes(tokenizer, train, out / TOKENS / "train.safetensors", bool(classes))
    rest = _codes(tokenizer, held_out, out / TOKENS / "held_out.safetensors", bool(classes))
    shape = CodeShape(tuple(codes.codes.shape[1:]), (_size(tokenizer),), classes)
    mark = hub.fingerprint(tokenizer)
    record = _record(recipe, mark, data, command)
    hub.write_json(out / RECORD, record)
    torch.manual_seed(recipe.training.seed)
    prior, seconds = make_prior(recipe.prior, shape, recipe.options), 0.0
    if isinstance(prior, (Frequencies, NGram)):
        prior.fit(codes.codes.split(1024))
        hub.save_prior(prior, mark, out)
    else:
        about = {"images": len(train), "fingerprint": fingerprint(data)[:16]}
        task = PriorTask(prior, codes, rest, mark, about)
        learned = learn(task, recipe.training, out, resume=resume, console=console)
        prior, seconds = learned.model, learned.seconds
    console.print("Measuring on held-out images ...", highlight=False)
    metrics = {**_measured(prior.eval(), tokenizer, codes, rest, held_out), "seconds": seconds}
    hub.write_json(out / METRICS, metrics)
    hub.write_json(out / RECORD, {**record, "finished": _now()})
    return metrics


def _measured(
    prior: AbstractPrior, tokenizer: Autoencoder, codes: CodeBatch, rest: CodeBatch, held_out: Images
) -> dict[str, Any]:
    """Bits of held-out codes, beside those of priors that count, and of the images."""
    counted: dict[str, AbstractPrior] = {}
    for name, other in (("frequencies", Frequencies(prior.shape)), ("n_gram", NGram(prior.shape))):
        other.fit(codes.codes.split(1024))
        counted[f"{name}_bits_per_code"] = other
    number = min(MEASURED, len(rest.codes))
    some = CodeBatch(*(None if part is None else part[:number] for part in rest))  # pyright: ignore[reportArgumentType]
    bits = {"bits_per_code": _bits(prior, some), **{name: _bits(one, some) for name, one in counted.items()}}
    if some.labels is not None:
        bits["unconditional_bits_per_code"] = _bits(prior, some._replace(labels=None))
    nats, dimensions = _decoding_nats(tokenizer, held_out, some.codes)
    total = bits["bits_per_code"] * prior.shape.length * number + nats / math.log(2)
    return {**bits, "bits_per_dim": total / dimensions, "images": number}


@torch.no_grad()
def _bits(prior: AbstractPrior, batch: CodeBatch) -> float:
    total = 0.0
    for start in range(0, len(batch.codes), 64):
        part = slice(start, start + 64)
        labels = None if batch.labels is None else batch.labels[part].to(prior.device)
        nats = prior.quick_log_prob(batch.codes[part].to(prior.device), labels)
        total -= float(nats.sum(dtype=torch.float64))
    return total / (len(batch.codes) * prior.shape.length * math.log(2))


@torch.no_grad()
def _decoding_nats(tokenizer: Autoencoder, images: Images, codes: Tensor) -> tuple[float, int]:
    """Negative log-likelihood of images given their codes in nats, and how many dimensions they have."""
    total, dimensions = 0.0, 0
    for start in range(0, len(codes), 64):
        some = range(start, min(start + 64, len(codes)))
        batch = torch.stack([images[index] for index in some]).float() / 255
        values = tokenizer.bottleneck.decode(codes[some.start : some.stop].long())
        parameters = tokenizer.decode_values(values, (batch.shape[2], batch.shape[3]))
        total -= float(tokenizer.likelihood.log_prob(parameters, batch).sum(dtype=torch.float64))
        dimensions += batch.numel()
    return total, dimensions


def _codes(tokenizer: Autoencoder, images: Images, path: Path, labelled: bool) -> CodeBatch:
    """The codes of images, out of the file if it has them."""
    if not _has(path, tokenizer, images):
        tokenize(tokenizer, images, path)
    tokens = TokenFile(path)
    codes = torch.stack([tokens[index] for index in range(len(tokens))])
    return CodeBatch(codes, images.labels if labelled else None)


def _has(path: Path, tokenizer: Autoencoder, images: Images) -> bool:
    """True if a file has the codes of these images by this tokenizer."""
    try:
        info = TokenFile(path).info
    except (FileNotFoundError, ValueError):
        return False
    return info.tokenizer == hub.fingerprint(tokenizer) and list(info.names) == list(images.names)


def _tiled(images: Images, side: int | None, tokenizer: Autoencoder) -> Images:
    """Images of one size: as they are, or cut into tiles of whole tokens."""
    sizes = set(images.sizes)
    if side is None and len(sizes) == 1 and not any(length % tokenizer.downsampling for length in next(iter(sizes))):
        return images
    if side is None:
        side = min(min(size) for size in sizes)
    side -= side % tokenizer.downsampling
    if side < 1:
        raise ValueError(
            f"The images must be at least {tokenizer.downsampling} pixels on a side, the side of a token. Leave small "
            "ones out."
        )
    tiles, names, labels = [], [], []
    for index, (name, (height, width)) in enumerate(zip(images.names, images.sizes, strict=True)):
        if min(height, width) < side:
            continue
        image = images[index]
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                tiles.append(image[:, top : top + side, left : left + side])
                names.append(f"{name}/{top}-{left}")
                labels.append(index)
    if not tiles:
        raise ValueError(f"No image has a side of {side} pixels, that of the tokenizer's crops. Give larger images.")
    taken = None if images.labels is None else images.labels[torch.tensor(labels)]
    return ArrayImages(torch.stack(tiles), taken, names)


def _classes(train: Images, held_out: Images) -> int:
    """Number of classes, 0 where the images have no labels."""
    if train.labels is None or held_out.labels is None or not len(train.labels):
        return 0
    return int(torch.cat([train.labels, held_out.labels]).max()) + 1


def _size(tokenizer: Autoencoder) -> int:
    assert tokenizer.codebook_size is not None
    return tokenizer.codebook_size


def _record(recipe: PriorRun, tokenizer: str, data: Data, command: str | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "run": asdict(recipe),
        "tokenizer": tokenizer,
        "command": command,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "commit": provenance.commit(),
        "started": _now(),
        "data": {"name": data.name, "fingerprint": fingerprint(data)},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_prior_metrics(folder: str | Path) -> dict[str, Any] | None:
    """What a prior's folder says it measured, None if nothing."""
    return read_json(Path(folder) / METRICS)

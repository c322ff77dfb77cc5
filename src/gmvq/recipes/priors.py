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
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from gmvq import hub
from gmvq.data import Data, Images, fingerprint
from gmvq.generation import Generator
from gmvq.models import Autoencoder
from gmvq.priors import AbstractPrior, CodeShape, Frequencies, LatentFlowPrior, NGram, PriorName, make_prior
from gmvq.quantizers import AbstractQuantizer, GaussianMixtureQuantizer
from gmvq.recipes.catalogue import load_data
from gmvq.recipes.layout import LOG, METRICS, RECORD, REPORT, is_main, read_json
from gmvq.recipes.running import check_part, circumstances, now, read_run
from gmvq.recipes.tiling import tiled
from gmvq.tokenization import TokenFile, tokenize
from gmvq.training import Training
from gmvq.training.checkpoint import set_aside
from gmvq.training.prior_report import write_prior_report
from gmvq.training.tasks import PriorTask
from gmvq.training.trainer import learn
from gmvq.types import CodeBatch

FORMAT = "gmvq.prior-run"
VERSION = 1
FOLDER = "prior"
"""Where the prior of a run is, by default, in the run's folder."""
TOKENS = "tokens"
SOURCE = "source.json"
MEASURED = 2000
"""Held-out images that a prior is measured on."""
CHOSEN_BY = 20
"""One training image of so many is not learned from: by these the weights are chosen that are kept."""

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

    @property
    def counts(self) -> bool:
        """True for a prior that has nothing to train."""
        return self.prior in ("n-gram", "frequencies")


def fit_prior(
    folder: str | Path,
    recipe: PriorRun | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    data: Data | None = None,
    command: str | None = None,
    report: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fits a prior to the codes of a tokenizer and measures it on held-out images.

    Images are those that the tokenizer learned from. Where they differ in size, or the tokenizer saw crops, they are
    cut into tiles of the size of the crops. One training image of twenty is kept from learning, to choose the weights
    by; held-out images are for the figures alone.

    Args:
        folder: The tokenizer's run.
        recipe: What to fit; an autoregressive prior by default.
        out: Where to; the folder ``prior`` of the run by default. A prior that is there is replaced.
        resume: Go on from the folder's checkpoint.
        data: The data, if they are loaded already.
        command: What was typed, for the record.
        report: Write ``report.html``: what it draws, beside real images.
        console: Where progress goes; by default standard error.

    Returns:
        What ``metrics.json`` holds: ``bits_per_code`` of held-out codes, at each of the ``levels`` of a token;
        ``frequencies_bits_per_code`` and ``n_gram_bits_per_code`` of priors that count; and ``bits_per_dim``, of the
        codes and of the image given them, at least the negative log-likelihood of the image; None for a prior without
        a likelihood. ``protocol`` says how.
        Ranks other than the first get nothing.

    Raises:
        FileNotFoundError: If there is no run, or nothing to resume.
        ValueError: If the tokenizer has not one code for each place, the folder holds something else, the checkpoint is
            of another prior, or an option is out of range.
        OSError: If data cannot be read or the folder cannot be written.
    """
    folder, recipe = Path(folder), PriorRun() if recipe is None else recipe
    out = folder / FOLDER if out is None else Path(out)
    console = Console(file=sys.stderr) if console is None else console
    check_part(out, hub.PRIOR_FORMAT, FORMAT, "prior")
    tokenizer, run = hub.load(folder), read_run(folder)
    data = load_data(run.data) if data is None else data
    tiles = tiled(data, run.data.crop, tokenizer)
    classes = _classes(tiles) if recipe.classes else 0
    codes = _codes(tokenizer, tiles, out / TOKENS, console)
    train, rest = (part if classes else part._replace(labels=None) for part in codes)
    sizes = (_size(tokenizer),)
    if recipe.prior != "latent-flow":  # which is among the vectors of whole codes
        sizes, train, rest = tokenizer.level_sizes, _by_level(tokenizer, train), _by_level(tokenizer, rest)
    shape = CodeShape(tuple(train.codes.shape[1:3]), sizes, classes)
    torch.manual_seed(recipe.training.seed)
    prior, seconds = make_prior(recipe.prior, shape, _options(recipe, tokenizer)), 0.0
    if isinstance(prior, LatentFlowPrior):
        prior.place(*_mixture(tokenizer), torch.bincount(train.codes.flatten(), minlength=_size(tokenizer)))
    record = {"format": FORMAT, "version": VERSION, "run": asdict(recipe), **circumstances(command)}
    if is_main() and not resume:  # a refused checkpoint leaves the folder as it was
        for name in (METRICS, REPORT):
            (out / name).unlink(missing_ok=True)
        if recipe.counts:  # it has no steps: those that are there are another's
            set_aside(out)
            (out / LOG).unlink(missing_ok=True)
        hub.write_json(out / RECORD, record)
    mark = hub.fingerprint(tokenizer)
    if isinstance(prior, (Frequencies, NGram)):
        if resume:
            raise ValueError("A prior that counts has nothing to resume. Leave --resume out.")
        prior.fit(train.codes.split(1024))
        hub.save_prior(prior, mark, out)
    else:
        learned_from, chosen_by = _divided(train)
        about = {"images": len(train.codes), "fingerprint": fingerprint(data)[:16]}
        task = PriorTask(prior, learned_from, chosen_by, mark, about)
        learned = learn(task, recipe.training, out, resume=resume, console=console)
        prior, seconds = learned.model, learned.seconds
    if not is_main():
        return {}
    console.print("Measuring on held-out images ...", highlight=False)
    metrics = {**_measured(prior.eval(), tokenizer, train, rest, tiles.held_out), "seconds": seconds}
    hub.write_json(out / METRICS, metrics)
    hub.write_json(out / RECORD, {**record, "finished": now()})
    if report:
        write_prior_report(out, Generator(tokenizer.to(prior.device), prior), tiles.train, tiles.held_out)
    return metrics


def _by_level(tokenizer: Autoencoder, batch: CodeBatch) -> CodeBatch:
    """Codes ``(N, h, w)`` as those that each stands for, ``(N, h, w, levels)`` where these are several."""
    return batch._replace(codes=tokenizer.levels_of(batch.codes)) if len(tokenizer.level_sizes) > 1 else batch


def _divided(train: CodeBatch) -> tuple[CodeBatch, CodeBatch]:
    """What to learn from, and every twentieth image to choose the weights by; all for both where they are few."""
    kept = torch.arange(len(train.codes)) % CHOSEN_BY == CHOSEN_BY - 1
    if not bool(kept.any()):
        return train, train

    def part(rows: Tensor) -> CodeBatch:
        return CodeBatch(train.codes[rows], None if train.labels is None else train.labels[rows])

    return part(~kept), part(kept)


def _measured(
    prior: AbstractPrior, tokenizer: Autoencoder, train: CodeBatch, rest: CodeBatch, held_out: Images
) -> dict[str, Any]:
    """Bits of held-out codes, beside those of priors that count, and of the images."""
    number = min(MEASURED, len(rest.codes))
    codes, labels = rest.codes[:number], None if rest.labels is None else rest.labels[:number]
    found: dict[str, Any] = {"bits_per_code": prior.bits_per_code(codes, labels) if prior.has_likelihood else None}
    if labels is not None and prior.has_likelihood:
        found["unconditional_bits_per_code"] = prior.bits_per_code(codes)
    for name, other in (("frequencies", Frequencies(prior.shape)), ("n_gram", NGram(prior.shape))):
        other.fit(train.codes.split(1024))
        found[f"{name}_bits_per_code"] = other.bits_per_code(codes)
    found["bits_per_dim"] = None
    if found["bits_per_code"] is not None:
        whole = tokenizer.code_of(codes) if prior.shape.levels > 1 else codes
        nats, dimensions = _decoding_nats(tokenizer, held_out, whole)
        total = found["bits_per_code"] * prior.shape.length * number + nats / math.log(2)
        found["bits_per_dim"] = total / dimensions
    how = "exact"
    if not prior.has_likelihood:
        how = "the prior has no likelihood"
    elif type(prior).quick_log_prob is not AbstractPrior.quick_log_prob:
        how = "a bound over random orders, estimated"
    protocol = (
        f"Codes of the first {number:,} held-out images{', with their classes' if labels is not None else ''}; "
        f"{how}. Priors that count have seen all training "
        "codes. Bits per dimension are those of the codes and of the 8-bit image given them."
    )
    return {**found, "levels": prior.shape.levels, "images": number, "protocol": protocol}


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


def _codes(tokenizer: Autoencoder, tiles: Data, folder: Path, console: Console) -> tuple[CodeBatch, CodeBatch]:
    """The codes of both sides, out of the folder if it has those of these images by this tokenizer."""
    source = {"tokenizer": hub.fingerprint(tokenizer), "images": fingerprint(tiles)}
    files = {side: folder / f"{side}.safetensors" for side in ("train", "held_out")}
    codes = _stored(files) if read_json(folder / SOURCE) == source else None
    if codes is None:
        console.print("Tokenizing ...", highlight=False)
        for side, path in files.items():
            tokenize(tokenizer, getattr(tiles, side), path)
        hub.write_json(folder / SOURCE, source)
        codes = _stored(files)
        assert codes is not None
    return CodeBatch(codes["train"], tiles.train.labels), CodeBatch(codes["held_out"], tiles.held_out.labels)


def _stored(files: Mapping[str, Path]) -> dict[str, Tensor] | None:
    """Codes by side, None if a file is not there or damaged."""
    try:
        tokens = {side: TokenFile(path) for side, path in files.items()}
        return {side: torch.stack([file[i] for i in range(len(file))]) for side, file in tokens.items()}
    except (FileNotFoundError, ValueError):
        return None


def _options(recipe: PriorRun, tokenizer: Autoencoder) -> dict[str, Any]:
    """The prior's options; a flow of latents has as many features as the codebook."""
    own = {"codebook_dim": tokenizer.bottleneck.codebook_dim} if recipe.prior == "latent-flow" else {}
    return {**own, **recipe.options}


def _mixture(tokenizer: Autoencoder) -> tuple[Tensor, float]:
    """The codebook ``(K, L)``, and sigma of a mixture, 0 of others.

    Raises:
        ValueError: If a code is not the nearest one: other components may be more likely.
    """
    quantizer = tokenizer.bottleneck
    if not isinstance(quantizer, AbstractQuantizer) or not tokenizer.has_code_maps:
        raise ValueError("A flow of latents needs one codebook and a code for each place. Take another --prior.")
    codes = quantizer.code_vectors.detach()
    if not isinstance(quantizer, GaussianMixtureQuantizer):
        return codes, 0.0
    variances = quantizer.variance.value(codes)
    if quantizer.learned - {"codebook"} or bool((variances != variances.reshape(-1)[0]).any()):
        raise ValueError(
            "A flow of latents needs components of equal weight and variance, whose likeliest is the nearest one. Take "
            "another --prior."
        )
    return codes, float(variances.mean().sqrt())


def _classes(data: Data) -> int:
    """Number of classes, 0 where the images have no labels."""
    train, held_out = data.train.labels, data.held_out.labels
    return 0 if train is None or held_out is None else int(torch.cat([train, held_out]).max()) + 1


def _size(tokenizer: Autoencoder) -> int:
    """Number of codes.

    Raises:
        ValueError: If there are none.
    """
    if tokenizer.codebook_size is None:
        raise ValueError("'folder' must be of a tokenizer with codes, got a VAE. Train one with another --quantizer.")
    return tokenizer.codebook_size

"""A prior over a tokenizer's codes: items are tokenized once, and the prior is trained on the codes.

::

    RUN --load--> tokenizer, items --tokenize--> OUT/tokens/*.safetensors --learn--> OUT/{model.safetensors,
                                                                                          metrics.json, log.jsonl}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor, nn

from gmvq import hub
from gmvq.checks import one_of
from gmvq.data import Items
from gmvq.data.locking import locked
from gmvq.data.writing import write_json
from gmvq.generation import Generator
from gmvq.modalities import Data, fingerprint
from gmvq.models import Autoencoder
from gmvq.priors import PRIORS, AbstractPrior, CodeShape, Frequencies, LatentFlowPrior, NGram, make_prior
from gmvq.quantizers import AbstractQuantizer, GaussianMixtureQuantizer
from gmvq.reports.prior_page import write_prior_report
from gmvq.stages.data import data_of_run
from gmvq.stages.layout import LOG, read_json
from gmvq.stages.stage import Stage
from gmvq.stages.tiling import tiled
from gmvq.stages.tokenizer import read_run
from gmvq.tokenization import TokenFile, tokenize
from gmvq.training import Training
from gmvq.training.checkpoint import set_aside
from gmvq.training.ranks import is_main, wait_for_ranks
from gmvq.training.tasks import PriorTask
from gmvq.training.trainer import learn
from gmvq.types import CodeBatch

PRIOR = "prior"
"""Default name of the prior's folder in the run's folder."""
TOKENS = "tokens"
SOURCE = "source.json"
MEASURED = 2000
"""Number of held-out items that a prior is evaluated on."""
CHOSEN_BY = 20
"""Every 20th training item is held back to select the best weights."""
EPOCHS = 4
"""Epochs between two looks at the items held back, where that is more often than the training asks for."""
LEAST_STEPS = 25
"""Steps between two such looks at least."""

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
    """A prior and its training.

    Args:
        prior: Name of the prior, see :data:`gmvq.priors.catalogue.PRIORS`.
        options: Fields of its configuration that differ from the defaults.
        training: Settings of training; priors by counting ignore them.
        classes: Condition on classes, if the data have labels.

    Raises:
        ValueError: If the name of the prior is unknown.
    """

    prior: str = "autoregressive"
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Training = _TRAINING
    classes: bool = True

    def __post_init__(self) -> None:
        one_of("prior", self.prior, PRIORS)

    @property
    def counts(self) -> bool:
        """True if the prior counts codes and needs no training."""
        return PRIORS[self.prior].config is None


class PriorStage(Stage[AbstractPrior]):
    """Fits a prior to the codes of a tokenizer and measures it on held-out items.

    Items are those of the tokenizer's training. If they differ in size, or the tokenizer was trained on windows, they
    are cut into tiles of the size of the windows. Every 20th training item is held back to select the best weights;
    held-out items are used for the metrics alone.

    Args:
        folder: The tokenizer's run.
        run: Prior and training; an autoregressive prior by default.
        out: Folder of the prior; ``prior`` in the run's folder by default.
        console: Output of progress; by default standard error.
        data: The data, if they are already loaded.
        source: Path of the data; by default that of the run's record.

    Raises:
        FileNotFoundError: If the run does not exist.
        ValueError: If the tokenizer has no code at each place, or an option is out of range.
        OSError: If data cannot be read.
    """

    form: ClassVar[str] = "gmvq.prior-run"
    what: ClassVar[str] = "prior"
    part: ClassVar[type[nn.Module]] = AbstractPrior

    def __init__(
        self,
        folder: str | Path,
        run: PriorRun | None = None,
        out: str | Path | None = None,
        console: Console | None = None,
        data: Data | None = None,
        source: str | Path | None = None,
    ) -> None:
        super().__init__(Path(folder) / PRIOR if out is None else out, console)
        self.run = PriorRun() if run is None else run
        self.tokenizer = hub.load(folder)
        if not self.tokenizer.has_code_maps:
            raise ValueError(
                f"'folder' must be of a tokenizer with codes for each place, got the quantizer "
                f"{self.tokenizer.config.quantizer!r}. Train one with --quantizer gaussian-mixture."
            )
        self.mark = hub.fingerprint(self.tokenizer)
        config = read_run(folder).data
        data = data_of_run(folder, config, source) if data is None else data
        self.fingerprint = fingerprint(data)
        self.tiles = tiled(data, config.size, self.tokenizer.downsampling)
        self.classes = _classes(self.tiles) if self.run.classes else 0
        grid = self.tokenizer.grid(self.tiles.train.sizes[0])
        self.shape = CodeShape(grid, self.tokenizer.level_sizes, self.classes)
        with torch.device("meta"):  # raises for wrong options before items are tokenized
            make_prior(self.run.prior, self.shape, self._options())
        self.codes: tuple[CodeBatch, CodeBatch] | None = None
        self.seconds = 0.0

    @property
    def training(self) -> Training:  # noqa: D102
        return self.run.training

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {**asdict(self.run), "tokenizer": self.mark, "fingerprint": self.fingerprint}

    def learn(self, *, resume: bool) -> AbstractPrior:  # noqa: D102
        train, _ = self._encoded()
        torch.manual_seed(self.training.seed)
        prior = make_prior(self.run.prior, self.shape, self._options())
        if isinstance(prior, LatentFlowPrior):
            size = self.tokenizer.level_sizes[0]
            prior.place(*_mixture(self.tokenizer), torch.bincount(train.codes.flatten(), minlength=size))
        if isinstance(prior, (Frequencies, NGram)):
            prior.fit(train.codes.split(1024))
            if is_main():
                set_aside(self.out)  # it has no steps: an existing checkpoint belongs to another prior
                (self.out / LOG).unlink(missing_ok=True)
                hub.save(prior, self.out, tokenizer=self.mark)
            return prior.eval()
        learned_from, chosen_by = _divided(train)
        about = {"items": len(train.codes), "fingerprint": self.fingerprint[:16]}
        task = PriorTask(prior, learned_from, chosen_by, self.mark, about)
        training = _evaluated_often(self.training, len(learned_from.codes))
        learned = learn(task, training, self.out, resume=resume, console=self.console)
        self.seconds, self.warnings = learned.seconds, learned.warnings
        return learned.model

    def measure(self, model: AbstractPrior) -> dict[str, Any]:
        """Computes metrics of the prior on held-out items.

        ``bits_per_code`` of held-out codes, for each of the ``levels`` of a token; ``frequencies_bits_per_code`` and
        ``n_gram_bits_per_code`` of priors by counting; and ``bits_per_dim``, the length of codes and items given them,
        at least the negative log-likelihood of the item; None for a prior without a likelihood. ``protocol`` says how.
        """
        train, rest = self._encoded()
        metrics = _measured(model.eval(), self.tokenizer, train, rest, self.tiles.held_out)
        bits, counted = metrics["bits_per_code"], metrics["frequencies_bits_per_code"]
        if bits is not None and bits > counted and not self.run.counts:
            advice = (
                f"The prior needs {bits:.2f} bits for a held-out code, and counted frequencies {counted:.2f}: it has "
                "memorized its training items, or learned too little. Give more data, or change --steps or --width."
            )
            self.warnings = (*self.warnings, advice)
            self.say(advice)
        return {**metrics, "seconds": self.seconds}

    def report(self, model: AbstractPrior) -> None:  # noqa: D102
        generator = Generator(self.tokenizer.to(model.device), model)
        write_prior_report(self.out, generator, self.tiles.train, self.tiles.held_out)

    def _encoded(self) -> tuple[CodeBatch, CodeBatch]:
        """Returns the codes of both sides, from the folder if it has those of these items by this tokenizer."""
        if self.codes is None:
            codes = self._stored_or_made()
            self.codes = tuple(part if self.classes else part._replace(labels=None) for part in codes)  # pyright: ignore
        return self.codes  # pyright: ignore[reportReturnType]

    def _stored_or_made(self) -> tuple[CodeBatch, CodeBatch]:
        source = {"tokenizer": self.mark, "items": fingerprint(self.tiles)}
        folder = self.out / TOKENS
        files = {side: folder / f"{side}.safetensors" for side in ("train", "held_out")}
        codes = _stored(files) if read_json(folder / SOURCE) == source else None
        wait_for_ranks(self.out)  # all look at the folder before the first changes it
        if codes is None:
            self.say("Tokenizing ...")
            if is_main():
                for side, path in files.items():
                    tokenize(self.tokenizer, getattr(self.tiles, side), path)
                write_json(folder / SOURCE, source)
            wait_for_ranks(self.out)
            codes = _stored(files)
            assert codes is not None
        return CodeBatch(codes["train"], self.tiles.train.labels), CodeBatch(
            codes["held_out"], self.tiles.held_out.labels
        )

    def _options(self) -> dict[str, Any]:
        """Returns the prior's options; a flow of latents has the codebook's number of features."""
        own = {"codebook_dim": self.tokenizer.bottleneck.codebook_dim} if self.run.prior == "latent-flow" else {}
        return {**own, **self.run.options}


def fit_prior(
    folder: str | Path,
    run: PriorRun | None = None,
    out: str | Path | None = None,
    *,
    console: Console | None = None,
    data: Data | None = None,
    source: str | Path | None = None,
    **how: Any,  # noqa: ANN401 (arguments of Stage.carry_out)
) -> dict[str, Any]:
    """Fits a prior to a tokenizer's codes: see :class:`PriorStage` and :meth:`gmvq.stages.stage.Stage.carry_out`."""
    out = Path(folder) / PRIOR if out is None else Path(out)
    with locked(out):  # before the data are loaded
        return PriorStage(folder, run, out, console, data, source).carry_out(**how)


def _evaluated_often(training: Training, items: int) -> Training:
    """Returns the training with evaluations often enough to stop before a small data set is memorized."""
    if not training.evaluate_every:
        return training
    often = max(LEAST_STEPS, EPOCHS * items // training.batch_size)
    return replace(training, evaluate_every=min(training.evaluate_every, often))


def _divided(train: CodeBatch) -> tuple[CodeBatch, CodeBatch]:
    """Splits off every 20th item to select the best weights; with few items both parts are all of them."""
    kept = torch.arange(len(train.codes)) % CHOSEN_BY == CHOSEN_BY - 1
    if not bool(kept.any()):
        return train, train

    def part(rows: Tensor) -> CodeBatch:
        return CodeBatch(train.codes[rows], None if train.labels is None else train.labels[rows])

    return part(~kept), part(kept)


def _measured(
    prior: AbstractPrior, tokenizer: Autoencoder, train: CodeBatch, rest: CodeBatch, held_out: Items
) -> dict[str, Any]:
    """Computes bits of held-out codes, also by counting priors, and of the items."""
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
        nats, dimensions = _decoding_nats(tokenizer, held_out, codes)
        total = found["bits_per_code"] * prior.shape.length * number + nats / math.log(2)
        found["bits_per_dim"] = total / dimensions
    how = "exact"
    if not prior.has_likelihood:
        how = "the prior has no likelihood"
    elif type(prior).quick_log_prob is not AbstractPrior.quick_log_prob:
        how = "a bound over random orders, estimated"
    modality = tokenizer.modality
    classes = ", with their classes" if labels is not None else ""
    protocol = (
        f"Codes of the first {modality.counted(number, 'held-out')}{classes}; {how}. Priors that count have seen all "
        f"training codes. Bits per dimension are those of the codes and of the {modality.items} "
        "given their codes."
    )
    return {**found, "levels": prior.shape.levels, "items": number, "protocol": protocol}


@torch.no_grad()
def _decoding_nats(tokenizer: Autoencoder, items: Items, codes: Tensor) -> tuple[float, int]:
    """Computes the negative log-likelihood of items given their codes in nats, and their number of dimensions."""
    total, dimensions = 0.0, 0
    for start in range(0, len(codes), 64):
        some = range(start, min(start + 64, len(codes)))
        batch = torch.stack([items[index] for index in some]).to(tokenizer.device)
        prepared = tokenizer.prepared(batch)
        values = tokenizer.bottleneck.decode(codes[some.start : some.stop].long().to(tokenizer.device))
        parameters = tokenizer.decode_values(values, tokenizer.signal.size(batch))
        total -= float(tokenizer.likelihood.log_prob(parameters, prepared).sum(dtype=torch.float64))
        dimensions += batch.numel()
    return total, dimensions


def _stored(files: Mapping[str, Path]) -> dict[str, Tensor] | None:
    """Loads codes by side; returns None if a file is missing or damaged."""
    try:
        tokens = {side: TokenFile(path) for side, path in files.items()}
        return {side: torch.stack([file[i] for i in range(len(file))]) for side, file in tokens.items()}
    except (FileNotFoundError, ValueError):
        return None


def _mixture(tokenizer: Autoencoder) -> tuple[Tensor, float]:
    """Returns the codebook ``(K, L)``, and sigma of a mixture, 0 for other quantizers.

    Raises:
        ValueError: If the nearest code need not be the most likely one.
    """
    quantizer = tokenizer.bottleneck
    if not isinstance(quantizer, AbstractQuantizer) or quantizer.code_shape:
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
    """Returns the number of classes, 0 if the items have no labels."""
    train, held_out = data.train.labels, data.held_out.labels
    return 0 if train is None or held_out is None else int(torch.cat([train, held_out]).max()) + 1

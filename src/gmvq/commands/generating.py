"""The verbs of generation: priors and decoders are fitted, images are drawn and completed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from gmvq import hub, recipes, tokenization
from gmvq.commands.loading import RunFolder, checked_png, fast_device, load_decoder, load_model, read_inputs, read_model
from gmvq.commands.sheets import read_mask, write_sheet
from gmvq.generation import Generator
from gmvq.metrics import load_inception
from gmvq.priors import MaskedPrior, PriorName, Sampling
from gmvq.priors.flow import AbstractFlowPrior
from gmvq.recipes import DecoderRun, judging
from gmvq.recipes.priors import PriorRun
from gmvq.recipes.tiling import tiled

SHOWN = 10
"""Drawn images in a row of the judge's sheet."""


@dataclass(frozen=True)
class FitPriorOptions:
    """Fit a prior to the codes of a trained tokenizer: what new images are drawn from.

    The images that the tokenizer learned from are tokenized once; the prior learns from their codes, and from their
    labels where there are any.

    Args:
        run: Folder of the tokenizer's run.
        prior: autoregressive or masked transformers, flows between codes or between latents, or n-gram and
            frequencies, which count.
        out: Folder of the prior; by default prior in that of the run.
        steps: Optimizer steps.
        batch_size: Images in a batch.
        learning_rate: Of Adam, at its highest.
        width: Features of the transformer.
        depth: Layers.
        heads: Heads of its attention.
        seed: Of the first weights, of order and dropout.
        unlabelled: Learn no classes.
        resume: Go on from the last checkpoint in the prior's folder.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    prior: PriorName = "autoregressive"
    out: Path | None = None
    steps: int = PriorRun().training.steps
    batch_size: int = PriorRun().training.batch_size
    learning_rate: float = PriorRun().training.learning_rate
    width: int = 256
    depth: int = 6
    heads: int = 4
    seed: int = 0
    unlabelled: bool = False
    resume: bool = False
    json: bool = False


@dataclass(frozen=True)
class FitDecoderOptions:
    """Fit a decoder by diffusion to a trained tokenizer: it draws the detail that the tokenizer's own leaves out.

    The tokenizer stays as it is. The detail is drawn, so it is not that of the originals, pixel by pixel.

    Args:
        run: Folder of the tokenizer's run.
        out: Folder of the decoder; by default decoder in that of the run.
        steps: Optimizer steps.
        batch_size: Images in a batch.
        learning_rate: Of Adam, at its highest.
        width: Channels of the network's first level.
        blocks: Residual blocks of each level.
        seed: Of the first weights, of order, crops and noise.
        resume: Go on from the last checkpoint in the decoder's folder.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    out: Path | None = None
    steps: int = DecoderRun().training.steps
    batch_size: int = DecoderRun().training.batch_size
    learning_rate: float = DecoderRun().training.learning_rate
    width: int = 64
    blocks: int = 2
    seed: int = 0
    resume: bool = False
    json: bool = False


@dataclass(frozen=True)
class SampleOptions:
    """Draw new images from a prior and write them as one PNG sheet.

    Args:
        run: Folder of the tokenizer's run.
        number: Images to draw.
        out: The .png file; by default samples.png in the prior's folder.
        label: Classes to draw, one after the other, again and again; by default all of them, or none without classes.
        guidance: How much the class counts: 0 not at all, 1 as learned, more exaggerates it.
        temperature: Below 1 likely codes become likelier; 0 takes the likeliest.
        top_k: Draw from this many of the likeliest codes.
        top_p: Draw from the likeliest codes that have this probability together.
        draw_steps: Steps in which a masked prior or a flow draws; by default its own number.
        columns: Images in a row of the sheet.
        seed: Of all draws.
        prior: Folder of the prior; by default prior in that of the run.
        decoder: Folder of a diffusion decoder to decode with, as RUN/decoder; by default the tokenizer's own.
        codes: Write the codes there, too, as a safetensors file of gmvq tokenize.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    number: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    out: Path | None = None
    label: tuple[int, ...] = ()
    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    draw_steps: int | None = None
    columns: int = 8
    seed: int = 0
    prior: Path | None = None
    decoder: Path | None = None
    codes: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class JudgeOptions:
    """Draw images and say how real they are, by a classifier that learns the real ones first.

    Does it see the class that was asked for? How do its features of drawn images stand to those of held-out ones?
    These are no FID and KID, which are of another network, and stand beside them where its weights are at hand. Without
    labels it learns which training image a tile is of. A sheet shows drawn images, and below each the training image
    that is nearest to it.

    Args:
        run: Folder of the tokenizer's run.
        number: Images to draw.
        out: The .png file of the sheet; by default judged.png in the prior's folder.
        guidance: How much the class counts: 0 not at all, 1 as learned, more exaggerates it.
        temperature: Below 1 likely codes become likelier; 0 takes the likeliest.
        top_k: Draw from this many of the likeliest codes.
        top_p: Draw from the likeliest codes that have this probability together.
        draw_steps: Steps in which a masked prior or a flow draws; by default its own number.
        steps: Optimizer steps of the judge's training.
        inception: File with the weights of torch-fidelity's Inception network, for FID and KID; by default where torch
            keeps what it downloads, and without them where there is none.
        seed: Of all draws.
        prior: Folder of the prior; by default prior in that of the run.
        decoder: Folder of a diffusion decoder to decode with, as RUN/decoder; by default the tokenizer's own.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    number: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000
    out: Path | None = None
    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    draw_steps: int | None = None
    steps: int = 1500
    inception: Path | None = None
    seed: int = 0
    prior: Path | None = None
    decoder: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class CompleteOptions:
    """Hide a part of an image and draw it anew, several times.

    Args:
        run: Folder of the tokenizer's run.
        source: An image of the size that the prior draws, or the number of a held-out image of the run.
        out: The .png file: the image with its hidden part gray, and its completions.
        mask: What is hidden: lower, upper, left, right, middle, or a picture of that size that is white where it is.
        number: Completions to draw.
        label: Class of the image; none by default.
        guidance: How much the class counts: 0 not at all, 1 as learned, more exaggerates it.
        temperature: Below 1 likely codes become likelier; 0 takes the likeliest.
        top_k: Draw from this many of the likeliest codes.
        top_p: Draw from the likeliest codes that have this probability together.
        draw_steps: Steps in which a masked prior or a flow draws; by default its own number.
        seed: Of all draws.
        prior: Folder of the prior; by default prior in that of the run.
        decoder: Folder of a diffusion decoder to decode with, as RUN/decoder; by default the tokenizer's own.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN", name="in")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    mask: str = "lower"
    number: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 7
    label: int | None = None
    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    draw_steps: int | None = None
    seed: int = 0
    prior: Path | None = None
    decoder: Path | None = None
    json: bool = False


def fit_prior(options: FitPriorOptions, command: str) -> dict[str, Any]:
    """Fits; the result has the prior's folder and its figures."""
    out = options.run / recipes.FOLDER if options.out is None else options.out
    sizes = {name: getattr(options, name) for name in ("width", "depth", "heads")}
    trained = {name: getattr(options, name) for name in ("steps", "batch_size", "learning_rate", "seed")}
    recipe = PriorRun(options.prior, sizes, replace(PriorRun().training, **trained), classes=not options.unlabelled)
    if recipe.counts:
        given = [name for name in (*sizes, *trained) if getattr(options, name) != getattr(FitPriorOptions, name)]
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"A prior that counts is not trained: leave out {named}, or take another --prior.")
        recipe = replace(recipe, options={})
    read_model(options.run)
    metrics = recipes.fit_prior(options.run, recipe, out, resume=options.resume, command=command)
    report = str(out / recipes.REPORT)
    return {"run": str(options.run), "prior": str(out), "metrics": metrics, "report": report}


def fit_decoder(options: FitDecoderOptions, command: str) -> dict[str, Any]:
    """Fits; the result has the decoder's folder and its figures."""
    out = options.run / recipes.DECODER if options.out is None else options.out
    sizes = {name: getattr(options, name) for name in ("width", "blocks")}
    trained = {name: getattr(options, name) for name in ("steps", "batch_size", "learning_rate", "seed")}
    recipe = DecoderRun(sizes, replace(DecoderRun().training, **trained))
    read_model(options.run)
    metrics = recipes.fit_decoder(options.run, recipe, out, resume=options.resume, command=command)
    return {"run": str(options.run), "decoder": str(out), "metrics": metrics}


def sample(options: SampleOptions, command: str) -> dict[str, Any]:
    """Draws; the result has the file and the classes."""
    generator, folder = _generator(options.run, options.prior, options.decoder)
    sampling = _sampling(options, generator)
    out = checked_png(folder / "samples.png" if options.out is None else options.out)
    for name in ("number", "columns"):
        if getattr(options, name) < 1:
            raise ValueError(f"'{name}' must be at least 1, got {getattr(options, name)}. Use 8.")
    labels = _labels(options.label, options.number, generator.prior.shape.classes)
    drawn = generator.sample(options.number, labels, sampling)
    write_sheet(out, drawn.images, options.columns)
    if options.codes is not None:
        _write_codes(options.codes, generator, drawn.codes)
    found = {"run": str(options.run), "prior": str(folder), "out": str(out), "images": options.number}
    return {**found, "labels": None if labels is None else labels.tolist()}


def judge(options: JudgeOptions, command: str) -> dict[str, Any]:
    """Draws and judges; the result has the figures and the file."""
    generator, folder = _generator(options.run, options.prior, options.decoder)
    sampling = _sampling(options, generator)
    out = checked_png(folder / "judged.png" if options.out is None else options.out)
    if options.number < 4:
        raise ValueError(f"'number' must be at least 4, got {options.number}. Use 1000.")
    config = recipes.read_run(options.run).data
    whole = recipes.load_data(config)
    data = tiled(whole, config.crop, generator.tokenizer)
    # exemplars are of whole images
    shown = data if data.labelled else whole
    classifier = recipes.learned_classifier(shown, options.run / judging.CLASSIFIER, options.steps)
    classifier = classifier.to(generator.prior.device)
    inception = load_inception(options.inception)
    columns = min(SHOWN, options.number)
    verdict = judging.judge(generator, data, classifier, options.number, sampling, inception, keep=2 * columns)
    shown = verdict.images[: 2 * columns if options.number >= 2 * columns else columns]
    nearest = judging.nearest_real(classifier, shown, data.train)
    real = torch.stack([data.train[index] for index in nearest]).float() / 255
    rows = [part for some in zip(shown.split(columns), real.split(columns), strict=True) for part in some]
    write_sheet(out, torch.cat(rows), columns)
    found = {"run": str(options.run), "prior": str(folder), "out": str(out), "images": options.number}
    return {**found, "sampling": asdict(sampling), "figures": verdict.figures}


def complete(options: CompleteOptions, command: str) -> dict[str, Any]:
    """Completes; the result has the file."""
    generator, folder = _generator(options.run, options.prior, options.decoder)
    image = read_inputs([options.source], options.run, generator.tokenizer)[0].cpu()
    if tuple(image.shape[-2:]) != generator.size:
        raise ValueError(
            f"'IN' must have {generator.size[1]}x{generator.size[0]} pixels, as the prior draws them, got "
            f"{image.shape[-1]}x{image.shape[-2]}. Resize it."
        )
    if options.number < 1:
        raise ValueError(f"'number' must be at least 1, got {options.number}. Use 7.")
    mask = read_mask(options.mask, generator.size)
    sampling = _sampling(options, generator)
    labels = None if options.label is None else torch.full((options.number,), options.label)
    drawn = generator.complete(image.expand(options.number, -1, -1, -1), mask, labels, sampling)
    shown = torch.where(mask, 0.5, image)
    out = checked_png(options.out)
    write_sheet(out, torch.cat([image, shown, drawn.images.cpu()]), options.number + 2)
    found = {"run": str(options.run), "prior": str(folder), "out": str(out), "images": options.number}
    return {**found, "hidden": float(mask.float().mean())}


def _generator(run: Path, prior: Path | None, decoder: Path | None) -> tuple[Generator, Path]:
    """Tokenizer and prior of a run, and the prior's folder.

    Raises:
        ValueError: If the prior or the decoder is another tokenizer's.
    """
    folder = run / recipes.FOLDER if prior is None else prior
    tokenizer, stored = load_model(run), hub.load_prior(folder)
    mark = hub.fingerprint(tokenizer)
    if stored.tokenizer != mark:
        raise ValueError(
            f"{folder} was fitted to the tokenizer {stored.tokenizer[:12]}, {run} is {mark[:12]}. Fit one with "
            f"'gmvq fit-prior {run}'."
        )
    return Generator(tokenizer, stored.prior.to(fast_device()), load_decoder(run, decoder, tokenizer)), folder


def _sampling(options: SampleOptions | JudgeOptions | CompleteOptions, generator: Generator) -> Sampling:
    """How to draw.

    Raises:
        ValueError: If an option is out of range, or has no meaning for the prior.
    """
    if options.draw_steps is not None and not isinstance(generator.prior, (MaskedPrior, AbstractFlowPrior)):
        raise ValueError("'draw_steps' must be left out for a prior that draws codes one by one. Leave it out.")
    return Sampling(
        options.temperature, options.top_k, options.top_p, options.guidance, options.seed, options.draw_steps
    )


def _labels(asked: tuple[int, ...], number: int, classes: int) -> Tensor | None:
    """A class for each image."""
    if asked and not classes:
        raise ValueError(f"'label' must be left out for a prior without classes, got {asked}. Fit one with labels.")
    wanted = asked or tuple(range(classes))
    if not wanted:
        return None
    return torch.tensor(wanted).repeat(math.ceil(number / len(wanted)))[:number]


def _write_codes(path: Path, generator: Generator, codes: Tensor) -> None:
    """Drawn codes as a file that gmvq detokenize reads."""
    tokenizer, number = generator.tokenizer, len(codes)
    size = tokenizer.codebook_size
    assert size is not None
    info = tokenization.TokenInfo(
        hub.fingerprint(tokenizer),
        size,
        tokenizer.downsampling,
        tuple(f"{index:05d}" for index in range(number)),
        (generator.size,) * number,
    )
    tokenization.write_tokens(path, info, [(list(range(number)), codes)])

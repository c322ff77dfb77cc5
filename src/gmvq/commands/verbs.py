"""What each verb does: options in, a result that JSON can hold out; progress goes to standard error."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from gmvq import benchmarking, hub, leaderboard, recipes, tokenization
from gmvq.benchmarking import Shape
from gmvq.commands.editing import interpolate, swap
from gmvq.commands.generating import complete, fit_decoder, fit_prior, judge, sample
from gmvq.commands.loading import checked_png, load_decoder, load_model, read_model
from gmvq.commands.options import (
    BenchOptions,
    CompareOptions,
    DetokenizeOptions,
    EvaluateOptions,
    InfoOptions,
    Part,
    ReconstructOptions,
    TokenizeOptions,
    TrainOptions,
    data_of,
    run_of,
)
from gmvq.comparison import compare
from gmvq.data import ArrayImages, Data, Images, load, read_image
from gmvq.data.decoding import CHANNEL_CHOICES, IMAGE_SUFFIXES
from gmvq.evaluation import evaluate
from gmvq.metrics import psnr
from gmvq.models import Autoencoder, DiffusionDecoder
from gmvq.models.bottlenecks import QuantizerName


def train(options: TrainOptions, command: str) -> dict[str, Any]:
    """Trains; the result has the run's folder, its figures and its report."""
    out = options.out if options.out is not None else Path("runs") / options.recipe
    metrics = recipes.run(run_of(options), out, resume=options.resume, command=command)
    return {"run": str(out), "metrics": metrics, "report": str(out / "report.html")}


def evaluate_run(options: EvaluateOptions, command: str) -> dict[str, Any]:
    """Measures; the result has the figures and how they were measured."""
    model = load_model(options.run)
    if options.data is not None:
        data, source = _load_data(options.data, model, options.run), str(options.data)
    else:
        config = recipes.read_run(options.run).data
        data, source = recipes.load_data(config), config.source
    measured = evaluate(
        model,
        _part(data, options.part),
        samples=options.samples,
        batch_size=options.batch_size,
        limit=options.limit,
        seed=options.seed,
    )
    found = {"run": str(options.run), "data": source, "part": options.part}
    return {**found, "metrics": recipes.figures_of(measured)}


def reconstruct(options: ReconstructOptions, command: str) -> dict[str, Any]:
    """Writes reconstructions; the result has each file with its PSNR, and the mean."""
    model = load_model(options.run)
    if options.decoder is None and options.seed:
        raise ValueError(f"'seed' must be left out without 'decoder', got {options.seed}: nothing is drawn.")
    decoder = load_decoder(options.run, options.decoder, model)
    images, targets = _reconstructions(options, model)
    files: list[dict[str, Any]] = []
    with _progress("Reconstructing", len(images)) as advance:
        for index, target in enumerate(targets):
            image = images[index][None].to(_device(model))
            written = tokenization.write_png(target, _decoded(model, decoder, image, options.seed, index)[0])
            figure = float(psnr(written[None].float() / 255, images[index][None].float() / 255))
            # the PSNR of an image that came back exactly is infinite, which JSON cannot hold
            files.append(
                {"name": images.names[index], "file": str(target), "psnr": figure if math.isfinite(figure) else None}
            )
            advance(index + 1)
    finite = [file["psnr"] for file in files if file["psnr"] is not None]
    mean = sum(finite) / len(finite) if finite else None
    return {"run": str(options.run), "out": str(options.out), "images": len(files), "psnr": mean, "files": files}


def _decoded(model: Autoencoder, decoder: DiffusionDecoder | None, image: Tensor, seed: int, number: int) -> Tensor:
    """An image through its codes and back, ``(1, C, H, W)``."""
    if decoder is None:
        return model.reconstruct(image)
    return decoder.decode(model, model.encode(image), (image.shape[-2], image.shape[-1]), seed=seed, first=number)


def tokenize(options: TokenizeOptions, command: str) -> dict[str, Any]:
    """Writes codes; the result says how many."""
    model = load_model(options.run)
    images = _part(_load_data(options.data, model, options.run), options.part)
    with _progress("Tokenizing", len(images)) as advance:
        info = tokenization.tokenize(model, images, options.out, batch_size=options.batch_size, on_progress=advance)
    return {
        "run": str(options.run),
        "out": str(options.out),
        "images": len(images),
        "tokens": info.tokens,
        "codebook_size": info.codebook_size,
        "bytes": options.out.stat().st_size,
        "tokenizer": info.tokenizer,
    }


def detokenize(options: DetokenizeOptions, command: str) -> dict[str, Any]:
    """Writes images; the result has their paths."""
    model = load_model(options.run)
    total = len(tokenization.TokenFile(options.tokens))
    with _progress("Decoding", total) as advance:
        paths = tokenization.detokenize(
            model,
            options.tokens,
            options.out,
            force=options.force,
            batch_size=options.batch_size,
            on_progress=advance,
        )
    files = [str(path) for path in paths]
    return {"run": str(options.run), "out": str(options.out), "images": len(files), "files": files}


def info(options: InfoOptions, command: str) -> dict[str, Any]:
    """The result has the model, the record of the run and its figures; a model alone has neither of the last two."""
    model = read_model(options.run)
    return {
        "run": str(options.run),
        "fingerprint": hub.fingerprint(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model": asdict(model.config),
        "record": recipes.read_json(options.run / recipes.RECORD),
        "metrics": recipes.read_json(options.run / recipes.METRICS),
    }


def compare_runs(options: CompareOptions, command: str) -> dict[str, Any]:
    """Trains and compares; the result has the protocol, the table and each run."""
    if options.protocol is not None:
        return _measure_protocol(options, options.protocol, command)
    paths = data_of(options)
    chosen = [recipes.make(name, paths.get(name)) for name in options.recipes]
    changes = {name: getattr(options, name) for name in ("steps", "batch_size", "codebook_size", "width")}
    return compare(
        [recipes.changed(recipe, **changes) for recipe in chosen],
        quantizers=cast("tuple[QuantizerName, ...]", options.quantizers),
        seeds=options.seeds,
        out=options.out,
        threads=options.threads,
        command=command,
    )


def _measure_protocol(options: CompareOptions, name: str, command: str) -> dict[str, Any]:
    """Adds rows to the table of a protocol; the result has the table and who was asked for."""
    path = options.table or options.out / f"{name}.json"
    contenders = leaderboard.chosen(options.quantizers)
    table = leaderboard.measure(
        leaderboard.PROTOCOLS[name],
        contenders,
        options.seeds,
        options.data[0],
        table=path,
        out=options.out,
        jobs=options.jobs,
        threads=options.threads,
        again=options.again,
        compile=options.compile,
        command=command,
    )
    rows = [row for contender in contenders for row in table.of(contender.name)]
    names = [contender.name for contender in contenders]
    return {"protocol": dict(table.protocol), "rows": rows, "contenders": names, "json": str(path)}


def bench(options: BenchOptions, command: str) -> dict[str, Any]:
    """Measures; the result has the protocol and the rows of each section."""
    shapes, memory_shapes, growth_shapes = (
        [Shape.parse(text) for text in texts]
        for texts in (options.shapes, options.memory_shapes, options.growth_shapes)
    )
    return benchmarking.bench(
        shapes,
        sections=options.only,
        against=options.against,
        rounds=options.rounds,
        threads=options.threads,
        memory_shapes=memory_shapes,
        growth_shapes=growth_shapes,
        out=options.out,
        command=command,
    )


VERBS: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "train": train,
    "evaluate": evaluate_run,
    "reconstruct": reconstruct,
    "tokenize": tokenize,
    "detokenize": detokenize,
    "info": info,
    "fit-prior": fit_prior,
    "fit-decoder": fit_decoder,
    "sample": sample,
    "complete": complete,
    "interpolate": interpolate,
    "swap": swap,
    "judge": judge,
    "compare": compare_runs,
    "bench": bench,
}


def _device(model: Autoencoder) -> torch.device:
    return next(model.parameters()).device


def _load_data(source: Path, model: Autoencoder, run: Path) -> Data:
    """Data in the model's channels; the words of the bundled sets count where nothing lies at that path.

    For a run that learned from CelebA its faces are brought to the same side, images of other kinds stay as they are.
    """
    channels = model.config.channels if model.config.channels in CHANNEL_CHOICES else None
    if str(source) in recipes.BUNDLED_DATA and not source.exists():
        return recipes.load_data(recipes.DataConfig(str(source), channels=channels))
    with warnings.catch_warnings():
        # said for training, where one image is too few
        warnings.filterwarnings("ignore", message=".*holds one image")
        side = ((recipes.read_json(run / recipes.RECORD) or {}).get("run") or {}).get("data", {}).get("face_side")
        if side is not None:
            with suppress(ValueError):
                return load(source, channels=channels, face_side=side)
        return load(source, channels=channels)


def _part(data: Data, part: Part) -> Images:
    if part == "all":
        return tokenization.join(data)
    return data.train if part == "train" else data.held_out


def _reconstructions(options: ReconstructOptions, model: Autoencoder) -> tuple[Images, list[Path]]:
    """Images to send through the model, and the file for each."""
    source, out = options.source, options.out
    if source.is_file() and source.suffix.lower() in IMAGE_SUFFIXES:
        channels = model.config.channels if model.config.channels in CHANNEL_CHOICES else None
        images: Images = ArrayImages(read_image(source, channels)[None], names=[source.name])
        if out.suffix.lower() in IMAGE_SUFFIXES and not out.is_dir():
            targets = [checked_png(out)]
        else:
            targets = [out / name for name in tokenization.png_names(images.names)]
    else:
        images = tokenization.join(_load_data(source, model, options.run))
        targets = [tokenization.inside(out, name) for name in tokenization.png_names(images.names)]
    if out.resolve() == source.resolve() or any(target.resolve() == source.resolve() for target in targets):
        raise ValueError(f"'OUT' must not be 'IN', whose images it would replace, got {out}. Choose another folder.")
    return images, targets


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; what it yields takes the number of images done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, completed=done)

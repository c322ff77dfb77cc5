"""Measures benefit and cost of sharper images: a discriminator, a feature distance, a diffusion decoder.

For each seed, one tokenizer of the bundled photographs is trained with the defaults, and again from the same initial
weights for the same number of steps: with a discriminator of pixels, with one of features, with a feature distance,
and with the last two. For the first seed, a diffusion decoder is fitted to the first. Metrics are of tiles of the
held-out photographs through their codes: PSNR, SSIM, high-frequency energy relative to the tiles themselves, and
distances between their features and those of the tiles. The judge with these features is a small network trained to
recognize which training photograph a tile is cut from, since there are no classes; so the distances are not FID and
KID. Tiles were tinted at random in its training: otherwise it recognizes photographs by their colors, and an unseen
tint counts more than a blur. The feature distance in training uses another network of the same kind, from other
initial weights: it is similar to the judge, so its results are too favorable.

    python benchmarks/sharpening.py --seeds 2 --out benchmarks/results/sharpening.json --pictures docs/images/generation
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from gmvq import hub, recipes
from gmvq.data import central, evenly_spaced
from gmvq.data.writing import write_json
from gmvq.metrics import ImageDistortion, Realism, high_frequency_energy, measure_realism
from gmvq.modalities import Data
from gmvq.models import AdversarialConfig, Autoencoder, DiffusionDecoder
from gmvq.networks import Classifier
from gmvq.stages import DecoderRun, learned_classifier, load_data
from gmvq.stages.decoder import DecoderStage
from gmvq.stages.layout import finished
from gmvq.stages.tiling import cut
from gmvq.training.preparation import cpu_threads
from gmvq.training.provenance import commit, hardware, versions

Drawn = Callable[[Tensor, int], Tensor]
"""Function of images and the index of the first one that returns them as decoded by a tokenizer."""
SIDE = 32
SHOWN = 128
"""Side of the shown part of each held-out photograph."""
CURVES = ("psnr", "mse", "discriminator", "discriminator_accuracy", "adversarial_weight")


def tiles(data: Data, most: int) -> Tensor:
    """Cuts held-out images into tiles in [0, 1] ``(N, C, SIDE, SIDE)``; of too many, evenly spaced ones are kept."""
    found = cut(data.held_out, SIDE, data.modality)
    return data.signal.checked(found.subset(evenly_spaced(len(found), most)).array)


def spoiled(real: Tensor) -> dict[str, Tensor]:
    """Degrades tiles, as a test of the judge: blurred, noisy, and each with a small tint."""
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "blurred": F.avg_pool2d(real, 3, stride=1, padding=1, count_include_pad=False),
        "noisy": real + 0.02 * torch.randn(real.shape, generator=generator),
        "tinted": real + 0.02 * torch.randn(*real.shape[:2], 1, 1, generator=generator),
    }
    return {name: images.clamp(0, 1) for name, images in drawn.items()}


@torch.no_grad()
def metrics(made: Drawn, real: Tensor, judge: Classifier) -> dict[str, float]:
    """Computes the metrics of tiles through a tokenizer."""
    drawn = torch.cat([made(part, 64 * index) for index, part in enumerate(real.split(64))])
    realism = said(judge, real, drawn)
    energy = [float(high_frequency_energy(some).mean()) for some in (drawn, real)]
    distortion = ImageDistortion()
    distortion.update(drawn, real)
    return {
        **{name: getattr(distortion, name) for name in ("psnr", "ssim")},
        "sharpness": energy[0] / energy[1],
        **{name: getattr(realism, name) for name in ("frechet", "kernel", "precision", "recall")},
    }


@torch.no_grad()
def said(judge: Classifier, real: Tensor, drawn: Tensor) -> Realism:
    """Compares the judge's features of drawn tiles with those of real ones."""
    return measure_realism(*(torch.cat([judge.features(part) for part in some.split(256)]) for some in (real, drawn)))


def curves(folder: Path) -> dict[str, list[list[float]]]:
    """Returns each metric over training as pairs of step and value, on held-out images if available."""
    found: dict[str, list[list[float]]] = {}
    for text in (folder / "log.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name in CURVES:
            if line.get(name) is not None and (line["kind"] == "evaluation") == (name in ("psnr", "mse")):
                found.setdefault(name, []).append([line["step"], line[name]])
    return found


def measured(
    seed: int, data: Data, real: Tensor, judge: Classifier, arguments: argparse.Namespace, console: Console
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns rows of one seed, and the curves of its trainings; the diffusion decoder is fitted for the first seed."""
    steps, width, teacher = arguments.steps, arguments.width, str(arguments.runs / "features")
    recipe = recipes.changed(recipes.photos(), steps=steps, width=width, seed=seed)
    recipe = replace(recipe, training=replace(recipe.training, evaluate_every=max(1, steps // 24)))
    against, never = AdversarialConfig(width=width), {"discriminator_start": 1.0, "start": 1.0, "warmup": 0.0}
    runs = {
        "plain": recipe,
        "pixels": replace(recipe, adversarial=against),
        "features": replace(recipe, adversarial=replace(against, feature_weight=0.0), features=teacher),
        "distance": replace(recipe, adversarial=replace(against, **never), features=teacher),
        "both": replace(recipe, adversarial=against, features=teacher),
    }
    folders = {name: arguments.runs / f"{name}-{seed}" for name in runs}
    ways: dict[str, Drawn] = {}
    for name, run in runs.items():
        recipes.run(run, folders[name], data=data, resume=True, report=False, console=console)
        ways[name] = through(hub.load(folders[name]))
    if seed == 0:
        ways["diffusion decoder"] = by_diffusion(folders["plain"], data, arguments, console)
        if arguments.pictures is not None:
            shown = middles(data)
            with torch.no_grad():
                sheet = torch.cat([shown, *(made(shown, 0) for made in ways.values())])
            data.modality.write(arguments.pictures / "sharpening.png", list(sheet), columns=len(shown))
    rows = []
    for name, made in ways.items():
        found = metrics(made, real, judge)
        print(name, seed, {key: round(value, 4) for key, value in found.items()}, flush=True)
        rows.append({"name": name, "seed": seed, **found})
    return rows, {name: curves(folder) for name, folder in folders.items()}


def by_diffusion(folder: Path, data: Data, arguments: argparse.Namespace, console: Console) -> Drawn:
    """Fits a diffusion decoder to the tokenizer in a folder, and returns images through codes and decoder."""
    run = DecoderRun({"width": arguments.width}, replace(DecoderRun().training, steps=arguments.decoder_steps))
    stage = DecoderStage(folder, run, console=console, data=data)
    stage.carry_out(overwrite=finished(stage.out, stage.settings()) is None)
    tokenizer, decoder = hub.load(folder), hub.load(stage.out, DiffusionDecoder)
    return lambda part, first: decoder.decode(tokenizer, tokenizer.encode(part), first=first)


def middles(data: Data) -> Tensor:
    """Returns the middle of each held-out image that is large enough, ``(N, C, SHOWN, SHOWN)`` in [0, 1]."""
    large = [index for index, size in enumerate(data.held_out.sizes) if min(size) >= SHOWN]
    return data.signal.checked(torch.stack([central(data.held_out[index], 2, SHOWN) for index in large]))


def through(tokenizer: Autoencoder) -> Drawn:
    """Returns the function of images through a tokenizer's codes."""
    return lambda part, _: tokenizer.reconstruct(part)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="of each tokenizer")
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--judge-steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=64, help="of tokenizer, discriminator and decoder")
    parser.add_argument("--tiles", type=int, default=1000, help="most held-out tiles")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pictures", type=Path, help="folder of the picture; none is written without")
    parser.add_argument("--runs", type=Path, default=Path("runs/sharpening"))
    parser.add_argument("--out", type=Path, default=Path("runs/sharpening.json"))
    arguments = parser.parse_args(argv)
    console = Console(stderr=True)
    data = load_data(recipes.photos().data)
    with cpu_threads(arguments.threads):
        # networks that recognize which training photograph a tile is cut from, under any tint
        judge = learned_classifier(data, arguments.runs / "judge", arguments.judge_steps, console)
        learned_classifier(data, arguments.runs / "features", arguments.judge_steps, console, seed=1)
        real = tiles(data, arguments.tiles)
        sees = {name: said(judge, real, images).frechet for name, images in spoiled(real).items()}
        print("judge", {name: round(distance, 4) for name, distance in sees.items()}, flush=True)
        rows, courses = [], {}
        for seed in range(arguments.seeds):
            found, courses[seed] = measured(seed, data, real, judge, arguments, console)
            rows += found
        where = {"versions": versions(), "hardware": hardware(), "commit": commit()}
    sentence = " ".join((__doc__ or "").split("\n\n")[1].split())
    options = {name: getattr(arguments, name) for name in ("steps", "decoder_steps", "judge_steps", "width", "seeds")}
    found = {"about": sentence, **options, "tiles": len(real), **where, "judge": sees, "rows": rows}
    found["curves"] = courses[0]
    write_json(arguments.out, found)


if __name__ == "__main__":
    main()

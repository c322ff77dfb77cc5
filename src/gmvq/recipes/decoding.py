"""From a tokenizer's run to a decoder by diffusion, which draws the detail that the tokenizer's own leaves out.

::

    RUN --load--> tokenizer, images --codes, reconstructions--> OUT/{model.safetensors, metrics.json, log.jsonl}
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gmvq import hub
from gmvq.data import Data, Images
from gmvq.metrics import Distortion, high_frequency_energy
from gmvq.metrics.distortion import SMALLEST_SIDE
from gmvq.models import Autoencoder, DiffusionConfig, DiffusionDecoder
from gmvq.recipes.catalogue import load_data
from gmvq.recipes.layout import METRICS, RECORD, is_main
from gmvq.recipes.running import check_part, circumstances, now, read_run
from gmvq.training import Training
from gmvq.training.monitoring import HeldOut
from gmvq.training.tasks import DiffusionTask, Drawing
from gmvq.training.trainer import learn

FORMAT = "gmvq.decoder-run"
VERSION = 1
DECODER = "decoder"
"""Where the diffusion decoder of a run is, by default, in the run's folder."""

_TRAINING = Training(
    steps=3000,
    batch_size=32,
    learning_rate=1e-3,
    warmup_steps=100,
    gradient_clip=1.0,
    averaging_decay=0.995,
    evaluate_every=250,
    checkpoint_every=500,
    log_every=50,
)


@dataclass(frozen=True)
class DecoderRun:
    """A diffusion decoder and how it is learned.

    Args:
        options: Fields of its configuration, beside their defaults: ``width``, ``blocks``, ``steps``.
        training: How it is trained.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    training: Training = _TRAINING


def fit_decoder(
    folder: str | Path,
    recipe: DecoderRun | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    data: Data | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fits a diffusion decoder to a tokenizer and measures it on held-out images.

    Images are those that the tokenizer learned from, and drawn as they were for it; the tokenizer stays as it is.

    Args:
        folder: The tokenizer's run.
        recipe: How.
        out: Where to; the folder ``decoder`` of the run by default. A decoder that is there is replaced.
        resume: Go on from the folder's checkpoint.
        data: The data, if they are loaded already.
        command: What was typed, for the record.
        console: Where progress goes; by default standard error.

    Returns:
        What ``metrics.json`` holds: ``psnr``, ``ssim`` and ``sharpness`` of drawn images, the same of the tokenizer's
        own as ``own_*``; sharpness is the high-frequency energy over that of the originals, None where these have
        none. Ranks other than the first get nothing.

    Raises:
        FileNotFoundError: If there is no run, or nothing to resume.
        ValueError: If the tokenizer has no codes, the folder holds something else, the checkpoint is of another
            decoder, or an option is out of range.
        OSError: If data cannot be read or the folder cannot be written.
    """
    folder, recipe = Path(folder), DecoderRun() if recipe is None else recipe
    out = folder / DECODER if out is None else Path(out)
    console = Console(file=sys.stderr) if console is None else console
    check_part(out, hub.DECODER_FORMAT, FORMAT, "decoder")
    tokenizer, run = hub.load(folder), read_run(folder)
    data = load_data(run.data) if data is None else data
    if tokenizer.codebook_size is None:
        raise ValueError("'folder' must be of a tokenizer with codes, got a VAE. Train one with another --quantizer.")
    torch.manual_seed(recipe.training.seed)
    sizes = {"channels": tokenizer.config.channels, "downsampling": tokenizer.downsampling}
    decoder = DiffusionDecoder(DiffusionConfig(dim=tokenizer.bottleneck.dim, **{**sizes, **recipe.options}))
    decoder.set_scale(max(1e-4, _deviation(tokenizer, data.train)))
    record = {"format": FORMAT, "version": VERSION, "run": asdict(recipe), **circumstances(command)}
    if is_main() and not resume:  # a refused checkpoint leaves the folder as it was
        (out / METRICS).unlink(missing_ok=True)
        hub.write_json(out / RECORD, record)
    task = DiffusionTask(decoder, tokenizer, data, Drawing(run.data.crop, run.data.flip, 1))
    learned = learn(task, recipe.training, out, resume=resume, console=console)
    if not is_main():
        return {}
    console.print("Measuring on held-out images ...", highlight=False)
    metrics = {**_measured(learned.model, tokenizer, data.held_out), "seconds": learned.seconds}
    hub.write_json(out / METRICS, metrics)
    hub.write_json(out / RECORD, {**record, "finished": now()})
    return metrics


@torch.no_grad()
def _deviation(tokenizer: Autoencoder, images: Images) -> float:
    """Root of the mean squared error of reconstructions, over a part of some images."""
    total, count = 0.0, 0
    for batch in HeldOut(images, 64).batches:
        real = batch.float() / 255
        total += float((tokenizer.reconstruct(real) - real).square().sum(dtype=torch.float64))
        count += real.numel()
    return math.sqrt(total / max(1, count))


@torch.no_grad()
def _measured(decoder: DiffusionDecoder, tokenizer: Autoencoder, held_out: Images) -> dict[str, Any]:
    """Distortion and sharpness of drawn images and of the tokenizer's own."""
    device = decoder.scale.device
    tokenizer = tokenizer.to(device)
    distortions = {"": Distortion(), "own_": Distortion()}
    energies, seconds = torch.zeros(3, dtype=torch.float64), 0.0
    for batch in HeldOut(held_out, 16).batches:
        real = batch.to(device).float() / 255
        size = (real.shape[-2], real.shape[-1])
        codes = tokenizer.encode(real)
        start = time.perf_counter()
        drawn = decoder.decode(tokenizer, codes, size, first=distortions[""].images).cpu()
        seconds += time.perf_counter() - start
        made = {"": drawn, "own_": tokenizer.decode(codes, size).cpu()}
        for name, images in made.items():
            distortions[name].update(images, real.cpu())
        if min(size) >= SMALLEST_SIDE:
            energies += torch.stack([high_frequency_energy(some).sum().cpu() for some in (*made.values(), real)])
    images = distortions[""].images
    protocol = (
        f"{images:,} held-out images, spread evenly, large ones by their centre, through their codes; sharpness is the "
        "mean high-frequency energy over that of the originals."
    )
    figures: dict[str, Any] = {}
    for place, (name, distortion) in enumerate(distortions.items()):
        figures |= {f"{name}psnr": distortion.psnr, f"{name}ssim": distortion.ssim}
        # flat images have no detail that could be kept
        figures[f"{name}sharpness"] = float(energies[place] / energies[2]) if energies[2] > 1e-6 * images else None
    speed = {"images": images, "images_per_second": images / max(seconds, 1e-9)}
    return {**figures, **speed, "protocol": protocol}

"""A diffusion decoder for a tokenizer, which generates detail that the tokenizer's own decoder lacks.

::

    RUN --load--> tokenizer, images --codes, reconstructions--> OUT/{model.safetensors, metrics.json, log.jsonl}
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import nn

from gmvq import hub
from gmvq.data import Items
from gmvq.data.locking import locked
from gmvq.metrics import ImageDistortion, high_frequency_energy
from gmvq.metrics.distortion import SMALLEST_SIDE
from gmvq.modalities import Data, fingerprint
from gmvq.models import Autoencoder, DiffusionConfig, DiffusionDecoder
from gmvq.stages.data import data_of_run
from gmvq.stages.stage import Stage
from gmvq.stages.tokenizer import read_run
from gmvq.training import Training
from gmvq.training.monitoring import HeldOut
from gmvq.training.tasks import DiffusionTask, Drawing
from gmvq.training.trainer import learn

DECODER = "decoder"
"""Default name of the diffusion decoder's folder in the run's folder."""

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
    """A diffusion decoder and its training.

    Args:
        options: Fields of its configuration that differ from the defaults: ``width``, ``blocks``, ``steps``.
        training: Settings of training.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    training: Training = _TRAINING


class DecoderStage(Stage[DiffusionDecoder]):
    """Fits a diffusion decoder to a tokenizer and measures it on held-out images.

    Images and their windows are those of the tokenizer's training; the tokenizer is frozen.

    Args:
        folder: The tokenizer's run.
        run: Decoder and training.
        out: Folder of the decoder; ``decoder`` in the run's folder by default.
        console: Output of progress; by default standard error.
        data: The data, if they are already loaded.
        source: Path of the data; by default that of the run's record.

    Raises:
        FileNotFoundError: If the run does not exist.
        ValueError: If the tokenizer has no codes or its items are not images, or an option is out of range.
        OSError: If data cannot be read.
    """

    form: ClassVar[str] = "gmvq.decoder-run"
    what: ClassVar[str] = "decoder"
    part: ClassVar[type[nn.Module]] = DiffusionDecoder

    def __init__(
        self,
        folder: str | Path,
        run: DecoderRun | None = None,
        out: str | Path | None = None,
        console: Console | None = None,
        data: Data | None = None,
        source: str | Path | None = None,
    ) -> None:
        super().__init__(Path(folder) / DECODER if out is None else out, console)
        self.run = DecoderRun() if run is None else run
        self.tokenizer = hub.load(folder)
        if self.tokenizer.codebook_size is None:
            raise ValueError(
                "'folder' must be of a tokenizer with codes, got a VAE. Train one with another --quantizer."
            )
        DiffusionDecoder.check_signal(self.tokenizer.signal)
        sizes = {"channels": self.tokenizer.signal.channels, "downsampling": self.tokenizer.downsampling}
        self.config = DiffusionConfig(dim=self.tokenizer.bottleneck.dim, **{**sizes, **self.run.options})
        DiffusionDecoder(self.config).check_fits(self.tokenizer)
        self.mark, self.of = hub.fingerprint(self.tokenizer), read_run(folder).data
        self.data = data_of_run(folder, self.of, source) if data is None else data
        self.seconds = 0.0

    @property
    def training(self) -> Training:  # noqa: D102
        return self.run.training

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {**asdict(self.run), "tokenizer": self.mark, "fingerprint": fingerprint(self.data)}

    def learn(self, *, resume: bool) -> DiffusionDecoder:  # noqa: D102
        decoder = DiffusionDecoder(self.config)
        decoder.set_scale(max(1e-4, _deviation(self.tokenizer, self.data.train)))
        task = DiffusionTask(decoder, self.tokenizer, self.data, Drawing(self.of.size, self.of.mirror, 1))
        learned = learn(task, self.training, self.out, resume=resume, console=self.console)
        self.seconds, self.warnings = learned.seconds, learned.warnings
        return learned.model

    def measure(self, model: DiffusionDecoder) -> dict[str, Any]:
        """Computes ``psnr``, ``ssim`` and ``sharpness`` of generated images, and of the tokenizer's own as ``own_*``.

        Sharpness is the high-frequency energy relative to the originals, None if they have none.
        """
        return {**_measured(model, self.tokenizer, self.data.held_out), "seconds": self.seconds}


def fit_decoder(
    folder: str | Path,
    run: DecoderRun | None = None,
    out: str | Path | None = None,
    *,
    console: Console | None = None,
    data: Data | None = None,
    source: str | Path | None = None,
    **how: Any,  # noqa: ANN401 (arguments of Stage.carry_out)
) -> dict[str, Any]:
    """Fits a diffusion decoder: see :class:`DecoderStage` and :meth:`gmvq.stages.stage.Stage.carry_out`."""
    out = Path(folder) / DECODER if out is None else Path(out)
    with locked(out):  # before the data are loaded
        return DecoderStage(folder, run, out, console, data, source).carry_out(**how)


@torch.no_grad()
def _deviation(tokenizer: Autoencoder, images: Items) -> float:
    """Returns the root mean squared error of reconstructions over a part of the images."""
    total, count = 0.0, 0
    for batch in HeldOut(images, tokenizer.signal, 64).batches:
        real = tokenizer.signal.checked(batch)
        total += float((tokenizer.reconstruct(real) - real).square().sum(dtype=torch.float64))
        count += real.numel()
    return math.sqrt(total / max(1, count))


@torch.no_grad()
def _measured(decoder: DiffusionDecoder, tokenizer: Autoencoder, held_out: Items) -> dict[str, Any]:
    """Computes distortion and sharpness of generated images and of the tokenizer's own."""
    device = decoder.scale.device
    tokenizer = tokenizer.to(device)
    distortions = {"": ImageDistortion(), "own_": ImageDistortion()}
    energies, seconds = torch.zeros(3, dtype=torch.float64), 0.0
    for batch in HeldOut(held_out, tokenizer.signal, 16).batches:
        real = tokenizer.signal.checked(batch.to(device))
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
        f"{tokenizer.modality.counted(images, 'held-out')}, spread evenly, large ones by their center, through their "
        "codes; sharpness is the mean high-frequency energy over that of the originals."
    )
    metrics: dict[str, Any] = {}
    for place, (name, distortion) in enumerate(distortions.items()):
        metrics |= {f"{name}psnr": distortion.psnr, f"{name}ssim": distortion.ssim}
        # flat images have no detail to keep
        metrics[f"{name}sharpness"] = float(energies[place] / energies[2]) if energies[2] > 1e-6 * images else None
    speed = {"items": images, "items_per_second": images / max(seconds, 1e-9)}
    return {**metrics, **speed, "protocol": protocol}

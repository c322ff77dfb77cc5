"""Fit a decoder by diffusion to a tokenizer: it draws detail beside the same codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from gmvq import stages
from gmvq.commands.common import Common, RunFolder, Where, common, grid, metric_rows, read_model, say
from gmvq.stages.decoder import DECODER, DecoderRun

_SHOWN = (
    ("psnr", "PSNR", "{:.2f} dB"),
    ("own_psnr", "of the tokenizer's decoder", "{:.2f} dB"),
    ("ssim", "SSIM", "{:.4f}"),
    ("own_ssim", "of the tokenizer's decoder", "{:.4f}"),
    ("sharpness", "high-frequency energy, originals 1", "{:.2f}"),
    ("own_sharpness", "of the tokenizer's decoder", "{:.2f}"),
    ("items", "held-out items", "{:,}"),
    ("items_per_second", "decoding", "{:.1f} items/s"),
    ("seconds", "training", "{:.1f} s"),
)


@dataclass(frozen=True)
class Options:
    """Fit a decoder by diffusion to a trained tokenizer of images: it draws detail that the tokenizer's decoder omits.

    The tokenizer does not change. The detail is drawn, so it is not that of the originals, pixel by pixel.

    Args:
        run: Folder of the tokenizer's run.
        out: Folder of the decoder; by default RUN/decoder.
        steps: Optimizer steps.
        batch_size: Images in a batch.
        learning_rate: Highest learning rate of Adam.
        width: Channels of the network's first level.
        blocks: Residual blocks of each level.
        seed: Seed of weights, order, crops and noise.
        resume: Go on from the last checkpoint in the decoder's folder.
        overwrite: Replace a decoder that is finished, or one with other settings.
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
    overwrite: bool = False
    where: Where = Where()
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Fits. The result has the decoder's folder and its metrics."""
    out = options.run / DECODER if options.out is None else options.out
    sizes = {name: getattr(options, name) for name in ("width", "blocks")}
    trained = {name: getattr(options, name) for name in ("steps", "batch_size", "learning_rate", "seed")}
    training = replace(DecoderRun().training, **trained, device=options.common.device)
    made = DecoderRun(sizes, training)
    read_model(options.run)
    how = {"resume": options.resume, "overwrite": options.overwrite, "command": command}
    metrics = stages.fit_decoder(options.run, made, out, source=options.where.data, **how)
    return {"run": str(options.run), "decoder": str(out), "metrics": metrics}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints metrics beside those of the tokenizer's own decoder, and the next command."""
    console.print(grid(metric_rows(result["metrics"], _SHOWN)))
    run, decoder = result["run"], result["decoder"]
    say(console, f"Decoder: {decoder}. Use it with: gmvq reconstruct {run} IN OUT --decoder {decoder}")

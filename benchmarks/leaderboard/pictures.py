"""Pictures of the same held-out images as reconstructed by several contenders, from the runs of ``gmvq compare``.

    python benchmarks/leaderboard/pictures.py cifar10-8x8-k1024-short --data PATH

Images are evenly spaced over the held-out part; runs are those of seed 0.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gmvq import hub
from gmvq.data import evenly_spaced
from gmvq.data.writing import write_atomically
from gmvq.experiments import CONTENDERS, PROTOCOLS
from gmvq.experiments.running import folder_of
from gmvq.modalities.image.pictures import to_bytes
from gmvq.stages import fitted, load_data
from gmvq.stages.layout import METRICS

ROOT = Path(__file__).parents[2]
SHOWN = ("gaussian-mixture", "vector-ema-4-light", "vector-affine", "finite-scalar", "vector")
IMAGES = 10
MOST_BYTES = 300_000
MARGIN, LABELS = 12, 260
"""Margin of the rows and width of their titles in pixels."""
_GAP, _SIDE, _WIDTH, _LINE = 4, 96, 1290, 18


def reconstructions(runs: Mapping[str, Path], images: Sequence[Tensor], most_bytes: int = MOST_BYTES) -> bytes:
    """Creates a JPEG: the originals in the first row, then a row of reconstructions from hard codes for each run.

    Next to each row are its title and the mean squared error of its images.

    Args:
        runs: Folders of at least one run by the title of its row.
        images: Images ``(C, H, W)`` of one size, uint8.
        most_bytes: Largest size in bytes; the quality is reduced until it fits.

    Raises:
        ValueError: If it does not fit at the lowest quality.
        OSError: If a run cannot be read.
    """
    models = {title: hub.load(folder) for title, folder in runs.items()}
    originals = next(iter(models.values())).signal.checked(torch.stack(list(images)))
    rows = [("original", "", originals)]
    for title, model in models.items():
        decoded = model.reconstruct(originals).clamp(0, 1)
        rows.append((title, f"MSE {1e3 * float((decoded - originals).square().mean()):.2f}e-3", decoded))
    sheet = _sheet(rows)
    for quality in (92, 85, 75, 65, 50, 35):
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=quality, optimize=True, subsampling=0 if quality > 80 else 2)
        if buffer.tell() <= most_bytes:
            return buffer.getvalue()
    raise ValueError(
        f"'images' must fit {most_bytes:,} bytes as a JPEG, got {buffer.tell():,}. Show fewer images or runs."
    )


def _sheet(rows: Sequence[tuple[str, str, Tensor]]) -> Image.Image:
    """Arranges rows of pictures with their labels on the left, small ones magnified without smoothing."""
    columns, _, height, width = rows[0][2].shape
    factor = max(1, min(_SIDE, (_WIDTH - 2 * MARGIN - LABELS) // columns - _GAP) // width)
    height, width = height * factor, width * factor
    size = 2 * MARGIN + LABELS + columns * (width + _GAP) - _GAP, 2 * MARGIN + len(rows) * (height + _GAP) - _GAP
    sheet = Image.new("RGB", size, "#ffffff")
    draw = ImageDraw.Draw(sheet)
    for row, (title, note, images) in enumerate(rows):
        top = MARGIN + row * (height + _GAP)
        _label(draw, title, note, top + height // 2)
        for column, image in enumerate(images):
            pixels = to_bytes(image).movedim(0, -1).squeeze(-1).numpy()
            shown = Image.fromarray(pixels).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (MARGIN + LABELS + column * (width + _GAP), top))
    return sheet


def _label(draw: ImageDraw.ImageDraw, title: str, note: str, middle: int) -> None:
    """Draws title and note, one below the other; a long title is wrapped."""
    # matplotlib's font, so that the picture is the same on every machine
    large, small = (ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size) for size in (15, 13))
    lines: list[str] = []
    for word in title.split():
        if lines and draw.textlength(f"{lines[-1]} {word}", large) <= LABELS - MARGIN:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    top = middle - (_LINE * len(lines) + (_LINE - 1 if note else 0)) / 2
    for number, line in enumerate(lines):
        draw.text((MARGIN, top + _LINE * number), line, "#222222", large)
    draw.text((MARGIN, top + _LINE * len(lines)), note, "#5c5c5c", small)


def main() -> None:
    """Writes the picture of one protocol."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=list(PROTOCOLS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/leaderboard")
    parser.add_argument("--contenders", nargs="+", default=SHOWN, choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/experiment")
    options = parser.parse_args()
    protocol = PROTOCOLS[options.protocol].at(str(options.data))
    data = load_data(protocol.run.data)
    protocol.check_data(data)
    folders = {}
    for contender in (CONTENDERS[name] for name in options.contenders):
        folder = folder_of(options.runs, protocol, contender, fitted(contender.run(protocol.run, 0), data))
        if (folder / METRICS).is_file():
            folders[contender.title] = folder
    if not folders:
        parser.error(f"--runs must hold a finished run of {', '.join(options.contenders)}, got none in {options.runs}")
    images = [data.held_out[index] for index in evenly_spaced(len(data.held_out), IMAGES)]
    path = options.out / f"reconstructions-{options.protocol}.jpg"
    write_atomically(path, reconstructions(folders, images))
    print(path)


if __name__ == "__main__":
    main()

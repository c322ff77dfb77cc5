"""Images leave as PNG files, under names that cannot leave their folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor

from gmvq import hub
from gmvq.data.decoding import IMAGE_SUFFIXES


def png_names(names: Sequence[str]) -> list[str]:
    """A name ending in ``.png`` for each image: the suffix of an image file is replaced, unless that makes two alike.

    Example:
        >>> png_names(["a/cat.jpg", "dog.jpg", "dog.png", "00007"])
        ['a/cat.png', 'dog.jpg.png', 'dog.png', '00007.png']
    """
    short = [str(PurePosixPath(name).with_suffix(".png")) if _is_image(name) else f"{name}.png" for name in names]
    counts: dict[str, int] = {}
    for name in short:
        counts[name.casefold()] = counts.get(name.casefold(), 0) + 1
    chosen, taken = [], set()
    for name, brief in zip(names, short, strict=True):
        # compared without case: to some file systems Cat.png and cat.png are one
        stem = brief if counts[brief.casefold()] == 1 else name.removesuffix(".png") + ".png"
        candidate, number = stem, 2
        while candidate.casefold() in taken:
            candidate, number = f"{stem.removesuffix('.png')}-{number}.png", number + 1
        taken.add(candidate.casefold())
        chosen.append(candidate)
    return chosen


def inside(folder: Path, name: str) -> Path:
    """The path of a named file in a folder.

    Raises:
        ValueError: If the name would lead out of the folder.
    """
    path = PurePosixPath(name)
    root = folder.resolve()
    foreign = "\0\\:" if os.name == "nt" else "\0"
    if not path.name or path.is_absolute() or ".." in path.parts or set(name) & set(foreign):
        raise ValueError(f"The name {name!r} would lead out of the folder {folder}. The file is not to be trusted.")
    target = root.joinpath(*path.parts)
    if not target.resolve().is_relative_to(root):  # through a link inside the folder
        raise ValueError(f"The name {name!r} leads out of the folder {folder} by a link. Choose an empty folder.")
    return folder.joinpath(*path.parts)


def write_png(path: Path, image: Tensor) -> Tensor:
    """Writes an image as PNG, whole or not at all.

    Args:
        path: The file.
        image: Float in [0, 1] ``(C, H, W)`` with 1 to 4 channels.

    Returns:
        The image as written, uint8 ``(C, H, W)``.

    Raises:
        ValueError: If PNG has no such number of channels.
    """
    if not 1 <= image.shape[0] <= 4:
        raise ValueError(f"A PNG file has 1 to 4 channels, got {image.shape[0]}. Save such images with numpy.")
    pixels = (image.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.movedim(0, -1).contiguous().numpy()
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    hub.write_atomically(path, buffer.getvalue())
    return pixels


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES

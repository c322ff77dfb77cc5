"""The list of all modalities, once: every law is tested on each of them (style.md, 8)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gmvq.modalities import Audio, Image, Modality, Series, Text, Vectors

SENTENCES = [f"the {color} {animal} sleeps" for color in ("red", "blue", "süße") for animal in ("cat", "dog", "fox")]


class Member(NamedTuple):
    """A modality for the laws.

    Attributes:
        modality: All of its settings are known.
        item: An item as it is stored.
        write_folder: Writes a folder of files, in folders that are classes. Any two calls write the same.
    """

    modality: Modality
    item: Tensor
    write_folder: Callable[[Path], None]


def image() -> Member:
    """Smooth colors, of which no row and no column is like another."""

    def write_folder(folder: Path) -> None:
        generator = torch.Generator().manual_seed(1)
        for name in ("cat/a", "cat/b", "cat/c", "cat/d", "dog/e", "dog/f", "dog/g", "dog/h"):
            coarse = torch.rand(1, 3, 4, 6, generator=generator)
            pixels = torch.nn.functional.interpolate(coarse, (16, 24), mode="bilinear")[0]
            write(Image(channels=3), folder / f"{name}.png", [pixels])

    rows, columns = torch.arange(40)[:, None], torch.arange(56)
    colors = [3 * rows + columns, 255 - rows - 2 * columns, 2 * rows + 2 * columns]
    return Member(Image(channels=3), torch.stack([color.clamp(0, 255) for color in colors]).byte(), write_folder)


def tone(length: int, rate: int = 8000, hertz: float = 440, channels: int = 1) -> Tensor:
    """A tone that fades in, a little higher in each channel."""
    seconds = torch.arange(length) / rate
    pitches = hertz * torch.arange(1, channels + 1)[:, None]
    return 0.5 * torch.sin(2 * math.pi * pitches * seconds) * (seconds / seconds[-1:].clamp_min(1e-9))


def audio() -> Member:
    """Tones, of any length."""

    def write_folder(folder: Path) -> None:
        for place, name in enumerate(("high/a.wav", "high/b.flac", "low/c.wav", "low/d.wav", "low/e.wav")):
            write(Audio(rate=8000), folder / name, [tone(900 + 100 * place)])

    return Member(Audio(rate=8000, channels=1), tone(5000), write_folder)


def series() -> Member:
    """Noise in two channels, at 50 Hz."""
    modality = Series(names=("x", "y"), rate=50.0)

    def write_folder(folder: Path) -> None:
        generator = torch.Generator().manual_seed(1)
        for name in ("rest/a.csv", "rest/b.csv", "run/c.csv", "run/d.csv", "run/e.csv"):
            write(modality, folder / name, [torch.randn(2, 40, generator=generator)])

    return Member(modality, torch.randn(2, 120, generator=torch.Generator().manual_seed(0)), write_folder)


def text() -> Member:
    """Sentences, with a vocabulary that lacks some of their characters."""
    modality = Text(vocabulary=("é", "ß"), lines=True)

    def write_folder(folder: Path) -> None:
        for name in ("good/a.txt", "good/b.txt", "bad/c.txt"):
            lines = [modality.encode(f"{sentence} in {name}") for sentence in SENTENCES]
            write(modality, folder / name, lines)

    return Member(modality, modality.encode("Der Fuß des Cafés ist naß, und 20 € sind viel 😀."), write_folder)


def vectors() -> Member:
    """Noise in three features."""
    modality = Vectors(names=("x", "y", "z"), fill=(0.0, 0.5, 1.0))

    def write_folder(folder: Path) -> None:
        generator = torch.Generator().manual_seed(1)
        for name in ("left/a.csv", "left/b.csv", "right/c.csv"):
            write(modality, folder / name, list(torch.randn(20, 3, generator=generator)))

    return Member(modality, torch.randn(3, generator=torch.Generator().manual_seed(0)), write_folder)


def write(modality: Modality, path: Path, items: list[Tensor]) -> None:
    """Writes a file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    modality.write(path, items)


MEMBERS: dict[str, Callable[[], Member]] = {
    "image": image,
    "audio": audio,
    "series": series,
    "text": text,
    "vectors": vectors,
}
"""One for each modality: the one list."""


def worsened(item: Tensor, amount: float, seed: int = 0) -> Tensor:
    """An item as a bad model makes it, from floats or symbols: the larger the amount in [0, 1], the worse."""
    generator = np.random.default_rng(seed)
    noise = torch.from_numpy(generator.random(item.shape))
    if not item.is_floating_point():
        letters = (item > 1 + ord("a")) & (item <= 1 + ord("z"))  # parts of other characters would be no UTF-8
        return torch.where((noise < amount) & letters, item - 1, item)
    return torch.lerp(item, noise.to(item.dtype), amount)  # within the range of the values, whichever it is

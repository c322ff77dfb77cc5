"""Images: items are uint8 ``(C, H, W)``, values in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmvq.checks import at_least
from gmvq.metrics.base import Measure
from gmvq.metrics.distortion import ImageDistortion
from gmvq.metrics.perceptual import can_compare, load_lpips
from gmvq.modalities.base import Data, Exhibit, Modality, register
from gmvq.modalities.image.bundled import digits, photographs
from gmvq.modalities.image.celeba import check_side
from gmvq.modalities.image.decoding import CHANNEL_CHOICES, IMAGE_SUFFIXES, check_maximum
from gmvq.modalities.image.formats import is_idx
from gmvq.modalities.image.pictures import code_picture, item_picture, sheet, write_image
from gmvq.modalities.image.sources import read_source
from gmvq.modalities.tables import read_array
from gmvq.types import Signal

ARRAY_SUFFIXES = (".npy", ".npz")
"""Suffixes of array files that may hold images."""
PNG_CHANNELS = 4
"""Largest number of channels of a PNG file."""


@register
@dataclass(frozen=True)
class Image(Modality):
    """Images such as photographs, faces or scans, with any number of channels.

    Args:
        channels: Number of channels of all images; by default that of the data: 3 if any image is colored, else 1.
        face_side: Side in pixels that faces of CelebA are scaled to after the standard center crop; None otherwise.
        maximum: Value of white in float data or data of more than 8 bits, e.g. 255; None for the default of their type.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind: ClassVar[str] = "image"
    item: ClassVar[str] = "image"
    items: ClassVar[str] = "images"
    sample: ClassVar[str] = "pixel"
    wanted: ClassVar[str] = (
        "the path of a folder of images (PNG, JPEG, WebP, TIFF, ...), flat or nested, of a .npy or .npz file, or of a "
        "folder with the files of CIFAR-10 or Fashion-MNIST"
    )
    measures: ClassVar[tuple[Measure, ...]] = ImageDistortion.measures
    bundled: ClassVar[Mapping[str, Callable[[Any], Data]]] = {}
    lays_out: ClassVar[bool] = True
    window_size: ClassVar[int | None] = 64

    channels: int | None = None
    face_side: int | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if self.channels is not None:
            at_least("channels", self.channels, 1)
        check_side("face_side", self.face_side)
        check_maximum(self.maximum)

    @property
    def signal(self) -> Signal:  # noqa: D102
        if self.channels is None:
            raise ValueError("'channels' of the images must be known, got None. Use for example Image(channels=3).")
        return Signal("image", 2, self.channels, "unit")

    @property
    def suffix(self) -> str:  # noqa: D102
        return ".png" if (self.channels or 1) <= PNG_CHANNELS else ".tiff"

    def read(self, path: Path, held_out_fraction: float, memory_bytes: int) -> Data:  # noqa: D102
        channels = self.channels if self.channels in CHANNEL_CHOICES else None
        data = read_source(
            path,
            self,
            channels,
            face_side=self.face_side,
            maximum=self.maximum,
            fraction=held_out_fraction,
            memory_bytes=memory_bytes,
        )
        return self._checked(data)

    def recognizes(self, source: Path) -> bool:  # noqa: D102
        suffix = source.suffix.lower()
        return suffix in IMAGE_SUFFIXES or suffix in ARRAY_SUFFIXES or is_idx(source)

    def suits(self, file: Path) -> bool:
        """Returns whether an array has the values and axes of images: bytes (N, H, W) or (N, H, W, C)."""
        if file.suffix.lower() != ".npy":
            return True
        array = read_array(file)
        return array.dtype == np.uint8 and array.ndim in (3, 4)

    def window(self, item: Tensor, size: int | None, chance: NDArray[np.float64]) -> Tensor:
        """Cuts a square crop; pads smaller images by reflection; mirrors left to right if chance is below 1/2."""
        pixels = item.numpy()
        if size is not None:
            rows = _window(pixels.shape[1], size, chance[0])
            columns = _window(pixels.shape[2], size, chance[1])
            if isinstance(rows, slice) or isinstance(columns, slice):
                pixels = pixels[:, rows][:, :, columns]
            else:
                pixels = pixels[:, rows[:, None], columns]
        if chance[2] < 0.5:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        return torch.from_numpy(pixels)

    def distortion(self, *, quick: bool = False) -> ImageDistortion:
        """Creates an accumulator of PSNR, squared error and, unless ``quick``, structural similarity and LPIPS."""
        return ImageDistortion(structure=not quick, perceptual=None if quick else _perceptual())

    def exhibit(  # noqa: D102
        self, name: str, real: Tensor, made: Tensor | None = None, codes: Tensor | None = None
    ) -> Exhibit:
        note = ""
        if made is not None:
            distortion = self.distortion(quick=True)
            distortion.update(made.float().cpu()[None], self.signal.checked(real[None]).cpu())
            note = f"{distortion.metrics()['psnr']:.2f} dB"
        return Exhibit(
            name,
            note,
            (item_picture(self.signal.checked(real[None])[0], name),),
            () if made is None else (item_picture(made, f"{name}, reconstructed"),),
            () if codes is None else (code_picture(codes, f"Codes of {name}"),),
        )

    def write(self, path: Path, items: Sequence[Tensor], *, columns: int = 8) -> None:
        """Writes a PNG file; images of more than 4 channels, or for other suffixes, a TIFF or ``.npy`` file.

        Several images are arranged side by side on white; small ones are magnified for viewing.
        """
        write_image(path, items[0] if len(items) == 1 else sheet(items, columns))

    def _checked(self, data: Data) -> Data:
        """Returns the data with the number of channels found in them."""
        channels = data.train[0].shape[0]
        if self.channels is not None and channels != self.channels:
            raise ValueError(
                f"'channels' of {data.name} must be {channels}, as the images have, got {self.channels}. Leave it out."
            )
        return data._replace(modality=replace(self, channels=channels))


def _perceptual() -> Callable[[Tensor, Tensor], Tensor | None] | None:
    """Returns LPIPS for images that are large enough, if it is installed."""
    distance = load_lpips()
    if distance is None:
        return None
    return lambda made, real: distance(made, real) if can_compare(made.shape) else None


def _bundled(make: Callable[[Modality], Data]) -> Callable[[Image], Data]:
    def loaded(modality: Image) -> Data:
        if modality.face_side is not None:
            raise ValueError(f"'face_side' is for CelebA alone, got {modality.face_side} for bundled data. Drop it.")
        return modality._checked(make(modality))

    return loaded


Image.bundled = {"photographs": _bundled(photographs), "digits": _bundled(digits)}


def _window(length: int, crop: int, chance: float) -> slice | NDArray[np.int64]:
    """Selects the pixels of a crop along one axis; an axis that is too short is padded by reflection on both sides."""
    if length >= crop:
        start = min(int(chance * (length - crop + 1)), length - crop)
        return slice(start, start + crop)
    if length == 1:
        return np.zeros(crop, np.int64)
    period = 2 * (length - 1)
    places = (np.arange(crop) - (crop - length) // 2) % period
    return np.minimum(places, period - places)

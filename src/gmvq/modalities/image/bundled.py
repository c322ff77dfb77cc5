"""Photographs and digits from gmvq's dependencies, which need no download.

The photographs are a hand-picked selection from scikit-image and scikit-learn. Left out are drawings, text and
test patterns (page, text, logo, horse, phantom, chessboards, color wheel), a blurred frame (clock_motion), cutouts
(microaneurysms, the 25x25 faces), and motorcycle_right, which shows the scene of motorcycle_left again.
"""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import torch
from PIL import Image

from gmvq.data.items import ArrayItems, ListItems, Skipped
from gmvq.modalities.base import Data, Modality, listed
from gmvq.modalities.image.decoding import ImageError, read_image
from gmvq.modalities.installed import package_folder

_SKIMAGE = ("skimage", "data", "scikit-image")
_SKLEARN = ("sklearn", "datasets/images", "scikit-learn")

TRAIN_PHOTOGRAPHS = {
    "brick.png": _SKIMAGE,
    "camera.png": _SKIMAGE,
    "cell.png": _SKIMAGE,
    "china.jpg": _SKLEARN,
    "coins.png": _SKIMAGE,
    "flower.jpg": _SKLEARN,
    "grass.png": _SKIMAGE,
    "gravel.png": _SKIMAGE,
    "hubble_deep_field.jpg": _SKIMAGE,
    "ihc.png": _SKIMAGE,
    "moon.png": _SKIMAGE,
    "motorcycle_left.png": _SKIMAGE,
    "retina.jpg": _SKIMAGE,
    "rocket.jpg": _SKIMAGE,
}
HELD_OUT_PHOTOGRAPHS = {"astronaut.png": _SKIMAGE, "chelsea.png": _SKIMAGE, "coffee.png": _SKIMAGE}

_LARGEST_SIDE = 1024
_HELD_OUT_DIGITS = 359


def photographs(modality: Modality) -> Data:
    """Loads 17 photographs, 14 for training and 3 held out whole: astronaut, chelsea (a cat) and coffee.

    Ten are in color; the gray ones (brick, camera, cell, coins, grass, gravel, moon) are repeated to 3 channels. Only
    one with a side above 1,024 pixels (retina, 1411x1411) is halved by averaging 2x2 pixels. Sizes run from
    384x303 to 1000x872 pixels: train with ``Loader(size=...)``.

    Args:
        modality: Images of 3 channels.

    Returns:
        The data set, named ``photographs``, 3 channels, no labels. A photograph that the installed versions lack is in
        ``skipped`` and named in a warning.

    Raises:
        ModuleNotFoundError: If scikit-image or scikit-learn is not installed.
        ValueError: If one side of the split has no photographs.
    """
    skipped: list[Skipped] = []
    sides: list[ListItems] = []
    for wanted in (TRAIN_PHOTOGRAPHS, HELD_OUT_PHOTOGRAPHS):
        images, names = [], []
        for name, (package, folder, distribution) in wanted.items():
            try:
                images.append(_halved(read_image(package_folder(package, distribution) / folder / name, 3)))
                names.append(name)
            except ImageError as error:
                skipped.append(Skipped(error.path, error.reason))
        if not images:
            raise ValueError(
                f"At least one of the photographs {', '.join(wanted)} must be readable: {listed(skipped)}. "
                "Reinstall scikit-image and scikit-learn."
            )
        sides.append(ListItems(images, 2, names))
    if skipped:
        warnings.warn(f"Skipped {len(skipped)} bundled photograph(s): {listed(skipped)}.", stacklevel=2)
    return Data("photographs", sides[0], sides[1], modality, tuple(skipped))


def digits(modality: Modality) -> Data:
    """Loads the 1,797 handwritten digits of scikit-learn (UCI, 8x8 gray), 1,438 for training and 359 held out.

    The held-out digits are the last ones of the file, so the split never changes. Values 0 to 16 are scaled to 0 to
    255.

    Args:
        modality: Images of 1 channel.

    Returns:
        The data set, named ``digits``, 1 channel, labels 0 to 9.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
        ValueError: If its file is damaged.
    """
    path = package_folder("sklearn", "scikit-learn") / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            rows = np.loadtxt(file, delimiter=",", dtype=np.int64)
        images = torch.from_numpy(((rows[:, :64] * 255 + 8) // 16).astype(np.uint8)).reshape(-1, 1, 8, 8)
    except (OSError, EOFError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(f"Cannot read the digits in '{path}': {error}. Reinstall scikit-learn.") from error
    everything = ArrayItems(images, 2, torch.from_numpy(rows[:, 64].copy()))
    border = len(everything) - _HELD_OUT_DIGITS
    classes = tuple(str(digit) for digit in range(10))
    sides = everything.subset(range(border)), everything.subset(range(border, len(everything)))
    return Data("digits", *sides, modality, classes=classes)


def _halved(image: torch.Tensor) -> torch.Tensor:
    if max(image.shape[1:]) <= _LARGEST_SIDE:
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).reduce(2)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

"""The recipes: what to learn from, the model, and how to train it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gmvq.data import Data, load
from gmvq.data import digits as digits_data
from gmvq.data import photographs as photographs_data
from gmvq.data.celeba import check_side
from gmvq.models import AdversarialConfig, AutoencoderConfig
from gmvq.training import Training

PHOTOGRAPHS = "bundled:photographs"
DIGITS = "bundled:digits"
LEARNED = "learned"
"""The network of a distance of features that learns from the data of the run."""
BUNDLED_DATA = {PHOTOGRAPHS: photographs_data, DIGITS: digits_data}
"""Sources that come with the dependencies; every other source is a path."""

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
FASHION_MNIST_URL = "https://github.com/zalandoresearch/fashion-mnist"
CELEBA_URL = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


@dataclass(frozen=True)
class DataConfig:
    """What to learn from.

    Args:
        source: A path, ``bundled:photographs`` or ``bundled:digits``.
        crop: Side in pixels of the random crops for training; at most the median of the images' shorter sides. None
            for whole images.
        flip: Mirror half of the training images left to right.
        channels: 1, 3 or 4 for all images; by default what the data have. The model's channels follow.
        held_out_fraction: Share of images held out where the data have no split of their own.
        evaluated: Most held-out images to measure; None for all.
        face_side: Side in pixels to which faces of CelebA are brought after the standard centre crop; None for other
            data.
        train_limit: Learn from the first training images alone, this many; the others are left as a validation part.
            None for all.

    Raises:
        ValueError: If ``face_side`` is less than 8 or ``train_limit`` less than 1.
    """

    source: str = PHOTOGRAPHS
    crop: int | None = None
    flip: bool = False
    channels: int | None = None
    held_out_fraction: float = 0.1
    evaluated: int | None = None
    face_side: int | None = None
    train_limit: int | None = None

    def __post_init__(self) -> None:
        """Checks what no data are needed for."""
        check_side("data.face_side", self.face_side)
        if self.train_limit is not None and self.train_limit < 1:
            raise ValueError(f"'data.train_limit' must be at least 1, got {self.train_limit}. Leave it out for all.")


@dataclass(frozen=True)
class Run:
    """A whole run.

    Args:
        name: Name of the recipe.
        data: What to learn from.
        model: What the autoencoder is made of.
        training: How it is trained.
        adversarial: The discriminator that it is trained against, None for none.
        features: Where the network of a distance of features is, see :func:`gmvq.recipes.load_features`; ``learned``
            for a small one that learns from the data first; None for none.
    """

    name: str
    data: DataConfig
    model: AutoencoderConfig
    training: Training
    adversarial: AdversarialConfig | None = None
    features: str | None = None


def photos() -> Run:
    """Bundled photographs in crops of 32x32 pixels, 8x8 codes of 512: minutes on a laptop."""
    data = DataConfig(PHOTOGRAPHS, crop=32, flip=True)
    return Run("photos", data, AutoencoderConfig(), Training(steps=1200, batch_size=64))


def digits() -> Run:
    """Handwritten digits of 8x8 pixels, 4x4 codes of 64: a minute, to try things."""
    model = AutoencoderConfig(channels=1, codebook_size=64, downsampling=2)
    return Run("digits", DataConfig(DIGITS), model, Training(steps=1000, batch_size=64))


def cifar10(path: str | Path) -> Run:
    """CIFAR-10, 8x8 codes of 512.

    Args:
        path: The folder or archive of its official files, see :func:`gmvq.data.load`.
    """
    data = DataConfig(str(path), flip=True)
    return Run("cifar10", data, AutoencoderConfig(), Training(steps=2500, batch_size=64))


def fashion_mnist(path: str | Path) -> Run:
    """Fashion-MNIST, 28x28 pixels gray, 7x7 codes of 512.

    Args:
        path: The folder of its idx files.
    """
    model = AutoencoderConfig(channels=1)
    return Run("fashion-mnist", DataConfig(str(path)), model, Training(steps=2500, batch_size=64))


def celeba(path: str | Path) -> Run:
    """CelebA, centre crops of faces at 64x64 pixels, 16x16 codes of 512.

    Args:
        path: The folder that holds ``img_align_celeba``, the folder of its zip, or the zip.
    """
    data = DataConfig(str(path), flip=True, face_side=64)
    return Run("celeba", data, AutoencoderConfig(), Training(steps=2500, batch_size=32))


def folder(path: str | Path) -> Run:
    """Your own images in crops of 64x64 pixels, 16x16 codes of 512.

    Args:
        path: A folder of images, flat or nested, or any other source of :func:`gmvq.data.load`.
    """
    data = DataConfig(str(path), crop=64, flip=True)
    return Run("folder", data, AutoencoderConfig(), Training(steps=1500, batch_size=32))


BUNDLED: dict[str, Callable[[], Run]] = {"photos": photos, "digits": digits}
FROM_PATH: dict[str, Callable[[str | Path], Run]] = {
    "cifar10": cifar10,
    "fashion-mnist": fashion_mnist,
    "celeba": celeba,
    "folder": folder,
}
NAMES = (*BUNDLED, *FROM_PATH)
_WANTED = {
    "cifar10": "the folder with data_batch_1 ... data_batch_5 and test_batch (or data_batch_1.bin ..., or the archive "
    f"itself) of {CIFAR10_URL}",
    "fashion-mnist": "the folder with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    f"t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz of {FASHION_MNIST_URL}",
    "celeba": "the folder with img_align_celeba or img_align_celeba.zip (or that zip itself), and maybe "
    f"list_eval_partition.txt, of {CELEBA_URL}",
    "folder": "a folder of images (PNG, JPEG, WebP, TIFF, ...), flat or nested, or a .npy or .npz file",
}


def make(name: str, data: str | Path | None = None) -> Run:
    """A recipe by its name on the command line.

    Args:
        name: One of ``NAMES``.
        data: Path of the data, for the recipes that need one; others learn from it instead of their own data.

    Raises:
        ValueError: If there is no such recipe, or it needs a path and there is none.
    """
    if name in BUNDLED:
        recipe = BUNDLED[name]()
        return recipe if data is None else replace(recipe, data=replace(recipe.data, source=str(data)))
    if name not in FROM_PATH:
        raise ValueError(f"'recipe' must be one of {', '.join(NAMES)}, got {name!r}. Use photos to start.")
    if data is None:
        raise ValueError(f"The recipe {name} needs the path of its data: pass --data PATH, {_WANTED[name]}.")
    return FROM_PATH[name](data)


def template(name: str) -> Run:
    """A recipe by its name, with an empty path where it needs one: what it says of all else."""
    return BUNDLED[name]() if name in BUNDLED else FROM_PATH[name]("")


def load_data(config: DataConfig) -> Data:
    """Loads what a run learns from.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If there are no images, the limit exceeds those for training, or the bundled data are asked for in
            other channels or as faces.
    """
    data = _load_bundled(config) if config.source in BUNDLED_DATA else _load_path(config)
    if config.train_limit is None:
        return data
    if config.train_limit > len(data.train):
        raise ValueError(
            f"'data.train_limit' must be at most the {len(data.train):,} training images of {data.name}, got "
            f"{config.train_limit:,}. Leave it out for all."
        )
    return data._replace(train=data.train.subset(range(config.train_limit)))


def _load_path(config: DataConfig) -> Data:
    return load(
        config.source,
        channels=config.channels,
        held_out_fraction=config.held_out_fraction,
        face_side=config.face_side,
    )


def _load_bundled(config: DataConfig) -> Data:
    if config.face_side is not None:
        raise ValueError(
            f"'data.face_side' must be None for {config.source}, got {config.face_side}. It is for CelebA alone."
        )
    data = BUNDLED_DATA[config.source]()
    if config.channels not in (None, data.channels):
        raise ValueError(
            f"'data.channels' of {config.source} must be {data.channels}, got {config.channels}. Leave it out."
        )
    return data


def fitted(recipe: Run, data: Data) -> Run:
    """The run with what follows from the data: the model's channels, an absolute path, a crop most images can fill."""
    source, model, crop = recipe.data.source, recipe.model, recipe.data.crop
    if source not in BUNDLED_DATA:
        source = str(Path(source).expanduser().resolve())
    if crop is not None:
        side = int(statistics.median(min(size) for size in data.train.sizes))
        # whole tokens, at least two of them on a side
        crop = min(crop, max(side - side % model.downsampling, 2 * model.downsampling))
    config = replace(recipe.data, source=source, crop=crop)
    return replace(recipe, data=config, model=replace(model, channels=data.channels))


def changed(recipe: Run, **changes: int | None) -> Run:
    """A variant: each value goes to the part of the run that has a field of its name; None changes nothing.

    Raises:
        ValueError: If no part has such a field.

    Example:
        >>> changed(photos(), steps=100, width=32).training.steps
        100
    """
    for name, value in changes.items():
        part = next((part for part in ("training", "model", "data") if hasattr(getattr(recipe, part), name)), None)
        if part is None:
            raise ValueError(
                f"'{name}' must be a field of Training, AutoencoderConfig or DataConfig. Check its spelling."
            )
        if value is not None:
            recipe = replace(recipe, **{part: replace(getattr(recipe, part), **{name: value})})
    return recipe

"""Whole runs as Python functions: data, model and training. A variant edits one.

::

    photos() --replace--> Run --run(out)--> out/{model.safetensors, metrics.json, report.html, ...}

    def photos_small() -> Run:
        return replace(photos(), training=replace(photos().training, steps=200))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from gmvq.checks import one_of
from gmvq.data.locking import locked
from gmvq.modalities import Audio, Data, Image, Series, Text, Vectors
from gmvq.modalities.recognition import recognized
from gmvq.models import AutoencoderConfig
from gmvq.stages.codec import refit_codec
from gmvq.stages.data import DataConfig
from gmvq.stages.tokenizer import Run, TokenizerStage
from gmvq.training import Training

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
FASHION_MNIST_URL = "https://github.com/zalandoresearch/fashion-mnist"
CELEBA_URL = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def run(
    recipe: Run,
    out: str | Path,
    *,
    data: Data | None = None,
    console: Console | None = None,
    codec: bool = False,
    **how: Any,  # noqa: ANN401 (arguments of Stage.carry_out)
) -> dict[str, Any]:
    """Trains a model, measures it on held-out items, and writes all of it into a folder.

    Args:
        recipe: The run.
        out: The run's folder.
        data: The data, if they are loaded already.
        console: Output of the progress; by default standard error.
        codec: Fit the codec of its codes, too, in place of one of another tokenizer; see
            :class:`gmvq.stages.codec.CodecStage`.
        how: ``resume``, ``overwrite``, ``command`` and ``report``, see :meth:`gmvq.stages.stage.Stage.carry_out`.

    Returns:
        The content of ``metrics.json``, see :meth:`gmvq.stages.tokenizer.TokenizerStage.measure`.

    Raises:
        ValueError: If the folder holds another run, or settings of the run contradict each other.
        InUseError: If another process writes to the folder.
        OSError: If the data cannot be read or the folder cannot be written.
        NonFiniteLossError: If training diverges.
    """
    with locked(out):  # before the data are loaded
        stage = TokenizerStage(recipe, out, console, data)
        metrics = stage.carry_out(**how)
        if codec:
            refit_codec(out, stage.data, console, how.get("command"), recipe.training.device)
        return metrics


def photos(source: str | Path = "bundled:photographs") -> Run:
    """Photographs in crops of 32x32 pixels, 8x8 codes of 512: minutes on a laptop."""
    data = DataConfig(str(source), Image(), size=32, mirror=True)
    return Run("photos", data, AutoencoderConfig(), Training(steps=1200, batch_size=64))


def digits(source: str | Path = "bundled:digits") -> Run:
    """Handwritten digits of 8x8 pixels, 4x4 codes of 64: a minute, for trials."""
    model = AutoencoderConfig(modality=Image(channels=1), codebook_size=64, downsampling=2)
    return Run("digits", DataConfig(str(source), Image()), model, Training(steps=1000, batch_size=64))


def cifar10(source: str | Path) -> Run:
    """CIFAR-10, 8x8 codes of 512.

    Args:
        source: The folder or archive of its official files.
    """
    data = DataConfig(str(source), Image(), mirror=True)
    return Run("cifar10", data, AutoencoderConfig(), Training(steps=2500, batch_size=64))


def fashion_mnist(source: str | Path) -> Run:
    """Fashion-MNIST, 28x28 pixels gray, 7x7 codes of 512.

    Args:
        source: The folder of its idx files.
    """
    model = AutoencoderConfig(modality=Image(channels=1))
    return Run("fashion-mnist", DataConfig(str(source), Image()), model, Training(steps=2500, batch_size=64))


def celeba(source: str | Path) -> Run:
    """CelebA, center crops of faces at 64x64 pixels, 16x16 codes of 512.

    Args:
        source: The folder that holds ``img_align_celeba``, the folder of its zip, or the zip.
    """
    data = DataConfig(str(source), Image(face_side=64), mirror=True)
    return Run("celeba", data, AutoencoderConfig(), Training(steps=2500, batch_size=32))


def speech(source: str | Path) -> Run:
    """Spoken words in windows of half a second at 8 kHz, a code of 256 for each 4 ms.

    Args:
        source: A folder or an archive of recordings.
    """
    data = DataConfig(str(source), Audio(), size=4096)
    model = AutoencoderConfig(modality=None, codebook_size=256, downsampling=32)
    return Run("speech", data, model, Training(steps=2000, batch_size=16))


def sentences(source: str | Path = "bundled:manual") -> Run:
    """Sentences by characters, a code of 512 for each two; by default those of Python's manual."""
    model = AutoencoderConfig(modality=None, downsampling=2)
    return Run("sentences", DataConfig(str(source), Text()), model, Training(steps=1500, batch_size=32))


def series(source: str | Path = "bundled:membrane") -> Run:
    """Series in windows of 128 steps, a code of 64 for each four; by default a recording of a nerve cell."""
    data = DataConfig(str(source), Series(), size=128)
    model = AutoencoderConfig(modality=None, codebook_size=64, downsampling=4)
    return Run("series", data, model, Training(steps=1500, batch_size=32))


def table(source: str | Path = "bundled:breast-cancer") -> Run:
    """Rows of a table, a code of 32 for each; by default measures of cells (Wisconsin, 30 features, two classes)."""
    model = AutoencoderConfig(modality=None, codebook_size=32, downsampling=1)
    return Run("table", DataConfig(str(source), Vectors()), model, Training(steps=1500, batch_size=64))


def folder(source: str | Path) -> Run:
    """Your own data, of the modality of most files, in its usual windows and tokens.

    See :func:`gmvq.modalities.recognition.recognized` for how it is recognized.

    Args:
        source: A folder, flat or nested, or one file.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If no file looks like data of a modality.
    """
    modality = recognized(Path(source).expanduser())
    data = DataConfig(str(source), modality, size=modality.window_size, mirror=modality.kind == Image.kind)
    model = AutoencoderConfig(modality=None, downsampling=modality.downsampling)
    return Run("folder", data, model, Training(steps=1500, batch_size=32))


class Recipe(NamedTuple):
    """A run by name.

    Attributes:
        make: Function from the source of the data to the run; without a source it takes data of gmvq's dependencies.
        wanted: Description of the source, where the dependencies have no data; None where they do.
    """

    make: Callable[..., Run]
    wanted: str | None = None


RECIPES: dict[str, Recipe] = {
    "photos": Recipe(photos),
    "digits": Recipe(digits),
    "cifar10": Recipe(
        cifar10,
        "the folder with data_batch_1 ... data_batch_5 and test_batch (or data_batch_1.bin ..., or the archive itself) "
        f"of {CIFAR10_URL}",
    ),
    "fashion-mnist": Recipe(
        fashion_mnist,
        "the folder with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
        f"t10k-labels-idx1-ubyte.gz of {FASHION_MNIST_URL}",
    ),
    "celeba": Recipe(
        celeba,
        "the folder with img_align_celeba or img_align_celeba.zip (or that zip itself), and maybe "
        f"list_eval_partition.txt, of {CELEBA_URL}",
    ),
    "speech": Recipe(speech, "a folder or an archive of recordings (WAV, FLAC, OGG, MP3, ...)"),
    "sentences": Recipe(sentences),
    "series": Recipe(series),
    "table": Recipe(table),
    "folder": Recipe(folder, "a file or a folder of images, recordings, texts, series or tables"),
}
"""The list of all recipes."""


OF_KIND = {"image": "photos", "audio": "speech", "text": "sentences", "series": "series", "vectors": "table"}
"""The recipe that takes data for a certain kind, whatever they look like."""


def make(name: str, source: str | Path | None = None) -> Run:
    """Makes a recipe by its name on the command line.

    Args:
        name: One of :data:`RECIPES`.
        source: Path of the data. Recipes with data of their own learn from it instead.

    Raises:
        ValueError: If there is no recipe of that name, or it needs a path.
        FileNotFoundError: If the recipe looks at the data, and the path does not exist.
    """
    recipe = RECIPES[one_of("recipe", name, RECIPES)]
    if source is not None:
        return recipe.make(source)
    if recipe.wanted is not None:
        raise ValueError(f"The recipe {name} needs the path of its data: pass --data PATH, {recipe.wanted}.")
    return recipe.make()


def changed(recipe: Run, **changes: Any) -> Run:  # noqa: ANN401
    """Makes a variant: each value goes to the part of the run with a field of its name; None changes nothing.

    Raises:
        ValueError: If no part has a field of that name.

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

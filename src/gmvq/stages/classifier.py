"""Small classifiers of the data at hand, whose features measure how similar and how real items are.

::

    labeled items -------------------------------+
                                                 +--learn--> classifier, stored in a folder
    items without labels --exemplars--> tiles ---+
                                        labeled by the item they are cut from

For items without labels, the classifier recognizes which item a tile is cut from, under random tints: like exemplar
networks, it learns features from the items alone.

References:
    Discriminative Unsupervised Feature Learning with Exemplar Convolutional Neural Networks (Dosovitskiy et al., 2014),
    https://arxiv.org/abs/1406.6909
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from gmvq import hub
from gmvq.data import ArrayItems, evenly_spaced
from gmvq.data.locking import locked
from gmvq.data.writing import write_json
from gmvq.modalities import Data, Modality, fingerprint
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.stages.layout import read_json
from gmvq.stages.tiling import cut
from gmvq.training import Training
from gmvq.training.checkpoint import has_checkpoint
from gmvq.training.ranks import is_main, wait_for_ranks
from gmvq.training.tasks import ClassifierTask
from gmvq.training.trainer import learn

TINT = 0.3
"""Largest random shift of an exemplar's channels in training: without it, colors would identify the item."""
TILE = 1 << 10
"""Samples of a tile if items are large enough: 32 x 32 pixels."""
HELD_OUT = 10
"""Every tenth exemplar is held out."""
MOST = 1000
"""Largest number of items to cut exemplars from: each is a class."""
MANY = 40_000
"""Largest number of exemplars in total, so that they fit in memory for any size of items."""
LEAST = 2
"""Smallest number of items to cut exemplars from, and of exemplars per item on average."""
PLACES = 64
"""Places to which sequences are halved, so that a feature covers more than a few samples; images are halved twice."""
MARK = "data.json"

_TRAINING = Training(
    steps=1500,
    batch_size=64,
    learning_rate=2e-3,
    weight_decay=0.02,
    warmup_steps=50,
    evaluate_every=0,
    checkpoint_every=0,
    averaging_decay=0.99,
)


def learned_classifier(
    data: Data, folder: Path, steps: int | None = None, console: Console | None = None, seed: int = 0
) -> Classifier:
    """Trains a classifier of labels, or without labels of :func:`exemplars`; see :func:`classifier_of`.

    Args:
        data: Items; labeled ones are cut into tiles if they differ in size, or have odd sides.
        folder: Folder of the classifier.
        steps: Optimizer steps of training; 1,500 by default.
        console: Output of progress; by default standard error.
        seed: Seed of the initial weights and of training.

    Raises:
        ValueError: If there are too few items, or they are too small.
    """
    if not data.labelled:
        tint = 0.0 if data.signal.values == "symbols" else TINT
        return classifier_of(exemplars(data), folder, steps, console, seed, tint)
    sizes = {*data.train.sizes, *data.held_out.sizes}
    if len(sizes) != 1 or any(length % 2 for length in next(iter(sizes))):
        kind = data.modality
        side = _side([*data.train.sizes, *data.held_out.sizes], kind)
        data = data._replace(train=cut(data.train, side, kind), held_out=cut(data.held_out, side, kind))
    return classifier_of(data, folder, steps, console, seed)


def classifier_of(
    data: Data,
    folder: Path,
    steps: int | None = None,
    console: Console | None = None,
    seed: int = 0,
    tint: float = 0.0,
) -> Classifier:
    """Trains a classifier of labeled items, or loads it from its folder; on the CPU, in evaluation mode.

    Args:
        data: Items with labels, all of the same size.
        folder: Folder of the classifier; one trained on other data is replaced.
        steps: Optimizer steps of training; 1,500 by default.
        console: Output of progress; by default standard error.
        seed: Seed of the initial weights and of training.
        tint: Largest random shift of each channel of a training item, up or down. If colors identify the classes, a
            judge learns nothing else; with 0.3 it must use shapes and textures.

    Raises:
        ValueError: If the items have no labels or differ in size, or the tint is not a finite number of at least 0.
    """
    train, held_out = data.train, data.held_out
    if train.labels is None or held_out.labels is None:
        raise ValueError("'data' must have labels for a judge to learn, got none. Give data with classes.")
    if len({*train.sizes, *held_out.sizes}) != 1:
        raise ValueError(f"'data' must be {data.modality.items} of one size for a judge, got several. Crop them first.")
    console = Console(file=sys.stderr) if console is None else console
    wanted = {"fingerprint": fingerprint(data), "steps": _TRAINING.steps if steps is None else steps}
    wanted |= {"seed": seed, "tint": tint}
    if read_json(folder / MARK) == wanted:
        return hub.load(folder, Classifier)
    side = math.gcd(*train.sizes[0])
    most = 2 if data.signal.axes != 1 else max(2, (side // PLACES).bit_length() - 1)
    halvings = max(1, min(most, (side & -side).bit_length() - 1))  # as long as all sides are even
    if any(length % 2**halvings for length in train.sizes[0]):
        raise ValueError(
            f"'data' must be {data.modality.items} of even sides for a judge, got {train.sizes[0]}. Crop them first."
        )
    classes = int(torch.cat([train.labels, held_out.labels]).max()) + 1
    if is_main():
        console.print(f"Training a classifier of the {data.modality.items} ...", highlight=False)
    torch.manual_seed(seed)
    made = Classifier(ClassifierConfig(data.signal, classes, halvings=halvings))
    if made.standardization is not None:
        made.standardization.fit(train[index][None] for index in range(len(train)))
    task = ClassifierTask(made, data, tint)
    training = replace(_TRAINING, steps=wanted["steps"], seed=_TRAINING.seed + seed)
    with locked(folder):
        # an interrupted training is resumed; the checkpoint of another classifier is moved away
        going_on = read_json(folder / MARK) == {**wanted, "unfinished": True} and has_checkpoint(folder)
        wait_for_ranks(folder)  # all look at the folder before the first changes it
        if is_main():
            write_json(folder / MARK, {**wanted, "unfinished": True})
        classifier = learn(task, training, folder, resume=going_on, console=console).model
        if is_main():
            write_json(folder / MARK, wanted)
    return classifier.cpu().eval()


def exemplars(data: Data, side: int | None = None) -> Data:
    """Cuts training items into tiles, labeled by the item; every tenth tile is held out.

    Args:
        data: The items; at most a thousand of them are used, evenly spaced, and at most 40,000 tiles.
        side: Side of a tile in samples; by default tiles have 1,024 samples in total, or fewer if half of the items are
            too small for several such tiles.

    Raises:
        ValueError: If there are fewer than 2 items, or fewer than 2 tiles for each on average.
    """
    items, kind = data.train, data.modality
    if not items.axes:
        raise ValueError(f"'data' must have labels for a judge of {kind.items}, which have no tiles. Give some.")
    if len(items) > MOST:
        items = items.subset(evenly_spaced(len(items), MOST))
    side = _side(items.sizes, kind) if side is None else side
    parts, labels, names = [], [], []
    for index in (index for index, size in enumerate(items.sizes) if min(size) >= side):
        found = cut(items.subset([index]), side, kind)
        found = found.subset(evenly_spaced(len(found), MANY // len(items)))
        parts.append(found.array)
        labels += [index] * len(found)
        names += found.names
    if len(parts) < LEAST or len(labels) < LEAST * len(parts):
        raise ValueError(
            f"'data' must be at least {LEAST} {kind.items} of {LEAST} tiles each to learn features from, got "
            f"{len(labels)} tile(s) of {len(parts)}. Give more or larger {kind.items}, or labels."
        )
    tiles = ArrayItems(torch.cat(parts), items.axes, torch.tensor(labels), names)
    held_out = torch.arange(len(tiles)) % HELD_OUT == 0
    train, rest = (tiles.subset(chosen.nonzero()[:, 0].tolist()) for chosen in (~held_out, held_out))
    return Data("exemplars", train, rest, kind)


def _side(sizes: Sequence[tuple[int, ...]], modality: Modality) -> int:
    """Returns the side of tiles, a multiple of 4, for which half of the items have several tiles.

    Raises:
        ValueError: If half of the items are too small.
    """
    shorter = sorted(min(size) for size in sizes)
    side = min(round(TILE ** (1 / modality.signal.axes)), shorter[len(shorter) // 2] // 2 if shorter else 0) // 4 * 4
    if side < 4:
        raise ValueError(
            f"'data' must have sides of at least 8 {modality.sample}s to learn features from. Give larger "
            f"{modality.items}."
        )
    return side

"""Conversion of sets of items to a file of tokens, and of the file back to items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gmvq import hub
from gmvq.data import Items, batches_by_size, central
from gmvq.data.items import Size
from gmvq.evaluation import MAX_SAMPLES
from gmvq.modalities import Data
from gmvq.models import Autoencoder
from gmvq.models.modes import evaluating
from gmvq.models.tiles import Assembly, Part
from gmvq.tokenization.naming import file_of_all, targets
from gmvq.tokenization.tokens import TokenFile, TokenInfo, write_tokens

_CHECKED = 64
"""Samples along each axis of the part of the first item that is checked before the file is begun."""

OnProgress = Callable[[int], None]
"""Function that takes the number of items done."""


def tokenize(
    model: Autoencoder, items: Items, path: str | Path, *, batch_size: int = 64, on_progress: OnProgress | None = None
) -> TokenInfo:
    """Writes the codes of items to a file, whole or not at all.

    Args:
        model: The tokenizer, on any device.
        items: Items of its modality, of any sizes.
        path: The file to write.
        batch_size: Largest number of items at a time; fewer if they are large.
        on_progress: Called after each batch.

    Returns:
        The description in the file.

    Raises:
        ValueError: If the model has no codes (a VAE) or no code for each place, the items do not fit it, or the path is
            that of a folder.
        OSError: If the file cannot be written.
    """
    if Path(path).is_dir():
        raise ValueError(f"'path' must be that of a file, and {path} is a folder. Write for example codes.safetensors.")
    info = info_of(model, tuple(items.names), items.sizes)
    model.signal.checked(central(items[0], items.axes, _CHECKED)[None])
    with torch.no_grad(), evaluating(model):
        write_tokens(path, info, _encoded(model, items, batch_size, on_progress))
    return info


def info_of(model: Autoencoder, names: Sequence[str], sizes: Sequence[Size]) -> TokenInfo:
    """Describes a file of a model's codes.

    Args:
        model: The tokenizer.
        names: Names of the items.
        sizes: Lengths of their axes beside the channels.

    Raises:
        ValueError: If the model has no codes, or no code for each place.
    """
    levels = _level_sizes(model)
    has_levels = len(model.bottleneck.code_shape) > 0
    return TokenInfo(hub.fingerprint(model), levels, has_levels, model.downsampling, model.signal, names, sizes)


def detokenize(
    model: Autoencoder,
    path: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    batch_size: int = 64,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Decodes a file of tokens to files under the items' names, each cropped to its original size.

    Args:
        model: The tokenizer that made the file.
        path: The file.
        out: Folder of the files, made if it does not exist. A modality that keeps several items in a file, as lines of
            text, writes one file, and this may be its path.
        force: Decode tokens of another tokenizer, too. The items will be wrong unless the decoders agree.
        batch_size: Largest number of items at a time; fewer if they are large.
        on_progress: Called after each batch.

    Returns:
        The files, in the order of the items.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is damaged, another tokenizer's, or would write outside the folder.
        OSError: If a file cannot be written.
    """
    tokens = TokenFile(path)
    _check_fits(model, tokens, force=force)
    modality, out = model.modality, Path(out)
    if modality.several:
        file = file_of_all(out, f"items{modality.suffix}")
        modality.write(file, [item for _, item in _decoded(model, tokens, batch_size, on_progress)])
        return [file]
    files = targets(out, tokens.info.names, modality.suffix)
    for index, item in _decoded(model, tokens, batch_size, on_progress):
        modality.write(files[index], [item])
    return files


def join(data: Data) -> Items:
    """Joins both sides of a data set's split, sorted by name.

    Names that both sides use get the prefix ``train/`` or ``held_out/``.
    """
    if data.train is data.held_out:
        return data.train
    sides = (("train", data.train), ("held_out", data.held_out))
    shared = not set(data.train.names).isdisjoint(data.held_out.names)
    places = [
        (part, index, f"{side}/{name}" if shared else name)
        for side, part in sides
        for index, name in enumerate(part.names)
    ]
    if not shared:
        places.sort(key=lambda place: (int(place[2]) if place[2].isdecimal() else 0, place[2]))
    return _Joined(places)


class _Joined(Items):
    """Items of several sets in one order."""

    def __init__(self, places: Sequence[tuple[Items, int, str]]) -> None:
        self._places = list(places)
        self.axes = places[0][0].axes
        self.names = [name for _, _, name in places]
        self.labels = None

    def __getitem__(self, index: int) -> Tensor:
        part, place, _ = self._places[index]
        return part[place]

    def let_go(self, index: int) -> None:
        part, place, _ = self._places[index]
        part.let_go(place)

    @property
    def sizes(self) -> list[Size]:
        sizes = {id(part): part.sizes for part in {id(part): part for part, _, _ in self._places}.values()}
        return [sizes[id(part)][place] for part, place, _ in self._places]

    def subset(self, indices: Iterable[int]) -> Items:
        return _Joined([self._places[index] for index in indices])


def _check_fits(model: Autoencoder, tokens: TokenFile, *, force: bool) -> None:
    """Checks that tokens are of this tokenizer; ``force`` allows another one with codes of the same form.

    Raises:
        ValueError: If they are not.
    """
    mark, info = hub.fingerprint(model), tokens.info
    if info.tokenizer != mark and not force:
        raise ValueError(
            f"{tokens.path} was made by the tokenizer {info.tokenizer[:12]!r}, this one is {mark[:12]}. Decode with "
            "the run that made it, or pass --force (force=True)."
        )
    own = (_level_sizes(model), model.downsampling, model.signal)
    if (info.codebook_sizes, info.downsampling, info.signal) != own:
        raise ValueError(
            f"{tokens.path} has codebooks of {info.codebook_sizes}, tokens of {info.downsampling} samples and "
            f"{info.signal}, the tokenizer {own[0]}, {own[1]} and {own[2]}. Decode with the run that made it."
        )


def _encoded(
    model: Autoencoder, items: Items, batch_size: int, on_progress: OnProgress | None
) -> Iterator[tuple[list[int], Tensor]]:
    done = 0
    for batch in batches_by_size(items, batch_size):
        first = items[batch[0]]
        most = max(1, MAX_SAMPLES // math.prod(model.signal.size(first)))
        for start in range(0, len(batch), most):
            indices = batch[start : start + most]
            chosen = [items[index] for index in indices]  # one alone is not copied: it may be large
            yield indices, model.encode((torch.stack(chosen) if len(chosen) > 1 else chosen[0][None]).to(model.device))
            done += len(indices)
            if on_progress is not None:
                on_progress(done)


def _decoded(
    model: Autoencoder, tokens: TokenFile, batch_size: int, on_progress: OnProgress | None
) -> Iterator[tuple[int, Tensor]]:
    """Yields each item as it is stored, with its index, in order."""
    done = 0
    with torch.no_grad(), evaluating(model):
        for indices in _blocks(tokens.info, batch_size):
            codes = torch.stack([tokens[index] for index in indices]).to(model.device)
            made = Assembly(len(codes), model.size_of(codes))
            for places, part in model.decode_parts(codes):
                made.put(Part(places, model.signal.stored(part)))
            for index, item in zip(indices, made.items, strict=True):
                yield index, item[(..., *(slice(length) for length in tokens.info.sizes[index]))].cpu()
            done += len(indices)
            if on_progress is not None:
                on_progress(done)


def _blocks(info: TokenInfo, batch_size: int) -> Iterator[list[int]]:
    """Yields runs of consecutive items with equal grids of tokens, few enough to decode together."""
    grids, block = info.grids, []
    for index, grid in enumerate(grids):
        most = max(1, min(batch_size, MAX_SAMPLES // (math.prod(grid) * info.downsampling ** len(grid))))
        if block and (grids[block[0]] != grid or len(block) >= most):
            yield block
            block = []
        block.append(index)
    yield block


def _level_sizes(model: Autoencoder) -> tuple[int, ...]:
    if model.codebook_size is None:
        raise ValueError(
            "This model is a VAE (quantizer 'none'): it has no codes. Train one with --quantizer gaussian-mixture."
        )
    if not model.has_code_maps:
        raise ValueError(
            "This model has codes of several scales (quantizer 'hierarchical'), and a file of tokens has them for each "
            "place. Train one with another --quantizer."
        )
    return model.level_sizes

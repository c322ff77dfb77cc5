"""Sets of images become a file of tokens, and the file becomes images again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gmvq import hub
from gmvq.data import Data, Images, batches_by_size
from gmvq.evaluation import MAX_PIXELS
from gmvq.models import Autoencoder
from gmvq.models.modes import evaluating
from gmvq.tokenization.pictures import inside, png_names, write_png
from gmvq.tokenization.tokens import TokenFile, TokenInfo, write_tokens


def tokenize(
    model: Autoencoder,
    images: Images,
    path: str | Path,
    *,
    batch_size: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> TokenInfo:
    """Writes the codes of images to a file, whole or not at all.

    Args:
        model: The tokenizer, on any device.
        images: The images, of any sizes.
        path: The file to write.
        batch_size: Most images at a time; fewer if they are large.
        on_progress: Called with the number of images done, after each batch.

    Returns:
        What the file says of itself.

    Raises:
        ValueError: If the model has no codes (a VAE) or not one for each place, or the images' channels do not fit it.
        OSError: If the file cannot be written.
    """
    size, names, sizes = _codebook_size(model), tuple(images.names), tuple(images.sizes)
    info = TokenInfo(hub.fingerprint(model), size, model.downsampling, names, sizes)
    if images.channels != model.config.channels:
        raise ValueError(
            f"'images' must have the model's {model.config.channels} channels, got {images.channels}. "
            f"Load them with channels={model.config.channels}."
        )
    with torch.no_grad(), evaluating(model):
        write_tokens(path, info, _encoded(model, images, batch_size, on_progress))
    return info


def detokenize(
    model: Autoencoder,
    path: str | Path,
    folder: str | Path,
    *,
    force: bool = False,
    batch_size: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Decodes a file of tokens to PNG files under the images' names, each cropped to its original size.

    Args:
        model: The tokenizer that made the file.
        path: The file.
        folder: Where to; made if it is not there.
        force: Decode although the tokens are another tokenizer's. The images will be wrong unless the decoders agree.
        batch_size: Most images at a time; fewer if they are large.
        on_progress: Called with the number of images done, after each batch.

    Returns:
        The files, in the order of the images.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it is damaged, another tokenizer's, or would write outside the folder.
    """
    size, tokens = _codebook_size(model), TokenFile(path)
    mark = hub.fingerprint(model)
    if tokens.info.tokenizer != mark and not force:
        raise ValueError(
            f"{path} was made by the tokenizer {tokens.info.tokenizer[:12]}, this one is {mark[:12]}. "
            "Decode with the run that made it, or pass --force (force=True)."
        )
    if (tokens.info.codebook_size, tokens.info.downsampling) != (size, model.downsampling):
        raise ValueError(
            f"{path} has K = {tokens.info.codebook_size} and downsampling {tokens.info.downsampling}, the tokenizer "
            f"{size} and {model.downsampling}. Decode with the run that made it."
        )
    targets = [inside(Path(folder), name) for name in png_names(tokens.info.names)]
    done = 0
    with torch.no_grad(), evaluating(model):
        for indices in _blocks(tokens.info, batch_size):
            codes = torch.stack([tokens[index] for index in indices])
            for index, image in zip(indices, model.decode(codes.to(_device(model))), strict=True):
                height, width = tokens.info.sizes[index]
                write_png(targets[index], image[:, :height, :width])
            done += len(indices)
            if on_progress is not None:
                on_progress(done)
    return targets


def join(data: Data) -> Images:
    """All images of a data set, whatever its split, sorted by name.

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


class _Joined(Images):
    """Images of several sets in one order."""

    def __init__(self, places: Sequence[tuple[Images, int, str]]) -> None:
        self._places = list(places)
        self.channels = places[0][0].channels
        self.names = [name for _, _, name in places]
        self.labels = None

    def __getitem__(self, index: int) -> Tensor:
        part, place, _ = self._places[index]
        return part[place]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        sizes = {id(part): part.sizes for part in {id(part): part for part, _, _ in self._places}.values()}
        return [sizes[id(part)][place] for part, place, _ in self._places]

    def subset(self, indices: Iterable[int]) -> Images:
        return _Joined([self._places[index] for index in indices])


def _encoded(
    model: Autoencoder, images: Images, batch_size: int, on_progress: Callable[[int], None] | None
) -> Iterator[tuple[list[int], Tensor]]:
    done = 0
    for batch in batches_by_size(images, batch_size):
        height, width = images[batch[0]].shape[1:]
        most = max(1, MAX_PIXELS // (height * width))
        for start in range(0, len(batch), most):
            indices = batch[start : start + most]
            yield indices, model.encode(torch.stack([images[index] for index in indices]).to(_device(model)))
            done += len(indices)
            if on_progress is not None:
                on_progress(done)


def _blocks(info: TokenInfo, batch_size: int) -> Iterator[list[int]]:
    """Runs of neighbouring images with one number of tokens, few enough to decode together."""
    grids, block = info.grids, []
    for index, (height, width) in enumerate(grids):
        most = max(1, min(batch_size, MAX_PIXELS // (height * width * info.downsampling**2)))
        if block and (grids[block[0]] != grids[index] or len(block) >= most):
            yield block
            block = []
        block.append(index)
    yield block


def _codebook_size(model: Autoencoder) -> int:
    if model.codebook_size is None:
        raise ValueError(
            "This model is a VAE (quantizer 'none'): it has no codes. Train one with --quantizer gaussian-mixture."
        )
    if not model.has_code_maps:
        raise ValueError(
            "This model has codes of several scales (quantizer 'hierarchical'), and a file of tokens has one for each "
            "place. Train one with another --quantizer."
        )
    return model.codebook_size


def _device(model: Autoencoder) -> torch.device:
    return next(model.parameters()).device

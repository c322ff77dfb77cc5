"""Images of one size for a prior: as they are, or cut into tiles of whole tokens."""

from __future__ import annotations

import torch

from gmvq.data import ArrayImages, Data, Images
from gmvq.models import Autoencoder


def tiled(data: Data, crop: int | None, tokenizer: Autoencoder) -> Data:
    """Images of one size: as they are, or cut into tiles of whole tokens.

    Args:
        data: The images.
        crop: Side of the crops that the tokenizer saw; None if it saw whole images.
        tokenizer: Whose tokens they must have.

    Raises:
        ValueError: If no image is as large as a tile, or as a token.
    """
    side = tile_side(data, crop, tokenizer)
    return data if side is None else data._replace(train=cut(data.train, side), held_out=cut(data.held_out, side))


def tile_side(data: Data, crop: int | None, tokenizer: Autoencoder) -> int | None:
    """Side of the tiles that :func:`tiled` cuts, None where images stay as they are.

    Raises:
        ValueError: If no image is as large as a token.
    """
    sizes = {*data.train.sizes, *data.held_out.sizes}
    token = tokenizer.downsampling
    if crop is None and len(sizes) == 1 and not any(length % token for length in next(iter(sizes))):
        return None
    side = min(min(size) for size in sizes) if crop is None else crop
    side -= side % token
    if side < 1:
        raise ValueError(f"The images must have sides of at least {token} pixels, those of a token. Leave others out.")
    return side


def cut(images: Images, side: int) -> ArrayImages:
    """Square tiles side by side of each image that is large enough, with its label, named ``image/top-left``.

    Args:
        images: The images.
        side: Side of a tile in pixels.

    Raises:
        ValueError: If none is.
    """
    tiles, names, places = [], [], []
    for index, (name, (height, width)) in enumerate(zip(images.names, images.sizes, strict=True)):
        if min(height, width) < side:
            continue
        image = images[index]
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                tiles.append(image[:, top : top + side, left : left + side])
                names.append(f"{name}/{top}-{left}")
                places.append(index)
    if not tiles:
        raise ValueError(f"No image has a side of {side} pixels, that of the tokenizer's crops. Give larger images.")
    labels = None if images.labels is None else images.labels[torch.tensor(places)]
    return ArrayImages(torch.stack(tiles), labels, names)

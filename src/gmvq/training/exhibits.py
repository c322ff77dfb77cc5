"""What a page shows of a model: held-out images beside their reconstructions, maps of codes and doubt, the codebook.

Each ``*_section`` returns what ``report_template.html`` asks for under these names.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gmvq.data.images import Images
from gmvq.metrics.counting import CodeCounts
from gmvq.metrics.distortion import psnr
from gmvq.models.autoencoder import Autoencoder
from gmvq.training import figures
from gmvq.training.figures import Picture

PHOTOGRAPHS, SMALL_IMAGES = 4, 24
"""Images shown when the first is a photograph, and when it is small."""
MAPS, SMALL_MAPS = 2, 12
"""Images of which the codes are shown."""
GREATEST_SIDE = 640
"""Pixels: of larger images the centre is shown, so that the page stays below about 3 MB."""
COUNTED_SIDE, COUNTED_PIXELS = 1024, 4_000_000
"""Held-out pixels encoded for the use of the codebook when no counts are given: of each image, and in all."""
DETAIL = 64
"""Pixels: side of the detail of a photograph."""
TILES = 1024
"""Most codes drawn as tiles."""
DECODED = 1 << 16
"""Most codes decoded: of a larger codebook the most used."""
UNDECODED = (128, 128, 128)
"""Colour of a code that was not decoded."""


class Shown(NamedTuple):
    """An image and what the model makes of it.

    Attributes:
        name: Its name.
        image: uint8 ``(C, H, W)``.
        reconstruction: Float in [0, 1], ``(C, H, W)``, from hard codes.
        codes: Codes ``(h, w)``, or None where there is not one for each place.
        entropy: Posterior entropy in nats ``(h, w)``, or None without a posterior.
        cropped: True if only the centre of the image is shown.
    """

    name: str
    image: Tensor
    reconstruction: Tensor
    codes: Tensor | None
    entropy: Tensor | None
    cropped: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def is_small(self) -> bool:
        """True if the image is to be magnified without smoothing."""
        return figures.is_small(*self.size)

    def picture_of(self, what: str, array: np.ndarray, *, lossless: bool) -> Picture:
        """Encodes a view of this image, named after it."""
        return figures.picture(array, f"{what}: {self.name}", lossless=lossless)


class Codebook(NamedTuple):
    """The codes of a model, decoded: all K, or the most used of a large codebook.

    Attributes:
        codes: Those that were decoded, in ascending order ``(D,)``.
        tiles: What each of them looks like among its own kind, ``(D, C, t, t)`` in [0, 1].
        colours: A colour for each of them, and one for all other codes, uint8 ``(D + 1, 3)``.
        counts: Held-out tokens of each of them ``(D,)``.
        times: Held-out tokens of each code of the codebook that has any ``(U,)``.
        size: Number of codes K.
    """

    codes: Tensor
    tiles: Tensor
    colours: np.ndarray
    counts: Tensor
    times: Tensor
    size: int

    def places(self, codes: Tensor) -> Tensor:
        """Place of each of some codes in ``codes`` and ``colours``, of the same shape."""
        return _places(self.codes, codes)


def show_images(model: Autoencoder, images: Images) -> list[Shown]:
    """Reconstructs a few images, spread evenly over ``images``."""
    if len(images) == 0:
        return []
    number = min(SMALL_IMAGES if figures.is_small(*images[0].shape[1:]) else PHOTOGRAPHS, len(images))
    places = [round(place * (len(images) - 1) / max(number - 1, 1)) for place in range(number)]
    names = list(getattr(images, "names", None) or [])
    return [_show(model, images[place], names[place] if place < len(names) else f"image {place}") for place in places]


def _show(model: Autoencoder, image: Tensor, name: str) -> Shown:
    height, width = image.shape[1:]
    image = _centre(image, GREATEST_SIDE)
    batch = image[None].to(_device(model))
    reconstruction = model.reconstruct(batch)[0].float().clamp(0, 1).cpu()
    codes = model.encode(batch)[0].cpu() if model.has_code_maps else None
    entropy = _entropy(model, model.latents(batch)[0]).cpu() if model.bottleneck.has_posterior else None
    return Shown(name, image.cpu(), reconstruction, codes, entropy, max(height, width) > GREATEST_SIDE)


def _centre(image: Tensor, side: int) -> Tensor:
    top, left = (max(0, length - side) // 2 for length in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def _device(model: Autoencoder) -> torch.device:
    return next(model.parameters()).device


def _entropy(model: Autoencoder, latents: Tensor) -> Tensor:
    rows = latents.reshape(-1, latents.shape[-1])
    at_once = max(1, 2**24 // (model.bottleneck.codebook_size or 1))  # the responsibilities take 64 MB at a time
    parts = [model.bottleneck.posterior(part).entropy for part in rows.split(at_once)]
    return torch.cat(parts).reshape(latents.shape[:-1])


def count_codes(model: Autoencoder, images: Images) -> Tensor:
    """Counts the codes of as many held-out images as 4 million pixels hold: ``(K,)``, sparse where K is huge."""
    size = model.bottleneck.codebook_size
    assert size is not None
    counts, pixels = CodeCounts(size), 0
    for place in range(len(images)):
        image = _centre(images[place], COUNTED_SIDE)
        pixels += image[0].numel()
        if place and pixels > COUNTED_PIXELS:
            break
        counts.add(model.encode(image[None].to(_device(model))))
    return counts.counts


def decode_codebook(model: Autoencoder, counts: Tensor) -> Codebook:
    """Decodes each code repeated on 3 x 3 tokens; its tile is the middle, or all of it if a token is under 4 pixels.

    Args:
        model: The model.
        counts: Held-out tokens of each code ``(K,)``, sparse where K is huge.
    """
    side, chosen, counts = model.downsampling, _decoded_codes(counts.cpu()), counts.cpu()
    codes, tiles = chosen.to(_device(model)), []
    for some in codes.split(64):
        decoded = model.decode(some[:, None, None].expand(-1, 3, 3)).float().clamp(0, 1).cpu()
        tiles.append(decoded[..., side : 2 * side, side : 2 * side] if side >= 4 else decoded)
    tiles = torch.cat(tiles)
    seen, times = _seen(counts)
    colours = np.append(figures.code_colours(model.bottleneck.decode(codes), tiles), [UNDECODED], axis=0)
    of_chosen = times.new_zeros(len(chosen) + 1).scatter_(0, _places(chosen, seen), times)[:-1]
    return Codebook(chosen, tiles, colours.astype(np.uint8), of_chosen, times, len(counts))


def _places(among: Tensor, codes: Tensor) -> Tensor:
    """Place of each code among sorted ones; their number for a code that is not there."""
    places = torch.searchsorted(among, codes)
    return torch.where(among[places.clamp_max(len(among) - 1)] == codes, places, len(among))


def _seen(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Codes with a count above 0 in ascending order, and their counts."""
    if counts.is_sparse:
        return counts.indices()[0], counts.values()
    seen = counts.nonzero()[:, 0]
    return seen, counts[seen]


def _decoded_codes(counts: Tensor) -> Tensor:
    """All codes of a small codebook, the most used of a large one, in ascending order."""
    if len(counts) <= DECODED:
        return torch.arange(len(counts))
    seen, times = _seen(counts)
    kept = seen[times.argsort(descending=True, stable=True)[:DECODED]].sort().values
    return kept if len(kept) else torch.arange(DECODED)


def pairs_section(shown: list[Shown], downsampling: int) -> dict[str, Any]:
    """Originals beside reconstructions."""
    small = all(each.is_small for each in shown)
    pairs = []
    for each in shown:
        height, width = each.size
        pairs.append(
            {
                "name": each.name,
                "caption": _caption(each, small=small),
                "original": each.picture_of("Original", figures.pixels(each.image), lossless=small),
                "reconstruction": each.picture_of(
                    "Reconstruction", figures.pixels(each.reconstruction), lossless=small
                ),
                "details": None if small else _details(each),
                "detail_width": _detail_width(height / width),
            }
        )
    intro = f"The original, and what comes back from one token for each {downsampling} × {downsampling} pixels."
    if not small:
        intro += f" The details, the original first, are the {DETAIL} × {DETAIL} pixels with the greatest error."
    return {"pairs": pairs, "small": small, "pairs_intro": intro}


def _detail_width(aspect: float) -> str:
    """CSS width of a column of two squares that is as tall as the two pictures beside it, all with gaps of 0.9rem."""
    share = aspect / (4 + aspect)
    return f"max(6rem, 100% * {share:.4f} - {1.8 * share + 1.8 / (4 + aspect):.4f}rem)"


def _caption(shown: Shown, *, small: bool) -> str:
    decibels = psnr(shown.reconstruction[None].double(), shown.image[None].double() / 255).item()
    quality = f"{decibels:.1f} dB" if math.isfinite(decibels) else "no error"
    if small:
        return quality
    height, width = shown.size
    tokens = "" if shown.codes is None else f" · {shown.codes.numel():,} tokens"
    centre = ", the centre of a larger image" if shown.cropped else ""
    return f"{width} × {height} pixels{centre}{tokens} · PSNR {quality}"


def _details(shown: Shown) -> tuple[Picture, Picture] | None:
    """The window where the reconstruction is worst, of the original and of the reconstruction."""
    if min(shown.size) < DETAIL:
        return None
    error = (shown.reconstruction - shown.image.float() / 255).square().mean(0)
    means = functional.avg_pool2d(error[None, None], DETAIL, stride=8)[0, 0]
    top, left = (8 * place for place in divmod(int(means.argmax()), means.shape[1]))
    window = (slice(None), slice(top, top + DETAIL), slice(left, left + DETAIL))
    return (
        shown.picture_of("Detail of the original", figures.pixels(shown.image[window]), lossless=True),
        shown.picture_of("Detail of the reconstruction", figures.pixels(shown.reconstruction[window]), lossless=True),
    )


def maps_section(shown: list[Shown], codebook: Codebook | None, downsampling: int) -> dict[str, Any]:
    """Maps of the codes over images and, for a mixture, of the posterior's entropy."""
    small = all(each.is_small for each in shown)
    chosen = [] if codebook is None else shown[: SMALL_MAPS if small else MAPS]
    maximum = max((float(each.entropy.max()) for each in chosen if each.entropy is not None), default=0.0)
    lossless = small or downsampling >= 4  # a map of single pixels is as large as a photograph
    maps = []
    for each in chosen:
        assert codebook is not None
        assert each.codes is not None
        caption = f"{each.codes.unique().numel():,} different codes"
        caption += "" if small else f" in {each.codes.numel():,} tokens"
        painted = figures.code_map(codebook.places(each.codes), codebook.colours, downsampling, each.size)
        heat = None
        if each.entropy is not None:
            caption += f" · {each.entropy.mean().item():.2f} nats"
            heat = figures.heat_map(each.entropy, maximum, downsampling, each.size)
            heat = each.picture_of("Heat map of the posterior entropy", heat, lossless=lossless)
        maps.append(
            {
                "name": each.name,
                "caption": caption,
                "original": each.picture_of("Original", figures.pixels(each.image), lossless=small),
                "codes": each.picture_of("Map of the codes", painted, lossless=lossless),
                "entropy": heat,
            }
        )
    has_heat = any(each["entropy"] for each in maps)
    bar = figures.picture(figures.colour_bar(), "Colour bar from sure to unsure") if has_heat else None
    intro = _maps_intro(codebook, has_heat=has_heat) if codebook else ""
    return {"maps": maps, "maps_intro": intro, "bar": bar, "bar_maximum": f"{maximum:.2f}"}


def _maps_intro(codebook: Codebook, *, has_heat: bool) -> str:
    intro = (
        "Each token in the colour of its code. The principal axes of the codebook became lightness and the two "
        "opponent colours of a perceptual colour space, so near colours are near codes."
    )
    if len(codebook.codes) < codebook.size:
        intro += " Codes that the held-out images use too rarely to be decoded here are gray."
    if has_heat:
        intro += (
            f" The heat map is the entropy of the posterior over codes: 0 nats where one code explains the token, "
            f"{math.log(codebook.size):.2f} nats where any of the {codebook.size:,} would do."
        )
    return intro


def codebook_section(codebook: Codebook) -> dict[str, Any]:
    """How often each code is used, and what it looks like."""
    counts, size, decoded = codebook.counts.double(), codebook.size, len(codebook.codes)
    times = codebook.times.double()
    total, used = times.sum().item(), len(times)
    shares = times / max(total, 1)
    greatest = shares.max().item() if used else 0.0
    text = f"Share of tokens of each of the {size} codes, sorted: {used} are used and {size - used} never"
    kept = counts.argsort(descending=True, stable=True)[:TILES].sort().values
    columns = 32 if len(kept) > 128 else 16 if len(kept) > 32 else 8
    sheet = figures.tile_sheet(codebook.tiles[kept], counts[kept] > 0, columns)
    dead = "" if bool((counts[kept] > 0).all()) else ", codes never used faint and last"
    which = "Each code" if size <= TILES else f"The {len(kept):,} most used of {size:,} codes, each"
    return {
        # a chart has one place for each code
        "chart": figures.usage_chart(counts, text) if total and decoded == size else "",
        "facts": [
            ("Codes", f"{size:,}"),
            ("Used", f"{used:,} ({100 * used / size:.1f} %)"),
            ("Dead", f"{size - used:,}"),
            ("Perplexity", f"{math.exp(-torch.special.xlogy(shares, shares).sum().item()):,.1f}"),
            ("Most used code", f"{100 * greatest:.2g} % of tokens"),
            ("Counted over", f"{total:,.0f} tokens"),
        ],
        "sheet": figures.picture(sheet, f"{len(kept)} codes decoded", lossless=codebook.tiles.shape[-1] <= 9),
        "sheet_width": f"{columns * 3}rem",
        "sheet_caption": f"{which} repeated on 3 × 3 tokens and decoded: dark above, light below{dead}.",
    }

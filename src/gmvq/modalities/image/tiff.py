"""TIFF files: their tags, and the samples that Pillow does not support.

::

    file --read_page--> Page (size, orientation, samples, white)   Pillow ignores some of these
    file, Page --read_samples--> (H, W, samples)                   floats in color, 16 bits with alpha, ...
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count, islice
from math import prod
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 274
_REDUCED_OR_MASK = 1 | 4  # of NewSubfileType
_COLORS = {0: 1, 1: 1, 2: 3}
"""Samples per color by photometric interpretation: 0 is white, 0 is black, RGB."""
_OTHER_COLORS = 4
"""Largest number of samples of colors that only Pillow reads: CMYK."""
_UNSPECIFIED, _PREMULTIPLIED, _STRAIGHT = 0, 1, 2
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_MOST_EXTRA, _MOST_PAGES = 3, 10_000
_UNSAID = logging.NullHandler()
"""Handler for tifffile's log of damaged files, which would appear on the terminal: they raise errors as well."""


class Page(NamedTuple):
    """The picture of a TIFF file, as stored.

    Attributes:
        number: Index of its page, from 0.
        height: Rows in pixels, before the orientation.
        width: Columns in pixels, before the orientation.
        orientation: 1 to 8, as in EXIF.
        photometric: 0 for gray with 0 as white, 1 for gray with 0 as black, 2 for RGB, others for other colors.
        alpha: Index of the alpha sample, or None.
        premultiplied: True if the colors are already multiplied by alpha.
        white: Value of white: 1 for floats, the largest of unsigned integers up to 16 bits, None if it is not known.
        misread: True if Pillow reads it, but incorrectly: signed integers of up to 8 bits, 16 bits in planes.
    """

    number: int
    height: int
    width: int
    orientation: int
    photometric: int
    alpha: int | None
    premultiplied: bool
    white: float | None
    misread: bool

    @property
    def gray(self) -> bool:
        """True if a pixel has one value besides alpha."""
        return self.photometric in (0, 1)


def is_tiff(file: BinaryIO) -> bool:
    """Returns whether a file starts like TIFF or BigTIFF."""
    file.seek(0)
    return file.read(4) in _SIGNATURES


def read_page(file: BinaryIO) -> Page:
    """Reads the tags of a TIFF file's picture; reduced copies and masks are ignored.

    Raises:
        ValueError: If the file holds several pictures, or samples of unknown meaning.
        Exception: Whatever tifffile raises for a damaged file.
    """
    with _open(file) as tiff:
        pages = list(enumerate(islice(_pages(tiff), _MOST_PAGES)))
        if not pages:
            raise ValueError("it holds no page: it is damaged or cut off")
        pictures = [pair for pair in pages if not int(pair[1].subfiletype) & _REDUCED_OR_MASK] or pages[:1]
        number, page = pictures[0]
        of_imagej = int((tiff.imagej_metadata or {}).get("images", 1))
        number_of_pages = max(len(pictures), of_imagej, int(page.imagedepth))
    if number_of_pages > 1:
        raise ValueError(several_pages(number_of_pages))
    strips = prod(page.chunked)
    if 0 < len(page.dataoffsets) < strips:  # readers would fill the missing ones with black
        raise ValueError(f"it is damaged or cut off: it holds {len(page.dataoffsets)} of {strips} strips or tiles")
    alpha, premultiplied = _find_alpha(page)
    orientation = page.tags.get(_ORIENTATION)
    turn = orientation.value if orientation is not None and orientation.value in range(1, 9) else 1
    kind, bits = int(page.sampleformat), int(page.bitspersample)
    white = {_UNSIGNED: 2.0**bits - 1 if bits <= 16 else None, _FLOAT: 1.0}.get(kind)
    return Page(
        number=number,
        height=page.imagelength,
        width=page.imagewidth,
        orientation=turn,
        photometric=int(page.photometric),
        alpha=alpha,
        premultiplied=premultiplied,
        white=white,
        misread=(kind == _SIGNED and bits <= 8) or (bits == 16 and _is_planar(page) and int(page.compression) == 1),
    )


def read_samples(file: BinaryIO, page: Page) -> NDArray[np.generic]:
    """Decodes a gray or RGB picture, without conversion.

    Returns:
        ``(H, W, C)`` of the file's type, C = 1 or 3, and one more with alpha.

    Raises:
        ValueError: If the colors are neither gray nor RGB.
        Exception: Whatever tifffile raises for a damaged file.
    """
    if page.photometric not in _COLORS:
        raise ValueError(
            "its combination of colors and number of bits is unknown here: save it as RGB with 8 or 16 bits"
        )
    with _open(file) as tiff:
        stored = tiff.pages[page.number]
        values = np.asarray(stored.asarray())
        if values.ndim == 2:
            values = values[..., None]
        elif _is_planar(stored):
            values = values.transpose(1, 2, 0)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    wanted = _COLORS[page.photometric] + (page.alpha is not None)
    if values.shape[:2] != (page.height, page.width) or values.shape[2] < wanted:
        raise ValueError(f"it holds values of shape {values.shape}, not those that its header states")
    return values[..., :wanted]


def several_pages(count: int) -> str:
    """Returns the reason why a file of several pages is not read."""
    return f"it holds {count} pages: save each in a file of its own, or all of them as one .npy"


def _open(file: BinaryIO) -> Any:  # noqa: ANN401  (tifffile has few types)
    import tifffile  # comes with scikit-image; only these files need it

    logging.getLogger("tifffile").addHandler(_UNSAID)
    file.seek(0)
    return tifffile.TiffFile(file)


def _pages(tiff: Any) -> Iterator[Any]:  # noqa: ANN401  (as above)
    """Yields the pages of a file, up to the first link back to an earlier page."""
    seen: set[int] = set()
    for number in count():
        try:
            page = tiff.pages[number]
        except IndexError:
            return
        if page.offset in seen:
            return
        seen.add(page.offset)
        yield page


def _is_planar(page: Any) -> bool:  # noqa: ANN401  (as above)
    """Returns whether the samples are stored in separate planes."""
    return page.samplesperpixel > 1 and int(page.planarconfig) == 2


def _find_alpha(page: Any) -> tuple[int | None, bool]:  # noqa: ANN401  (as above)
    """Returns the index of the alpha sample, None if there is none, and whether colors are multiplied by it."""
    colors = _COLORS.get(int(page.photometric), _OTHER_COLORS)
    extra = page.samplesperpixel - colors
    stated = tuple(int(kind) for kind in page.extrasamples)
    # RGB with a fourth, undeclared sample is RGBA by convention
    kind = stated[0] if stated else (_STRAIGHT if colors == 3 and extra == 1 else _UNSPECIFIED)
    if extra > _MOST_EXTRA or (colors == 1 and extra and (extra > 1 or kind == _UNSPECIFIED)):
        raise ValueError(
            f"it holds {page.samplesperpixel} samples for each pixel, whose meaning it does not say: save gray, RGB, "
            "either with alpha, or any number of channels as .npy"
        )
    return (colors if extra > 0 and kind != _UNSPECIFIED else None), kind == _PREMULTIPLIED

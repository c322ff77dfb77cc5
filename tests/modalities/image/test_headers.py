"""One law: what a file says of itself is what is decoded, and that is what was saved."""

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from gmvq.modalities.image.decoding import read_header, read_image

SIDES = (6, 10)
LOSSY = {"jpg": 24, "mpo": 24, "avif": 8}
PILLOW_MODES = {  # what each format can hold, of the modes below
    "png": ["1", "L", "LA", "I;16", "RGB", "RGBA", "P", "P+gray", "P+transparent"],
    "jpg": ["L", "RGB", "CMYK"],
    "webp": ["RGB", "RGBA"],
    "gif": ["1", "L", "P", "P+gray", "P+transparent"],
    "bmp": ["1", "L", "RGB", "P", "P+gray"],
    "tif": ["1", "L", "LA", "I;16", "F", "RGB", "RGBA", "P", "P+gray", "CMYK", "YCbCr"],
    "ppm": ["RGB"],
    "pgm": ["L", "I;16"],
    "pbm": ["1"],
    "pfm": ["F"],
    "avif": ["RGB", "RGBA"],
    "jp2": ["L", "LA", "I;16", "RGB", "RGBA"],
    "tga": ["1", "L", "LA", "RGB", "RGBA", "P", "P+gray"],
    "ico": ["RGBA"],
    "qoi": ["RGB", "RGBA"],
    "sgi": ["L", "RGB", "RGBA"],
    "pcx": ["1", "L", "RGB", "P"],
    "dds": ["L", "RGB", "RGBA"],
    "mpo": ["RGB"],
}
ORIENTED = ("png", "jpg", "webp", "avif", "mpo", "tif")


class Case(NamedTuple):
    """A file: how it is saved, and the gray or RGB pixels ``(H, W, C)`` that are to come out."""

    name: str
    save: Callable[[Path, int], None]
    expected: NDArray[np.uint8]
    tolerance: int = 0


def gray() -> NDArray[np.uint8]:
    """A ramp, so that lossy formats keep it, that is different in each orientation."""
    rows, columns = np.mgrid[: SIDES[0], : SIDES[1]]
    return (10 + 20 * rows + 12 * columns).astype(np.uint8)


def color() -> NDArray[np.uint8]:
    return np.stack([gray(), 128 + gray() // 2, 255 - gray()], axis=-1)


def picture(mode: str) -> tuple[Image.Image, NDArray[np.uint8]]:
    """An image of a mode and what is to come out of it."""
    if mode == "1":
        bits = gray() > 100
        return Image.fromarray(bits), (bits * np.uint8(255))[..., None]
    if mode == "I;16":
        return Image.fromarray(gray().astype(np.uint16) * 257), gray()[..., None]
    if mode == "F":
        return Image.fromarray(gray() / np.float32(255)), gray()[..., None]
    if mode.startswith("P"):
        image = Image.fromarray(gray()).convert("P") if mode == "P+gray" else Image.fromarray(gray() // 16)
        if mode == "P+gray":
            return image, gray()[..., None]
        palette = np.stack([np.arange(16) * 15, 255 - np.arange(16) * 9, np.arange(16)], axis=-1).astype(np.uint8)
        image = Image.fromarray(gray() // 16, "P")
        image.putpalette(palette.tobytes())
        return image, palette[gray() // 16]
    if mode in ("CMYK", "YCbCr"):
        image = Image.fromarray(color()).convert(mode)
        return image, np.asarray(image.convert("RGB"))
    pixels = gray() if mode in ("L", "LA") else color()
    if mode.endswith("A"):
        image = Image.fromarray(pixels)
        image.putalpha(255)
        return image, pixels.reshape(*SIDES, -1)
    return Image.fromarray(pixels), pixels.reshape(*SIDES, -1)


def by_pillow(suffix: str, mode: str, compression: str | None = None) -> Case:
    image, expected = picture(mode)

    def save(path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {"quality": 95}
        if suffix == "avif":
            options = {"quality": 95, "subsampling": "4:4:4"}
        if suffix == "tif":
            options = {"tiffinfo": {274: orientation}, "compression": compression}
        elif suffix in ORIENTED:
            options["exif"] = exif
        if mode == "P+transparent":
            options["transparency"] = 200  # no pixel has it
        image.save(path, **options)

    if suffix == "webp" or (suffix == "avif" and expected.shape[2] == 1):
        expected = np.broadcast_to(expected, (*SIDES, 3))
    return Case(f"{suffix} {mode} {compression or ''}", save, expected, LOSSY.get(suffix, 0))


def by_tifffile(dtype: type[np.generic], photometric: str, samples: int, alpha: str, order: str, planar: str) -> Case:
    expected = gray()[..., None] if photometric != "rgb" else color()
    white = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    stored = (255 - expected if photometric == "miniswhite" else expected) / 255 * white
    if samples in (2, 4):
        stored = np.concatenate([stored, np.full_like(stored[..., :1], white)], axis=-1)
    values = (np.rint(stored) if white > 1 else stored).astype(dtype)
    if samples == 1:
        values = values[..., 0]
    elif planar == "separate":
        values = values.transpose(2, 0, 1)

    def save(path: Path, orientation: int) -> None:
        tifffile.imwrite(
            path,
            values,
            photometric=photometric,
            byteorder=order,
            planarconfig=planar if samples > 1 else None,
            extrasamples=[alpha] if samples in (2, 4) else None,
            extratags=[(274, 3, 1, orientation, True)],
        )

    name = f"tif {np.dtype(dtype)} {photometric} {samples} {alpha if samples in (2, 4) else ''} {order} {planar}"
    return Case(name, save, expected, 1 if np.dtype(dtype).itemsize == 2 else 0)  # Pillow takes the high byte of color


def by_hand(samples: int) -> Case:
    """PNG of 16 bits for each sample, which Pillow does not write."""
    expected = color() if samples > 2 else gray()[..., None]
    stored = (
        np.concatenate([expected, np.full_like(expected[..., :1], 255)], axis=-1)[..., :samples].astype(">u2") * 257
    )

    def save(path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in stored)
        header = struct.pack(">IIBBBBB", SIDES[1], SIDES[0], 16, kind, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"eXIf", exif.tobytes()[6:]), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        data = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))

    return Case(f"png 16 bits {samples}", save, expected)


def cases() -> Iterator[Case]:
    for suffix, modes in PILLOW_MODES.items():
        if Image.registered_extensions().get(f".{suffix}") in Image.SAVE:  # not with each version of Pillow
            yield from (by_pillow(suffix, mode) for mode in modes)
    yield from (by_hand(samples) for samples in (1, 2, 3, 4))
    yield from (by_pillow("tif", mode, "tiff_lzw") for mode in ("L", "I;16", "F", "RGB", "RGBA", "P"))
    for dtype in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        for order in "<>":
            for photometric, samples in [("minisblack", 1), ("miniswhite", 1), ("minisblack", 2), ("miniswhite", 2)]:
                yield by_tifffile(dtype, photometric, samples, "unassalpha", order, "contig")
            for samples in (3, 4):
                for planar in ("contig", "separate"):
                    yield by_tifffile(dtype, "rgb", samples, "unassalpha", order, planar)
    for dtype, photometric, samples in [(np.uint8, "rgb", 4), (np.uint16, "rgb", 4), (np.float32, "minisblack", 2)]:
        yield by_tifffile(dtype, photometric, samples, "assocalpha", "<", "contig")


def seen(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """As the TIFF specification says where row 0 and column 0 are to be seen."""
    turns = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
        8: np.rot90,
    }
    return turns[orientation](pixels)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_header_and_pixels_agree_in_each_orientation(case: Case, tmp_path: Path) -> None:
    path = tmp_path / f"a.{case.name.split()[0]}"
    for orientation in range(1, 9) if path.suffix[1:] in ORIENTED else (1,):
        case.save(path, orientation)
        image = read_image(path).permute(1, 2, 0).numpy()
        expected = seen(case.expected, orientation)
        assert read_header(path) == image.shape == expected.shape, orientation
        assert np.abs(image.astype(int) - expected).max() <= case.tolerance, orientation
        assert np.array_equal(
            read_image(path, 4)[:3].permute(1, 2, 0).numpy(), np.broadcast_to(image, (*image.shape[:2], 3))
        )

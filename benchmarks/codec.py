"""Measures the files of a tokenizer of photographs: their size, what they keep beside image formats, and their speed.

    gmvq fit-codec runs/photos
    python benchmarks/codec.py --data ../shared/data/kodak --out benchmarks/results/codec.json

Each image format has the highest quality at which its file is not larger than ours, image by image; for an image of
which its smallest file is larger, that one. All metrics are means over images. Timings are of one thread: medians of
rounds, of all images for the C++ coder, and of the first three for the definition in Python.
"""

from __future__ import annotations

import argparse
import importlib
import io
import lzma
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from gmvq.codec import CODEC, Codec
from gmvq.data.writing import write_json
from gmvq.metrics import ms_ssim, psnr
from gmvq.training.provenance import commit, hardware, versions

FORMAT = "gmvq.codec-benchmark"
FORMATS = {"JPEG": range(1, 96), "WEBP": range(101), "AVIF": range(101)}
"""Qualities of image formats, the worst first."""


def saved(image: Tensor, kind: str, quality: int) -> bytes:
    """Encodes an image ``(3, H, W)`` in a format."""
    stream = io.BytesIO()
    how = {"optimize": True, "progressive": True} if kind == "JPEG" else {"method": 6} if kind == "WEBP" else {}
    PIL.Image.fromarray(image.movedim(0, -1).numpy()).save(stream, kind, quality=quality, **how)
    return stream.getvalue()


def largest(image: Tensor, kind: str, most: int) -> bytes:
    """Encodes an image at the highest quality of at most ``most`` bytes, or the lowest."""
    qualities = FORMATS[kind]
    low, high = 0, len(qualities)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(saved(image, kind, qualities[middle])) <= most else (low, middle)
    return saved(image, kind, qualities[low])


def kept(pairs: list[tuple[Tensor, Tensor]], sizes: list[int]) -> dict[str, float]:
    """Computes rate and distortion of made and real images."""
    pixels = sum(real.shape[1] * real.shape[2] for _, real in pairs)
    floats = [(made[None] / 255, real[None] / 255) for made, real in pairs]
    return {
        "bits_per_pixel": 8 * sum(sizes) / pixels,
        "psnr": float(torch.cat([psnr(*pair) for pair in floats]).mean()),
        "ms_ssim": float(torch.cat([ms_ssim(*pair) for pair in floats]).mean()),
    }


def formats(codec: Codec, images: list[Tensor]) -> dict[str, dict[str, float]]:
    """Measures our files, and those of image formats that are not larger."""
    files = [codec.compress(image) for image in images]
    sizes = [len(data) for data in files]
    found = {"gmvq": kept([(codec.decompress(data), real) for data, real in zip(files, images, strict=True)], sizes)}
    for kind in FORMATS:
        others = [largest(image, kind, size) for image, size in zip(images, sizes, strict=True)]
        pixels = [np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")) for data in others]
        made = [torch.from_numpy(each.copy()).movedim(-1, 0) for each in pixels]
        found[kind] = kept(list(zip(made, images, strict=True)), [len(data) for data in others])
    return found


def sizes_of(codec: Codec, codes: list[Tensor], sizes: list[tuple[int, ...]]) -> dict[str, float]:
    """Computes bits of a code in files, by several ways."""
    number = sum(each.numel() for each in codes)
    cold = Codec(codec.tokenizer)
    raw = [each.numpy().astype("<u2").tobytes() for each in codes]
    pairs = list(zip(codes, sizes, strict=True))
    found = {
        "packed": float(np.log2(codec.model.config.codebook_sizes[0])),
        "lzma": 8 * sum(len(lzma.compress(each, preset=9 | lzma.PRESET_EXTREME)) for each in raw) / number,
        "not_fitted": 8 * sum(len(cold.pack(*pair)) for pair in pairs) / number,
        "estimated": sum(map(codec.bits, codes)) / number,
        "fitted": 8 * sum(len(codec.pack(*pair)) for pair in pairs) / number,
    }
    return {**found, "codes": number}


def speeds(codec: Codec, codes: list[Tensor], rounds: int) -> dict[str, float]:
    """Measures codes per second."""

    def rate(run: Callable[[Tensor], Any], some: list[Tensor]) -> float:
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            for each in some:
                run(each)
            seconds.append(time.perf_counter() - start)
        return sum(each.numel() for each in some) / statistics.median(seconds)

    model, found = codec.model, {}
    data = {id(each): model.encode(each) for each in codes}
    for name, kernels in (("cpp", ""), ("python", "torch")):
        os.environ["GMVQ_KERNELS"] = kernels
        some = codes if name == "cpp" else codes[:3]
        found[f"{name}_written"] = rate(model.encode, some)
        found[f"{name}_read"] = rate(lambda each: model.decode(data[id(each)], each.shape), some)
    del os.environ["GMVQ_KERNELS"]
    return found


def by_frequencies(codes: list[Tensor], size: int, rounds: int) -> dict[str, float] | None:
    """Measures the range coder of constriction with the frequencies of the very codes, which no file has to hold.

    Returns:
        Bits of a code, and codes per second in both directions; None if the library is not installed.
    """
    try:
        stream = importlib.import_module("constriction").stream
    except ModuleNotFoundError:
        return None
    symbols = np.concatenate([each.numpy().reshape(-1) for each in codes]).astype(np.int32)
    counts = np.bincount(symbols, minlength=size) + 1e-3
    model = stream.model.Categorical(counts / counts.sum(), perfect=False)
    written, read = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        encoder = stream.queue.RangeEncoder()
        encoder.encode(symbols, model)
        words = encoder.get_compressed()
        middle = time.perf_counter()
        back = stream.queue.RangeDecoder(words).decode(model, len(symbols))
        read.append(time.perf_counter() - middle)
        written.append(middle - start)
        if not np.array_equal(back, symbols):
            raise RuntimeError("constriction does not give the codes back.")
    number = len(symbols)
    speed = {"written": number / statistics.median(written), "read": number / statistics.median(read)}
    return {"bits_per_code": 32 * len(words) / number, **speed}


def main(argv: list[str] | None = None) -> None:
    """Measures, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/photos"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--first", type=int, default=12, help="images, in the order of their names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/codec.json"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    codec = Codec.load(arguments.run, arguments.run / CODEC)
    files = sorted(arguments.data.glob("*.png"))[: arguments.first]
    images = [torch.from_numpy(np.asarray(PIL.Image.open(file).convert("RGB")).copy()).movedim(-1, 0) for file in files]
    codes, sizes = [codec.encode(image) for image in images], [tuple(image.shape[1:]) for image in images]
    result = {
        "format": FORMAT,
        "images": len(images),
        "data": arguments.data.name,
        "bits_per_code": sizes_of(codec, codes, sizes),
        "codes_per_second": speeds(codec, codes, arguments.rounds),
        "rounds": arguments.rounds,
        "constriction": by_frequencies(codes, codec.model.config.codebook_sizes[0], arguments.rounds),
        "formats": formats(codec, images),
        "pillow": PIL.__version__,
    }
    write_json(arguments.out, {**result, "hardware": hardware(), "versions": versions(), "commit": commit()})


if __name__ == "__main__":
    main()

"""Items to the smallest files and back: a tokenizer, and the entropy model of its codes.

::

    item --Autoencoder.encode--> codes --EntropyModel.encode--> segments --container--> bytes
    item <--Autoencoder.decode-- codes <--EntropyModel.decode-- segments <--container-- bytes
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from gmvq import hub
from gmvq.checks import at_least
from gmvq.codec import container
from gmvq.codec.container import Container, Header, Segment
from gmvq.data.parsing import DamagedFileError
from gmvq.entropy import DamagedCodesError, EntropyConfig, EntropyModel
from gmvq.models import Autoencoder
from gmvq.models.modes import evaluating
from gmvq.models.tiles import Assembly, Part

CODEC = "codec"
"""Name of the codec's folder in the run's folder."""
SEGMENT = 1 << 17
"""Codes of a segment: the more, the longer its tables learn; the fewer, the less a damaged byte costs."""
_DIGITS = 8


class DamagedSegmentError(DamagedFileError):
    """Error of a file of which some segments are damaged; the others can be read.

    Attributes:
        segments: Numbers of the damaged segments.
    """

    def __init__(self, segments: Sequence[int], number: int, rows: int) -> None:
        self.segments = tuple(segments)
        named = ", ".join(f"{one} (tokens from {one * rows:,})" for one in self.segments[:5])
        super().__init__(
            f"Of {number} segments of the compressed file, {len(self.segments)} are damaged: {named}. Copy it again, "
            "or decompress what is left with --salvage (salvage=True)."
        )


class Compressed(NamedTuple):
    """The codes of a file.

    Attributes:
        codes: int64 ``(*grid[, levels])``, -1 in segments that are lost.
        size: Lengths of the item's axes beside its channels, in samples.
    """

    codes: Tensor
    size: tuple[int, ...]


class Codec:
    """Compresses items of a tokenizer's modality.

    Args:
        tokenizer: The tokenizer.
        model: Entropy model of its codes, as :func:`gmvq.entropy.fit` makes it; by default one that has seen nothing.
        segment: Codes of a segment.
        threads: Segments at a time.

    Raises:
        ValueError: If the tokenizer has no codes for each place, or the model is of codes of another form.

    Example:
        >>> from gmvq import AutoencoderConfig
        >>> from gmvq.modalities import Image
        >>> config = AutoencoderConfig(modality=Image(channels=1), codebook_size=16, width=8, blocks=1)
        >>> codec = Codec(Autoencoder(config).eval())
        >>> data = codec.compress(torch.zeros(1, 32, 32, dtype=torch.uint8))
        >>> len(data) <= 24 + 64 * 4 // 8, codec.decompress(data).shape
        (True, torch.Size([1, 32, 32]))
    """

    def __init__(
        self, tokenizer: Autoencoder, model: EntropyModel | None = None, *, segment: int = SEGMENT, threads: int = 1
    ) -> None:
        config = config_of(tokenizer)
        self.tokenizer = tokenizer
        self.model = EntropyModel(config) if model is None else model
        own = self.model.config
        if (own.codebook_sizes, own.axes, own.has_levels) != (config.codebook_sizes, config.axes, config.has_levels):
            raise ValueError(
                f"'model' must be of codes {config.codebook_sizes} on {config.axes} axes, got {own.codebook_sizes} on "
                f"{own.axes}. Fit one with 'gmvq fit-codec RUN'."
            )
        self.segment, self.threads = at_least("segment", segment, 1), at_least("threads", threads, 1)
        self.mark = hub.fingerprint(tokenizer)[:_DIGITS]
        self.model_mark = hub.fingerprint(self.model)[:_DIGITS]
        fresh = EntropyModel(config)  # files from before a fit stay readable
        self._models = {hub.fingerprint(fresh)[:_DIGITS]: fresh, self.model_mark: self.model}

    @classmethod
    def load(
        cls,
        run: str | Path,
        folder: str | Path | None = None,
        *,
        tokenizer: Autoencoder | None = None,
        device: torch.device | str | None = None,
        threads: int = 1,
    ) -> Self:
        """Loads a tokenizer, and its entropy model if it has one.

        Args:
            run: Folder of the tokenizer.
            folder: Folder of the entropy model; by default ``codec`` in the run's folder, if it exists.
            tokenizer: The run's tokenizer, if it is loaded already.
            device: Device of the tokenizer; the CPU by default.
            threads: Segments of an item at a time.

        Raises:
            FileNotFoundError: If a folder does not exist.
            DamagedFileError: If a file is damaged.
            ValueError: If the model was fitted to another tokenizer.
        """
        tokenizer = hub.load(run).to(device) if tokenizer is None else tokenizer
        place = Path(run) / CODEC if folder is None else Path(folder)
        if folder is None and not place.exists():
            return cls(tokenizer, threads=threads)
        named, mark = hub.tokenizer_of(place, EntropyModel), hub.fingerprint(tokenizer)
        if named != mark:
            raise ValueError(
                f"{place} was fitted to the tokenizer {named[:12]!r}, this one is {mark[:12]}. Fit one with 'gmvq "
                f"fit-codec {run}'."
            )
        return cls(tokenizer, hub.load(place, EntropyModel), threads=threads)

    @torch.no_grad()
    def encode(self, item: Tensor) -> Tensor:
        """Encodes an item to codes on the CPU, int64 ``(*grid[, levels])``; see :meth:`compress`."""
        with evaluating(self.tokenizer):
            return self.tokenizer.encode(item[None].to(self.tokenizer.device))[0].cpu()

    def compress(self, item: Tensor, *, levels: int | None = None) -> bytes:
        """Compresses an item, as it is stored or as floats: ``(C, *S)``, symbols ``(T,)``.

        Args:
            item: The item, of any size.
            levels: Number of levels to keep; by default all.

        Raises:
            ValueError: If the item does not fit the tokenizer.
        """
        return self.pack(self.encode(item), self.tokenizer.signal.size(item), levels=levels)

    @torch.no_grad()
    def decompress(self, data: bytes, *, salvage: bool = False) -> Tensor:
        """Decompresses an item, as it is stored.

        Args:
            data: Result of :meth:`compress`.
            salvage: Decode damaged segments as the value 0 of the latents, in place of an error.

        Raises:
            DamagedFileError: If the data are damaged.
            DamagedSegmentError: If some segments of them are.
            ValueError: If they are of another tokenizer or entropy model.
        """
        codes, size = self.unpack(data, salvage=salvage)
        made = Assembly(1, size)
        codes = codes[None].to(self.tokenizer.device)
        with evaluating(self.tokenizer):
            for places, part in self.tokenizer.decode_parts(codes, size):
                made.put(Part(places, self.tokenizer.signal.stored(part)))
        return made.items[0].cpu()

    def pack(self, codes: Tensor, size: Sequence[int], *, levels: int | None = None) -> bytes:
        """Writes the codes of an item to bytes.

        Args:
            codes: Integers ``(*grid[, levels])``, -1 where masked.
            size: Lengths of the item's axes beside its channels, in samples.
            levels: Number of levels to keep; by default all.

        Raises:
            ValueError: If the codes do not fit the tokenizer or the size.
        """
        config, grid = self.model.config, self.tokenizer.grid(tuple(size))
        if levels is not None:
            most = len(config.codebook_sizes)
            if not config.has_levels or at_least("levels", levels, 1) > most:
                raise ValueError(
                    f"'levels' must be at most {most}, those of the tokenizer, got {levels}. Leave it out."
                )
            codes = codes[..., :levels]
        if tuple(codes.shape[: config.axes]) != grid:
            raise ValueError(f"'codes' must have the grid {grid} of a size of {tuple(size)}, got {tuple(codes.shape)}.")
        self.model.symbols(codes)  # all of them are checked before the first is written
        number = codes.shape[-1] if config.has_levels else 1
        rows = container.rows_of(grid, number, self.segment)
        masked = bool((codes < 0).any())
        parts = codes.split(rows) if grid else [codes]
        self.model.coding(number)  # made once, for all threads
        with ThreadPoolExecutor(self.threads) as pool:
            segments = list(pool.map(lambda part: self._written(part, masked), parts))
        rate = self.tokenizer.signal.rate
        header = Header(self.mark, self.model_mark, number, tuple(size), None if rate is None else round(rate), masked)
        return container.write(header, rows, segments)

    def unpack(self, data: bytes, *, salvage: bool = False) -> Compressed:
        """Reads the codes that :meth:`pack` wrote; the arguments and errors are those of :meth:`decompress`."""
        found = self.parse(data)
        lost = [number for number, segment in enumerate(found.segments) if segment is None]
        if lost and not salvage:
            raise DamagedSegmentError(lost, len(found.segments), found.rows or 1)
        grids = list(self._grids(found))
        with ThreadPoolExecutor(self.threads) as pool:
            parts = list(
                pool.map(lambda pair: self._read(found.header, *pair), zip(found.segments, grids, strict=True))
            )
        return Compressed(torch.cat(parts) if len(parts) > 1 else parts[0], found.header.size)

    def parse(self, data: bytes) -> Container:
        """Parses a file without reading its codes, and checks that it is of this tokenizer and entropy model.

        Raises:
            DamagedFileError: If it is damaged.
            ValueError: If it is of another tokenizer or entropy model.
        """
        found = container.read(data)
        header, config = found.header, self.model.config
        if header.tokenizer != self.mark:
            raise ValueError(
                f"The file was made with the tokenizer {header.tokenizer}, this one is {self.mark}. Decompress with "
                "the run that made it."
            )
        if header.model not in self._models:
            raise ValueError(
                f"The file was made with the entropy model {header.model}, this one is {self.model_mark}. "
                "Decompress with the codec folder that made it."
            )
        most = len(config.codebook_sizes)
        if len(header.size) != config.axes or header.levels > most or not (config.has_levels or header.levels == 1):
            container.damaged("it is not of the form of the tokenizer's codes")
        grid = self.tokenizer.grid(header.size)
        rows = found.rows or max(1, *grid[:1], 1)
        if len(found.segments) != (max(1, -(-grid[0] // rows)) if grid else 1):
            container.damaged("its segments do not cover its item")
        for segment, part in zip(found.segments, self._grids(found), strict=True):
            if segment is not None:
                container.check_amount(math.prod(part) * self._symbols(header.levels), segment)
        if any(segment is None for segment in found.segments):
            whole = sum(len(segment.data) for segment in found.segments if segment is not None)
            container.check_amount(math.prod(grid) * self._symbols(header.levels), Segment(bytes(whole), packed=False))
        return found

    def bits(self, codes: Tensor) -> float:
        """Estimates the bits of the codes of an item in a file, by the probabilities of its segments."""
        grid = codes.shape[: self.model.config.axes]
        number = codes.shape[-1] if self.model.config.has_levels else 1
        parts = codes.split(container.rows_of(grid, number, self.segment)) if grid else [codes]
        return sum(map(self.model.bits, parts))

    def _symbols(self, levels: int) -> int:
        return sum(len(sizes) for sizes in self.model.config.symbol_sizes[:levels])

    def _grids(self, found: Container) -> Iterator[tuple[int, ...]]:
        """Yields the grid of each segment."""
        grid = self.tokenizer.grid(found.header.size)
        if not grid or found.rows is None:
            yield grid
            return
        for start, end in itertools.pairwise([*range(0, grid[0], found.rows), grid[0]]):
            yield (end - start, *grid[1:])

    def _written(self, codes: Tensor, masked: bool) -> Segment:
        written = [Segment(self.model.encode(codes, packed=way, masked=masked), way) for way in (False, True)]
        return min(written, key=lambda segment: len(segment.data))

    def _read(self, header: Header, segment: Segment | None, grid: tuple[int, ...]) -> Tensor:
        levels = header.levels
        if segment is None:
            return torch.full((*grid, levels) if self.model.config.has_levels else grid, -1)
        try:
            model = self._models[header.model]
            return model.decode(segment.data, grid, levels, packed=segment.packed, masked=header.masked)
        except DamagedCodesError as error:
            container.damaged(str(error))


def config_of(tokenizer: Autoencoder) -> EntropyConfig:
    """Describes the form of a tokenizer's codes.

    Raises:
        ValueError: If it has no codes for each place.
    """
    if tokenizer.codebook_size is None:
        raise ValueError("The model is a VAE: it has no codes. Train one with --quantizer gaussian-mixture.")
    if not tokenizer.has_code_maps:
        raise ValueError(
            "The model has codes of several scales (quantizer 'hierarchical'), not of each place. Train one with "
            "another --quantizer."
        )
    has_levels = len(tokenizer.bottleneck.code_shape) > 0
    return EntropyConfig(tokenizer.level_sizes, tokenizer.signal.axes, has_levels)


@torch.no_grad()
def vectors_of(tokenizer: Autoencoder) -> list[Tensor | None]:
    """Returns the code vectors ``(K, dim)`` of each level; None for a codebook that is not listed."""
    config = config_of(tokenizer)
    found: list[Tensor | None] = []
    levels = len(config.codebook_sizes)
    for level, (size, *more) in enumerate(config.symbol_sizes):
        if more:
            found.append(None)
            continue
        codes = torch.arange(size, device=tokenizer.device)
        if config.has_levels:
            codes = torch.where(torch.arange(levels, device=codes.device) == level, codes[:, None], -1)
        found.append(tokenizer.bottleneck.decode(codes).float().cpu())
    return found

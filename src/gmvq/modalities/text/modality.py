"""Text: items are symbols int64 ``(T,)`` that stand for characters or subwords.

::

    file --read_texts--> str --split by content, in order, or by the files--> vocabulary --encode--> Items
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gmvq.checks import at_least, one_of
from gmvq.data.items import Items
from gmvq.data.writing import write_atomically
from gmvq.metrics.base import Measure
from gmvq.metrics.text import TextDistortion
from gmvq.modalities.base import Data, Exhibit, Modality, register
from gmvq.modalities.tables import first_rows, suffix_of
from gmvq.modalities.text.files import TEXT_SUFFIXES, Entry, Texts, has_side, read_texts
from gmvq.modalities.text.items import TextItems, encoded, labels_of_texts, parted, split
from gmvq.modalities.text.manual import manual_sentences
from gmvq.modalities.text.passages import code_passage, passages
from gmvq.modalities.text.rows import TEXT_COLUMN
from gmvq.modalities.text.symbols import BYTES, AbstractAlphabet, Characters, Subwords
from gmvq.types import Signal

UNITS = ("characters", "subwords")


@register
@dataclass(frozen=True)
class Text(Modality):
    """Text such as sentences, poems, dialogues or source code, in any language.

    Symbol 0 is the end symbol, which also pads shorter texts. Every text is encoded without loss: characters outside
    the vocabulary are encoded as bytes.

    Args:
        units: Unit of a symbol: ``characters``, or ``subwords``, which are learned from the training text by merging
            frequent pairs of bytes.
        lines: True for one item per line, False for documents, which training cuts into windows. By default lines if
            files have several lines and few blank ones.
        vocabulary_size: Largest number of symbols if the units are subwords.
        vocabulary: Characters beyond ASCII with a symbol of their own; by default those that occur at least twice in
            the training text, at most 4,096. ASCII characters are single bytes, which always have symbols.
        subwords: JSON of the learned subwords, in the format of the library ``tokenizers``.

    Raises:
        ValueError: If a setting is out of range, or does not apply to the units.
    """

    kind: ClassVar[str] = "text"
    item: ClassVar[str] = "text"
    items: ClassVar[str] = "texts"
    sample: ClassVar[str] = "symbol"
    wanted: ClassVar[str] = (
        "the path of a text file with an item on each line or a document, of a .jsonl, .csv or .tsv file with a column "
        "'text', or of a folder of them"
    )
    measures: ClassVar[tuple[Measure, ...]] = TextDistortion.measures
    learned: ClassVar[tuple[str, ...]] = ("vocabulary", "subwords")
    several: ClassVar[bool] = True
    bundled: ClassVar[Mapping[str, Callable[[Any], Data]]] = {}
    window_size: ClassVar[int | None] = 64
    downsampling: ClassVar[int] = 4

    units: str = "characters"
    lines: bool | None = None
    vocabulary_size: int = 2048
    vocabulary: tuple[str, ...] | None = None
    subwords: str | None = None

    def __post_init__(self) -> None:
        one_of("units", self.units, UNITS)
        at_least("vocabulary_size", self.vocabulary_size, 1 + BYTES, "The end and all bytes have a symbol.")
        name, other = ("vocabulary", "subwords") if self.units == "subwords" else ("subwords", "vocabulary")
        if getattr(self, name) is not None:
            raise ValueError(f"'{name}' must be None for units of {self.units}, got some. Set '{other}' or neither.")
        if self.vocabulary is not None or self.subwords is not None:
            _ = self.alphabet  # raises at once if it is damaged

    @cached_property
    def alphabet(self) -> AbstractAlphabet:
        """Encoder of text as symbols.

        Raises:
            ValueError: If the vocabulary is not known yet.
        """
        if self.units == "subwords" and self.subwords is not None:
            return Subwords(self.subwords)
        if self.units == "characters" and self.vocabulary is not None:
            return Characters(self.vocabulary)
        name = "subwords" if self.units == "subwords" else "vocabulary"
        raise ValueError(
            f"'{name}' of the text must be known, got None. Load data, or use Text(vocabulary=()) for bytes."
        )

    @property
    def signal(self) -> Signal:  # noqa: D102
        return Signal("text", 1, self.alphabet.size, "symbols")

    @property
    def suffix(self) -> str:  # noqa: D102
        return ".txt"

    def encode(self, text: str) -> Tensor:
        """Encodes a text as symbols int64 ``(T,)``, without the end symbol.

        Raises:
            ValueError: If it has lone surrogates, which are not characters, or the vocabulary is not known yet.
        """
        return self.alphabet.encode([text])[0]

    def decode(self, symbols: Tensor) -> str:
        """Decodes symbols ``(T,)`` up to the first end symbol; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: If a symbol is not in the vocabulary, or it is not known yet.
        """
        return self.alphabet.decode(symbols)

    def read(self, path: Path, held_out_fraction: float, memory_bytes: int) -> Data:
        """Reads texts and splits them.

        Folders ``train`` and ``test``, or files of a folder whose names say so, as ``train.en`` and ``val.en``, are the
        two sides. Otherwise some lines or documents are held out by a hash of their content, copies on one side, and of
        a single document the last part. Lines and documents of more than 65,536 characters are cut.

        All texts are kept in memory: 8 bytes per symbol, or 2 to 4 if they would exceed ``memory_bytes``.
        """
        texts = read_texts(path, self.lines)
        if texts.notes:
            warnings.warn(f"Of '{path}': {'; '.join(texts.notes)}.", stacklevel=3)
        return self._data(texts, path if path.is_dir() else None, held_out_fraction, memory_bytes)

    def recognizes(self, source: Path) -> bool:  # noqa: D102
        return suffix_of(source) in TEXT_SUFFIXES or has_side(source)

    def suits(self, file: Path) -> bool:
        """Returns whether a table has a column of texts."""
        return suffix_of(file) not in (".csv", ".tsv") or TEXT_COLUMN in map(str.lower, first_rows(file).names)

    def window(self, item: Tensor, size: int | None, chance: NDArray[np.float64]) -> Tensor:
        """Cuts a stretch of consecutive symbols; keeps shorter texts whole."""
        length = item.shape[-1]
        if size is None or length <= size:
            return item
        start = min(int(chance[0] * (length - size + 1)), length - size)
        return item[start : start + size]

    def distortion(self, *, quick: bool = False) -> TextDistortion:
        """Creates an accumulator of symbol accuracy, exact items and, unless ``quick``, the character error rate."""
        return TextDistortion(None if quick else self.decode)

    def exhibit(  # noqa: D102
        self, name: str, real: Tensor, made: Tensor | None = None, codes: Tensor | None = None
    ) -> Exhibit:
        note = ""
        if made is not None:
            distortion = self.distortion(quick=True)
            distortion.update(made[None], real[None])
            note = f"{distortion.metrics()['symbol_accuracy']:.1%} of symbols"
        texts = passages(self.decode(real), None if made is None else self.decode(made), name)
        return Exhibit(name, note, texts[:1], texts[1:], () if codes is None else (code_passage(codes, name),))

    def write(self, path: Path, items: Sequence[Tensor], *, columns: int = 8) -> None:
        r"""Writes UTF-8 with one text per line and its line ends as ``\n``; a single document unchanged."""
        if path.suffix.lower() != self.suffix:
            raise ValueError(f"Texts are written as .txt, got {path}. Use {path.with_suffix('.txt')}.")
        texts = [self.decode(item) for item in items]
        if self.lines or len(texts) != 1:
            lines = [text.replace("\r", "\\r").replace("\n", "\\n") for text in texts]
            texts = [f"{line}\n" for line in lines]
        whole = "".join(texts)
        mark = "\ufeff" if whole.startswith("\ufeff") else ""  # readers remove the first one as a byte order mark
        write_atomically(path, (mark + whole).encode())

    def _data(self, texts: Texts, root: Path | None, fraction: float, memory_bytes: int) -> Data:
        """Creates the data set, with a vocabulary learned from the training side."""
        sides = [texts.train, texts.held_out or []]
        if texts.held_out is None:
            sides = split(texts.train, fraction, lines=texts.lines)
        sides = [[part for entry in side for part in parted(entry)] for side in sides]
        modality = replace(self, lines=texts.lines)._learned([entry.text for entry in sides[0]])
        labels, made, start = labels_of_texts([entry for side in sides for entry in side], root), list[Items](), 0
        for side in sides:
            items = modality._items(side, memory_bytes // len(sides))
            if labels is not None:
                items.labels = labels.values[start : start + len(side)]
            made.append(items)
            start += len(side)
        classes = () if labels is None else labels.classes
        return Data(texts.name, made[0], made[-1], modality, tuple(texts.skipped), classes)

    def _learned(self, texts: Sequence[str]) -> Text:
        """Returns the modality with a known vocabulary: its own, or one learned from the given texts."""
        if self.vocabulary is not None or self.subwords is not None:
            return self
        if self.units == "subwords":
            return replace(self, subwords=Subwords.learned(texts, self.vocabulary_size))
        return replace(self, vocabulary=Characters.learned(texts))

    def _items(self, entries: Sequence[Entry], memory_bytes: int) -> TextItems:
        symbols = encoded([entry.text for entry in entries], self.alphabet, memory_bytes)
        return TextItems(*symbols, [entry.name for entry in entries])


def _manual(modality: Text) -> Data:
    """Loads sentences of Python's own manual, the text of ``help()``: see :func:`manual_sentences`.

    About 1,250 sentences of 20 to 200 characters, which differ a little between Python versions. A tenth is held out
    by a hash of the content.

    Raises:
        ModuleNotFoundError: If this Python was installed without its manual.
    """
    entries = [Entry(f"manual-{number:05d}", text) for number, text in enumerate(manual_sentences(), 1)]
    return modality._data(Texts("manual", entries, None, True, [], []), None, 0.1, 1 << 30)


Text.bundled = {"manual": _manual}

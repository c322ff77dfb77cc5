"""Lossless encoding of text as symbols.

::

    str --encode--> int64 (T,)      0: the end symbol    1 ... 256: the bytes of UTF-8, including all of ASCII
        <--decode--                 from 257 on: frequent characters beyond ASCII, or subwords in place of all this

Every text without lone surrogates is restored exactly, with any vocabulary: characters outside it are encoded as bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

END = 0
"""The symbol that ends a text and pads shorter ones."""
BYTES = 256
MOST_CHARACTERS = 4096
"""Largest number of characters with a symbol of their own."""

_SPELLED = 1 + BYTES
_LEAST_COUNT = 2
_SURROGATES = range(0xD800, 0xE000)
_ALL_BYTES = "a  b\r\n" + "".join(
    map(chr, [*range(0xC0), *range(0xC0, 0x800, 0x40), *range(0x800, 0xD800, 0x1000), *range(0xE000, 0x110000, 0x1F00)])
)
"""Text whose UTF-8 contains every possible byte, and some that is often normalized: spaces, compatibility forms."""


class AbstractAlphabet(ABC):
    """An encoding of text as integers.

    Attributes:
        size: Number of symbols, including the end symbol.
    """

    size: int

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Encodes texts as symbols.

        Returns:
            int64 ``(T,)`` for each text, without the end symbol.

        Raises:
            ValueError: If a text has lone surrogates, which are not characters.
        """

    def decode(self, symbols: Tensor) -> str:
        """Decodes symbols ``(T,)`` up to the first end symbol; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: If a symbol is not in this alphabet.
        """
        numbers = symbols.detach().cpu().tolist()
        if not all(0 <= number < self.size for number in numbers):
            raise ValueError(
                f"'symbols' must lie in [0, {self.size}), got {min(numbers)} to {max(numbers)}. Decode them by the "
                "vocabulary that they were encoded by."
            )
        return self._text(numbers[: numbers.index(END)] if END in numbers else numbers)

    @abstractmethod
    def _text(self, numbers: list[int]) -> str: ...


class Characters(AbstractAlphabet):
    """Alphabet with a symbol for each byte of UTF-8, and for each of some characters beyond ASCII.

    Args:
        vocabulary: The characters beyond ASCII.

    Raises:
        ValueError: If they are not distinct single characters beyond ASCII.

    Example:
        >>> alphabet = Characters(("é",))
        >>> alphabet.encode(["né"])[0].tolist(), alphabet.decode(torch.tensor([111, 257, 0, 5]))
        ([111, 257], 'né')
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        valid = all(len(one) == 1 and ord(one) >= 128 and ord(one) not in _SURROGATES for one in vocabulary)
        if isinstance(vocabulary, str) or not valid or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(
                "'vocabulary' must be distinct single characters beyond ASCII, whose characters have symbols anyway, "
                f"got {tuple(vocabulary)[:8]!r}. Leave it out, and it is learned from the training text."
            )
        if len(vocabulary) > MOST_CHARACTERS:
            raise ValueError(
                f"'vocabulary' must have at most {MOST_CHARACTERS} characters, got {len(vocabulary)}. Take subwords."
            )
        self.size = _SPELLED + len(vocabulary)
        self._spelling = _Spelling({ord(one): chr(_SPELLED + place) for place, one in enumerate(vocabulary)})
        self._bytes = [b"", *(bytes([value]) for value in range(BYTES)), *(one.encode() for one in vocabulary)]

    @classmethod
    def learned(cls, texts: Iterable[str]) -> tuple[str, ...]:
        """Returns the characters beyond ASCII that occur at least twice, the most frequent first."""
        counts: Counter[str] = Counter()
        for text in texts:
            if not text.isascii():
                counts.update(text)
        found = [(-count, one) for one, count in counts.items() if count >= _LEAST_COUNT and not one.isascii()]
        return tuple(one for _, one in sorted(found)[:MOST_CHARACTERS])

    def encode(self, texts: Sequence[str]) -> list[Tensor]:  # noqa: D102
        return [self._encoded(text) for text in texts]

    def _encoded(self, text: str) -> Tensor:
        # each symbol as the character with its number: both steps run in C
        _check_characters(text)
        symbols = text.translate(self._spelling).encode("utf-32-le")
        return torch.from_numpy(np.frombuffer(symbols, "<u4").astype(np.int64))

    def _text(self, numbers: list[int]) -> str:
        return b"".join([self._bytes[number] for number in numbers]).decode("utf-8", "replace")


class Subwords(AbstractAlphabet):
    """Alphabet of byte-pair encoding; its numbers are those of the tokenizer plus one, since 0 is the end symbol.

    Args:
        description: JSON of a byte-level tokenizer of the library ``tokenizers``.

    Raises:
        ValueError: If it is not such a tokenizer.
        ModuleNotFoundError: If ``tokenizers`` is not installed.

    References:
        Neural machine translation of rare words with subword units (Sennrich et al., 2016),
        https://aclanthology.org/P16-1162
    """

    def __init__(self, description: str) -> None:
        library = _tokenizers()
        try:
            self._tokenizer = library.Tokenizer.from_str(description)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(
                f"'subwords' must be the JSON of a tokenizer, and is not: {error}. Leave it out to learn one."
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = 2 + max(self._tokenizer.get_vocab().values(), default=0)
        if self.decode(self.encode([_ALL_BYTES])[0]) != _ALL_BYTES:
            raise ValueError(
                "'subwords' must be of a tokenizer that has all bytes and changes no text, got one that loses some. "
                "Leave it out to learn one."
            )

    @classmethod
    def learned(cls, texts: Iterable[str], size: int) -> str:
        """Learns subwords from texts, up to a number of symbols, and returns them as JSON."""
        library = _tokenizers()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
        trainer = library.trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer.to_str()

    def encode(self, texts: Sequence[str]) -> list[Tensor]:  # noqa: D102
        for text in texts:
            _check_characters(text)
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [torch.from_numpy(np.array(one.ids, np.int64) + 1) for one in found]

    def _text(self, numbers: list[int]) -> str:
        return self._tokenizer.decode([number - 1 for number in numbers], skip_special_tokens=False)


class _Spelling(dict[int, str]):
    """Translation table of characters to symbols: characters without a symbol are spelled by bytes."""

    def __missing__(self, character: int) -> str:
        spelled = "".join(chr(1 + byte) for byte in chr(character).encode())
        if len(self) < 2 * MOST_CHARACTERS:
            self[character] = spelled
        return spelled


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"'text' must be without lone surrogates, which are not characters, got {text[error.start]!r}. Decode "
            "bytes with errors='replace'."
        ) from error


def _tokenizers() -> Any:  # noqa: ANN401
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Subwords need the library tokenizers: pip install tokenizers.") from error
    return tokenizers

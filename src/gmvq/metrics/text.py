r"""Distortion of text.

For an item x of n symbols and its reconstruction y of the same length, which decode to texts t and s:

.. math::
    \text{accuracy} = \tfrac{1}{n} \sum_i [x_i = y_i] \qquad
    \text{exact} = [x = y] \qquad
    \text{CER} = \frac{\operatorname{lev}(s, t)}{\max(|t|, 1)}

where lev is Levenshtein's distance: the least number of characters to replace, insert or delete. Each is averaged over
items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from gmvq.distributed import sum_over_ranks
from gmvq.metrics.base import Distortion, Measure


class TextDistortion(Distortion):
    """Shares of right symbols and of right items, and the character error rate, streamed.

    The metrics are those of the items that this process has seen. Under ``torch.distributed`` take them from
    :meth:`merged`, which every rank must call. The protocol is that of the module's docstring.

    Args:
        decode: Function that decodes symbols ``(T,)`` to text, for the character error rate; None leaves that out.

    Example:
        >>> distortion = TextDistortion()
        >>> distortion.update(torch.tensor([[3, 1, 4, 2]]), torch.tensor([[3, 1, 4, 1]]))
        >>> distortion.metrics()
        {'symbol_accuracy': 0.75, 'exact_share': 0.0}
    """

    headline: ClassVar[str] = "symbol_accuracy"
    higher_is_better: ClassVar[bool] = True
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(
            "symbol_accuracy",
            "Symbols right",
            "%",
            "Share of a text's symbols that came back in their places, the mean over texts.",
            "Higher is better; 100 % is identical.",
            ".2f",
            100,
        ),
        Measure(
            "exact_share",
            "Texts right",
            "%",
            "Share of texts that came back without any error.",
            "Higher is better.",
            ".2f",
            100,
        ),
        Measure(
            "character_error_rate",
            "Character error rate",
            "%",
            "Characters to replace, insert or leave out for the original, over its characters, the mean over texts.",
            "Lower is better; 0 % is identical.",
            ".2f",
            100,
        ),
    )

    def __init__(self, decode: Callable[[Tensor], str] | None = None) -> None:
        self.decode = decode
        self._sums = torch.zeros(4, dtype=torch.float64)  # items, accuracy, exact, character error rate

    @property
    def protocol(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Protocol of the metrics, in sentences."""
        sentence = (
            "Symbols right are the mean over texts of each text's share, of the most likely symbols from hard codes."
        )
        rate = (
            " The character error rate is Levenshtein's distance of the decoded texts over the original's characters."
        )
        return sentence if self.decode is None else sentence + rate

    def update(self, made: Tensor, real: Tensor, lengths: Tensor | None = None) -> None:
        """Adds texts.

        Args:
            made: Symbols ``(B, T)``.
            real: Reference of the same shape.
            lengths: Symbols of each text that count ``(B,)``; None for all.

        Raises:
            ValueError: If the shapes differ, values are no integers, or lengths are not those of the texts.
        """
        whole = not (made.is_floating_point() or real.is_floating_point())
        if made.ndim != 2 or made.shape != real.shape or made.shape[1] == 0 or not whole:
            raise ValueError(
                f"'made' and 'real' must be integers of one shape (B, T), got {made.dtype} {tuple(made.shape)} and "
                f"{real.dtype} {tuple(real.shape)}. Add the axis of the batch with [None]."
            )
        y, x = made.detach().cpu().long(), real.detach().cpu().long()
        longest = x.shape[1]
        ends = torch.full((len(x),), longest) if lengths is None else lengths.cpu()
        if ends.shape != x.shape[:1] or not ((ends >= 1) & (ends <= longest)).all():
            each = f"one for each of {len(x)} texts, from 1 to {longest}"
            raise ValueError(f"'lengths' must be {each}, got {ends.tolist()}. Leave them out where all symbols count.")
        counts = torch.arange(longest) < ends[:, None]
        right = ((y == x) & counts).sum(1).double() / ends
        rates = torch.zeros_like(right)
        if self.decode is not None:
            for place in (right < 1).nonzero().flatten().tolist():
                texts = (self.decode(symbols[place, : ends[place]]) for symbols in (y, x))
                rates[place] = character_error_rate(*texts)
        self._sums += torch.stack([torch.ones_like(right), right, (right == 1).double(), rates]).sum(1)

    def metrics(self) -> dict[str, float | None]:
        """Returns ``symbol_accuracy``, ``exact_share``, and with ``decode`` ``character_error_rate``, each a share."""
        if not self.items:
            return {}
        accuracy, exact, rate = (self._sums[1:] / self._sums[0]).tolist()
        shares: dict[str, float | None] = {"symbol_accuracy": accuracy, "exact_share": exact}
        return shares if self.decode is None else {**shares, "character_error_rate": rate}

    @property
    def items(self) -> int:
        """Number of texts seen."""
        return int(self._sums[0])

    def of_error(self, error: float) -> dict[str, float]:
        """Converts the share of wrong symbols to that of right ones."""
        return {"symbol_accuracy": 1 - error}

    def merged(self) -> TextDistortion:
        """Sums over all ranks into a new accumulator; without a process group it is a copy.

        This is a collective: when a process group exists at the call, every rank must call it.
        """
        merged = TextDistortion(self.decode)
        merged._sums = sum_over_ranks(self._sums).clone()
        return merged


def character_error_rate(made: str, real: str) -> float:
    """Computes the edit distance over the number of real characters, above 1 for a text that is much longer.

    Example:
        >>> character_error_rate("kitten", "sitting")
        0.42857142857142855
    """
    return edit_distance(made, real) / max(1, len(real))


def edit_distance(made: str, real: str) -> int:
    """Computes the least number of characters to replace, insert or delete to turn one text into the other.

    Two integers hold a whole column of the table of distances: its differences from row to row are +1 where ``up`` has
    a bit, -1 where ``down`` has one.

    References:
        A fast bit-vector algorithm for approximate string matching based on dynamic programming (Myers, 1999),
        https://doi.org/10.1145/316542.316550; for the distance of whole texts after Hyyrö (2003).
    """
    if not made or not real:
        return len(made) + len(real)
    places: dict[str, int] = {}
    for place, character in enumerate(made):
        places[character] = places.get(character, 0) | 1 << place
    all_bits = (1 << len(made)) - 1
    last = 1 << (len(made) - 1)
    up, down, distance = all_bits, 0, len(made)
    for character in real:
        same = places.get(character, 0)
        steady = (((same & up) + up) ^ up) | same | down  # where the diagonal does not rise
        right_up, right_down = down | (all_bits & ~(steady | up)), up & steady
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = (right_up << 1) | 1
        up = ((right_down << 1) | ~(steady | right_up)) & all_bits
        down = right_up & steady & all_bits
    return distance

"""What is wrong with a run, by its log: what was seen, what is normal, and what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLLAPSED = 0.2
"""Share of the codes that held-out tokens could use, below which the codebook has collapsed."""


def symptoms(log: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Warnings about a run that has ended, each one line; none if all is well.

    Args:
        log: Lines of its log in their order, see :class:`gmvq.training.journal.Journal`.
    """
    found = (
        _stuck([line for line in log if line.get("kind") == "train"]),
        _collapsed([line for line in log if line.get("kind") == "evaluation"]),
    )
    return tuple(each for each in found if each is not None)


def _stuck(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """A loss that did not fall; of a tokenizer its reconstruction term, since the others may rise."""
    if len(lines) < 2:
        return None
    key = "reconstruction" if "reconstruction" in lines[0] else "loss"
    first, last = lines[0].get(key), lines[-1].get(key)
    if first is None or last is None or last < first:
        return None
    name = "loss" if key == "loss" else f"{key} loss"
    return (
        f"The {name} did not fall: {first:.4g} at step {lines[0]['step']:,}, {last:.4g} at step {lines[-1]['step']:,}. "
        "Normally it falls within the first hundred steps, unless a trained model is trained further. Lower "
        "'learning_rate', train for more 'steps', or check that the data are what they should be."
    )


def _collapsed(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """A codebook of which held-out data use little, of as many codes as their tokens could have."""
    usage, used, tokens = (lines[-1].get(key) if lines else None for key in ("usage", "used_codes", "tokens"))
    if not usage or not used or not tokens:
        return None
    reachable = min(round(used / usage), tokens)
    if used >= COLLAPSED * reachable:
        return None
    return (
        f"The codebook has collapsed: held-out data use {used:,.0f} of {round(used / usage):,} codes ({usage:.1%}). "
        "Normally they use more than 80 %. Train for more 'steps', lower 'learning_rate', choose a smaller "
        "'codebook_size', or the 'quantizer' gaussian-mixture or vector-ema."
    )

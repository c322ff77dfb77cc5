"""Diagnosis of a run by its log: what was observed, what is normal, and what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLLAPSED = 0.2
"""Fraction of the codes available to held-out tokens below which the codebook has collapsed."""


def symptoms(log: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns warnings about a finished run, each one line; empty if all is well.

    Args:
        log: Lines of its log in order, see :class:`gmvq.training.journal.Journal`.
    """
    found = (
        _stuck([line for line in log if line.get("kind") == "train" and line.get("step") is not None]),
        _collapsed([line for line in log if line.get("kind") == "evaluation"]),
    )
    return tuple(each for each in found if each is not None)


def _stuck(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns a warning if the loss did not fall; for a tokenizer its reconstruction term, since others may rise."""
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
    """Returns a warning if held-out data use few codes, compared with the most that their tokens could use."""
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

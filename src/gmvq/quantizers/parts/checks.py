"""Checks that quantizers share: of constructors' arguments, and of codes."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from gmvq.quantizers.parts.estimators import AbstractEstimator, StraightThrough

MOST_LISTED_CODES = 2**24
"""Size up to which a codebook that is only a rule is written out, in gigabytes of memory."""


def check_listing(codebook_size: int) -> None:
    """Checks that all codes can be written out.

    Raises:
        ValueError: If there are too many.
    """
    if codebook_size > MOST_LISTED_CODES:
        raise ValueError(
            f"'codebook_size' must be at most 2**{MOST_LISTED_CODES.bit_length() - 1} to write out all codes, got "
            f"{codebook_size}. Use decode() for the codes at hand."
        )


def non_negative(name: str, value: float) -> float:
    """Checks a weight.

    Raises:
        ValueError: If the value is not a finite number of at least 0.
    """
    if not (isinstance(value, Real) and math.isfinite(value) and value >= 0):
        raise ValueError(f"'{name}' must be a finite number of at least 0, got {value!r}. Give for example {name}=1.0.")
    return value


def checked_estimator(estimator: AbstractEstimator | None, *, draws: bool = False) -> AbstractEstimator:
    """Takes None for :class:`StraightThrough`.

    Args:
        estimator: A constructor's argument.
        draws: True for a quantizer that has log-probabilities to draw codes from.

    Raises:
        ValueError: If it is not an estimator, or draws codes for a quantizer without probabilities.
    """
    if estimator is None:
        return StraightThrough()
    if isinstance(estimator, type):
        rule, remedy = "be an object and not a class", f"Use {estimator.__name__}()."
    elif not isinstance(estimator, AbstractEstimator):
        rule, remedy = "be an estimator", "Use StraightThrough(), or a subclass of AbstractEstimator."
    elif not draws and estimator.temperature_at(0.0) is not None:
        rule, remedy = "not draw codes, which this quantizer chooses without probabilities", "Use StraightThrough()."
    else:
        return estimator
    raise ValueError(f"'estimator' must {rule}, got {estimator!r}. {remedy}")


def checked_tensor(name: str, value: object) -> Tensor:
    """Checks that a value is a tensor.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"'{name}' must be a tensor, got {type(value).__name__}. Use torch.as_tensor({name}).")
    return value


def checked_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Codes as int64.

    Raises:
        ValueError: If they are not a tensor of integers, or lie outside [-1, K).
    """
    codes = checked_tensor("codes", codes)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"'codes' must be integers, got {codes.dtype}. Pass what encode() returned.")
    codes = codes.long()
    if codes.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in codes.aminmax())
        if low < -1 or high >= codebook_size:
            raise ValueError(
                f"'codes' must lie in [0, {codebook_size}), or be -1 where masked, got {low} to {high}. "
                "Check that they come from this tokenizer."
            )
    return codes


def positive_integer(name: str, value: int) -> int:
    """Checks a size.

    Raises:
        ValueError: If the value is not an integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"'{name}' must be an integer of at least 1, got {value!r}. Give for example {name}=64.")
    return value

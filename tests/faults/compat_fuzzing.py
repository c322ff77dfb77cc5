"""Random options for two libraries, and what they answer: equal, refused, or different for a reason that has a name."""

from __future__ import annotations

import copy
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

SEED = int(os.environ.get("GMVQ_FAULTS_SEED", "0"))
FULL = os.environ.get("GMVQ_FAULTS") == "full"
CASES = 2_000 if FULL else 15
STEPS = 2
NUDGES = 16
"""How often x is moved to see whether a latent lies between two codes."""
ROUNDED, LEARNED = 3e-6, 3e-3
"""Share of itself by which it is moved: as arithmetic rounds, and as far as steps of both may differ (1e-3 here)."""


@dataclass
class Case:
    """One draw: the options of a class, the shape of x and the arguments of the call."""

    kind: str
    seed: int
    options: dict[str, Any]
    shape: tuple[int, ...]
    call: dict[str, Any] = field(default_factory=dict)
    unlike: bool = False
    """True if x repeats rows or has rows of zeros."""
    inner: str = ""
    """The class of the quantizer inside, whose options these are."""
    make: Callable[[Any, dict[str, Any]], nn.Module] | None = None
    """The module of a library with these options, where it is more than the class of that name."""

    def __str__(self) -> str:
        place = f"tests/faults/test_compat_fuzz.py::test_what_differs_has_a_name[{self.kind}]"
        again = f"GMVQ_FAULTS_SEED={self.seed} pytest '{place}'"
        return f"{self.kind}(**{self.options}) of shape {self.shape}, called with {self.call}. Again: {again}"


@dataclass(frozen=True)
class Difference:
    """A difference that is known.

    Attributes:
        reason: Why it is there.
        applies: Whether it does to a case.
        hides: What it leaves uncompared in training: "values", "codes", "loss", "gradient", "later" (all after the
            first step), "state"; and elsewhere: "lookup", "evaluation". "all codes" are also those of evaluation. Other
            names are those of what comes in a dict.
    """

    reason: str
    applies: Callable[[Case], Any]
    hides: tuple[str, ...]


class UnexplainedError(AssertionError):
    """A difference without a name."""


class CodesDifferError(AssertionError):
    """Codes differ: ``when``, and ``where``, booleans of their shape."""

    def __init__(self, when: str, where: Tensor) -> None:
        super().__init__(f"{when}: {int(where.sum())} of {where.numel()} codes differ")
        self.when, self.where = when, where


class Comparison:
    """Compares modules of two libraries, and counts what came out."""

    def __init__(
        self,
        theirs: Any,
        ours: Any,
        refusals: dict[str, str],
        differences: list[Difference],
        warms: Callable[[Case], bool],
        put: Callable[[nn.Module, nn.Module], None],
        states: Callable[[nn.Module], list[Any]],
        constant: Callable[[nn.Module], float],
    ) -> None:
        self.theirs, self.ours, self.refusals, self.differences = theirs, ours, refusals, differences
        self.warms, self.put, self.states, self.constant = warms, put, states, constant
        self.outcomes: Counter[str] = Counter()

    def run(self, case: Case) -> None:
        """Compares one case.

        Raises:
            UnexplainedError: If the two differ, and no reason has a name.
        """
        module = _tried(lambda: _built(self.theirs, case))
        try:
            dropin = _built(self.ours, case)
        except (ValueError, TypeError) as refusal:
            self._refused(case, module, str(refusal))
            return
        if isinstance(module, Exception):
            self.outcomes["only the other library refuses"] += 1
            return
        hidden = {what for each in self.differences if each.applies(case) for what in each.hides}
        try:
            self._compare(case, module, dropin, hidden)
        except AssertionError as error:
            if isinstance(error, CodesDifferError) and self._is_between_codes(case, error):
                self.outcomes["a latent between two codes"] += 1
                return
            raise UnexplainedError(f"{error}\n{case}") from error

    def _is_between_codes(self, case: Case, error: CodesDifferError) -> bool:
        """Whether each of these codes of the other library changes when x moves a little."""
        codes = self._codes_of_theirs(case, None)[error.when]
        changed = torch.zeros_like(codes, dtype=torch.bool)
        share = ROUNDED if error.when in ("evaluation", "step 0") else LEARNED
        for draw in range(NUDGES):
            changed |= self._codes_of_theirs(case, (draw, share))[error.when] != codes
        return bool((changed | ~error.where).all())

    def _codes_of_theirs(self, case: Case, nudge: tuple[int, float] | None) -> dict[str, Tensor]:
        """The other library's codes in each part of the comparison; those before it do not move with x."""
        module = _built(self.theirs, case)
        self._warm(case, module)
        codes = {"evaluation": _codes(self._evaluated(case, copy.deepcopy(module).eval(), nudge))}
        optimizer = _optimizer(module)
        for step in range(STEPS):
            before = copy.deepcopy(module)
            codes[f"step {step}"] = _codes(self._step(case, before, None, step, nudge)[0])
            self._step(case, module, optimizer, step)
        return codes | {"evaluation afterwards": _codes(self._evaluated(case, module.eval(), nudge))}

    def _refused(self, case: Case, module: object, refusal: str) -> None:
        if isinstance(module, Exception):
            self.outcomes["both refuse"] += 1
            return
        if not any(re.search(pattern, refusal) for pattern in self.refusals):
            raise UnexplainedError(f"refused for no reason that is listed: {refusal}\n{case}")
        self.outcomes["refused for a reason that is listed"] += 1

    def _compare(self, case: Case, module: nn.Module, dropin: nn.Module, hidden: set[str]) -> None:
        if not self._warm(case, module):
            self.outcomes["the other library crashes"] += 1
            return
        self.put(dropin, module)
        self._evaluation(case, copy.deepcopy(module), copy.deepcopy(dropin), hidden, "evaluation")
        learners = [_optimizer(each) for each in (dropin, module)]
        for step in range(STEPS):
            answers = [
                self._step(case, each, optimizer, step)
                for each, optimizer in zip((dropin, module), learners, strict=True)
            ]
            mine, other = answers
            if isinstance(mine, ValueError) and not isinstance(other, Exception):
                self._refused(case, None, str(mine))
                return
            if isinstance(mine, Exception) and not isinstance(mine, ValueError):
                raise mine
            if isinstance(other, Exception) or isinstance(mine, Exception):
                self.outcomes["the other library crashes"] += 1
                return
            self._same(case, f"step {step}", mine, other, hidden, self.constant(dropin))
            if "later" in hidden:
                self.outcomes["equal but for a difference with a name"] += 1
                return
        if "state" not in hidden:
            for place, (mine, other) in enumerate(zip(self.states(dropin), self.states(module), strict=True)):
                _close(f"counts {place}", mine.cluster_size, other.cluster_size, 1e-3)
                lasting = other.cluster_size > 0.1  # theirs shrink where no latent has been for long
                _close(f"codes {place}", mine.embed[lasting], other.embed[lasting], 1e-3)
        self._evaluation(case, module, dropin, hidden, "evaluation afterwards")
        self.outcomes["equal but for a difference with a name" if hidden else "equal"] += 1

    def _warm(self, case: Case, module: nn.Module) -> bool:
        """Shows theirs what it starts from, and returns whether it could take it."""
        for seed in range(self.warms(case) and (8 if case.options.get("quantize_dropout") else 3)):
            _seeded(1_000 + seed + case.seed)
            rows = torch.randn(8 * case.shape[0], *case.shape[1:])
            if isinstance(_tried(lambda: module(rows)), Exception):  # noqa: B023
                return False
        return True

    @staticmethod
    @torch.no_grad()
    def _evaluated(case: Case, module: nn.Module, nudge: tuple[int, float] | None = None) -> Any:
        _seeded(case.seed)
        return _tried(lambda: module(latents(case, 17, nudge), **_call(case, training=False)))

    def _evaluation(self, case: Case, module: nn.Module, dropin: nn.Module, hidden: set[str], when: str) -> None:
        if "evaluation" in hidden:
            return
        both = [self._evaluated(case, each) for each in (dropin.eval(), module.eval())]
        mine, other = both
        if isinstance(other, Exception):
            return
        if isinstance(mine, Exception):
            raise mine
        self._same(case, when, (mine, None), (other, None), self._always(hidden), 0.0)
        if "lookup" in hidden:
            return
        mine, other = (each[0] if isinstance(each[0], tuple) else each for each in both)
        for name in ("get_output_from_indices", "get_codes_from_indices", "indices_to_codes"):
            if hasattr(module, name) and mine[1] is not None:
                found, expected = getattr(dropin, name)(mine[1]), _tried(lambda: getattr(module, name)(other[1]))  # noqa: B023
                if not isinstance(expected, Exception):
                    _close(name, found, expected, 1e-4)

    @staticmethod
    def _always(hidden: set[str]) -> set[str]:
        return {what.removeprefix("all ") for what in hidden if what.startswith("all ")}

    def _step(
        self,
        case: Case,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        step: int,
        nudge: tuple[int, float] | None = None,
    ) -> Any:
        x = latents(case, step, nudge).requires_grad_()
        _seeded(case.seed + step)

        def forward() -> Any:
            if optimizer is not None:
                optimizer.zero_grad()
            answer = module(x, **_call(case))
            values, _, *rest = answer[0] if isinstance(answer[0], tuple) else answer
            losses = [rest[0]] if rest and isinstance(rest[0], Tensor) and rest[0].is_floating_point() else []
            weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(step))
            total = (values * weights).sum() + sum(loss.sum() for loss in losses)
            if total.requires_grad:
                total.backward()
                if optimizer is not None:
                    optimizer.step()
            return answer, x.grad

        return _tried(forward)

    def _same(self, case: Case, when: str, mine: Any, other: Any, hidden: set[str], constant: float) -> None:
        (answer, gradient), (expected, their_gradient) = mine, other
        if isinstance(answer[0], tuple):
            answer, expected = answer[0], expected[0]
        hidden = hidden | self._always(hidden)
        assert len(answer) == len(expected), f"{when}: {len(answer)} returns, theirs {len(expected)}"
        _shapes(when, answer[0], expected[0])
        codes, theirs = _codes(answer), _codes(expected)
        is_loss = codes is not None and codes.is_floating_point()
        if not is_loss and codes is not None:
            _shapes(when, codes, theirs)
            if "codes" not in hidden and not torch.equal(codes.long(), theirs.long()):
                raise CodesDifferError(when, codes != theirs)
        if "values" not in hidden:
            _close(f"{when}: values", answer[0], expected[0], 1e-3 if "step" in when else 1e-4)
        losses = list(zip(answer[1 if is_loss else 2 :], expected[1 if is_loss else 2 :], strict=True))
        for place, (loss, theirs) in enumerate(losses[: 1 if "step" in when else None]):  # code vectors have moved
            if isinstance(loss, Tensor) and not isinstance(theirs, tuple):
                _shapes(when, loss, theirs)
                if "loss" not in hidden:
                    counts = theirs != 0 if case.options.get("quantize_dropout") else 1  # a level left out has no loss
                    _close(f"{when}: loss {place}", loss, theirs + constant * counts * ("step" in when), 2e-3)
        if "gradient" not in hidden and their_gradient is not None:
            _close(f"{when}: gradient", gradient, their_gradient, 5e-3)
        if isinstance(expected[-1], dict):
            _details(when, answer[-1], expected[-1], hidden)


def _codes(answer: Any) -> Any:
    codes = (answer[0] if isinstance(answer[0], tuple) else answer)[1]
    return torch.cat([level.flatten(1) for level in codes], 1) if isinstance(codes, tuple) else codes


def _details(when: str, mine: dict[str, Any], other: dict[str, Any], hidden: set[str]) -> None:
    """What comes in a dict; an error of the other library says nothing of ours."""
    assert mine.keys() == other.keys(), f"{when}: {sorted(mine)}, theirs {sorted(other)}"
    for name, expected in other.items():
        if isinstance(expected, dict):
            _details(when, mine[name], expected, hidden)
        elif not isinstance(expected, Exception) and name not in hidden:
            if isinstance(mine[name], Exception):
                raise mine[name]
            _close(f"{when}: {name}", mine[name], expected, 2e-3)


def latents(case: Case, seed: int, nudge: tuple[int, float] | None = None) -> Tensor:
    """Latents of a case; some have rows that repeat, or that are zero. A nudge (its seed, its size) moves them."""
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(1_000 * case.seed + seed))
    if case.unlike:
        x[0] = x[-1]
        x.flatten(0)[: x[0].numel() // 2] = 0
    if nudge is not None:
        draw, share = nudge
        x *= 1 + share * torch.randn(x.shape, generator=torch.Generator().manual_seed(draw))
    return x


def _call(case: Case, training: bool = True) -> dict[str, Any]:
    """Arguments of the call; those that only training has are left out in evaluation."""
    only_training = (
        "ema_update_weight",
        "accum_ema_update",
        "ema_update",
        "freeze_codebook",
        "sample_codebook_temp",
        "indices",
        "rand_quantize_dropout_fixed_seed",
    )
    return {name: value for name, value in case.call.items() if training or name not in only_training}


def _built(library: Any, case: Case) -> nn.Module:
    _seeded(case.seed)
    options = {
        name: value() if name in ("codebook_transform", "vq_bridge", "straight_through_activation") else value
        for name, value in case.options.items()
    }
    return getattr(library, case.kind)(**options) if case.make is None else case.make(library, options)


def _optimizer(module: nn.Module) -> torch.optim.Optimizer | None:
    learned = [*module.parameters()]
    return torch.optim.SGD(learned, lr=0.05) if learned else None


def _seeded(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


def _tried(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error


def _shapes(when: str, one: Tensor, two: Tensor) -> None:
    assert one.shape == two.shape, f"{when}: shape {tuple(one.shape)}, theirs {tuple(two.shape)}"


def _close(when: str, one: Tensor, two: Tensor, tolerance: float) -> None:
    _shapes(when, one, two)
    one, two = one.detach(), two.detach()
    if not len(one.shape) or one.numel():
        worst = float((one - two).abs().max())
        size = 1 + float(two.abs().max())
        assert worst <= tolerance * size, f"{when}: differ by {worst:.3g}, of size {size - 1:.3g}"

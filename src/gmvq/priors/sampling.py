r"""Draws of codes from logits: temperature, top-k, top-p, guidance, and random numbers for each sample.

A draw inverts the cumulative distribution at one uniform number. The numbers of sample i depend on the seed and on i
alone, so that a sample is the same by itself and in any batch.

References:
    guidance: Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), https://arxiv.org/abs/2207.12598;
    top-p: The Curious Case of Neural Text Degeneration (Holtzman et al., 2020), https://arxiv.org/abs/1904.09751
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gmvq.checks import at_least, fraction, non_negative


@dataclass(frozen=True)
class Sampling:
    r"""Settings of draws from logits.

    .. math:: \ell = \ell_\varnothing + w\, (\ell_y - \ell_\varnothing), \qquad
              p \propto \exp(\ell / \tau) \text{ over the kept codes}

    Args:
        temperature: tau; 0 selects the most likely code.
        top_k: Number of most likely codes to keep, and any as likely as the last of them; None for all.
        top_p: Probability of the most likely codes to keep; 1 for all.
        guidance: w, the classifier-free guidance: 0 ignores the class, 1 uses it as learned, more exaggerates it.
        seed: Seed of the uniform numbers.
        steps: Number of steps of priors that draw many codes at a time (masked, flows); None for the prior's default.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> Sampling(top_k=2).probabilities(torch.tensor([[0.1, 0.6, 0.3]]).log())
        tensor([[0.0000, 0.6667, 0.3333]])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        non_negative("temperature", self.temperature, "Use 1.0.")
        non_negative("guidance", self.guidance, "Use 1.0.")
        at_least("seed", self.seed, 0, "Use 0.")
        for name, remedy in (("top_k", "Use None for all codes."), ("steps", "Use None for the prior's default.")):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1, remedy)
        if fraction("top_p", self.top_p, "Use 1.0 for all codes.") == 0:
            raise ValueError("'top_p' must be above 0, got 0. Use top_k=1 for the most likely code.")

    def steps_or(self, usual: int) -> int:
        """Number of steps, or a default."""
        return usual if self.steps is None else self.steps

    @property
    def needs_both(self) -> bool:
        """True if guidance needs logits with and without the class."""
        return self.guidance not in (0.0, 1.0)

    def conditions(self, labels: Tensor | None) -> list[Tensor | None]:
        """Labels of the logits that guidance needs: those given, None, or both in this order."""
        return [labels, None] if self.needs_both else [labels if self.guidance else None]

    def guided(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Combines logits with and without the class, in float32."""
        conditional, unconditional = conditional.float(), unconditional.float()
        return unconditional + self.guidance * (conditional - unconditional)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities to draw with, from logits ``(B, K)``; each row sums to 1."""
        logits = logits.float()
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.top_p < 1:
            ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered
            ordered = ordered.masked_fill(before >= self.top_p, 0)  # the most likely one is always kept
            probabilities = torch.zeros_like(probabilities).scatter_(-1, places, ordered)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities

    def drawn(self, answers: Sequence[Sequence[Tensor]], uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Draws all codes of a batch at once.

        Args:
            answers: For each of :meth:`conditions`, the logits of each level ``(B, T, K)``.
            uniforms: A number per code, the levels of a place next to each other, ``(B, S)``.

        Returns:
            Codes, and their log-probabilities before temperature, top-k and top-p, both ``(B, S)``.
        """
        codes, nats, levels = [], [], len(answers[0])
        for level, logits in enumerate(zip(*answers, strict=True)):
            guided = (self.guided(*logits) if len(logits) == 2 else logits[0]).flatten(0, 1)
            codes.append(inverted(self.probabilities(guided), uniforms[:, level::levels].flatten()))
            nats.append(guided.float().log_softmax(-1).gather(-1, codes[-1][:, None])[:, 0])
        return torch.stack(codes, dim=-1).reshape(uniforms.shape), torch.stack(nats, dim=-1).reshape(uniforms.shape)

    def uniforms(self, first: int, samples: int, numbers: int, device: torch.device) -> Tensor:
        """Uniform numbers of the samples ``first``, ``first + 1``, ...: float64 ``(samples, numbers)`` in [0, 1)."""
        rows = [
            # NumPy hashes both numbers, where a generator of torch would use 32 bits of their sum
            torch.from_numpy(np.random.default_rng((self.seed, index)).random(numbers))
            for index in range(first, first + samples)
        ]
        return torch.stack(rows).to(device) if rows else torch.empty(0, numbers, dtype=torch.float64, device=device)


def inverted(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Codes at uniform numbers, by inversion: ``(B, K)`` and ``(B,)`` -> int64 ``(B,)``; never of probability 0."""
    cumulated = probabilities.double().cumsum(-1)
    # the total is 1 only up to rounding
    targets = uniforms.double()[:, None] * cumulated[:, -1:]
    codes = torch.searchsorted(cumulated, targets, right=True)[:, 0]
    last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1)
    return torch.minimum(codes, last)

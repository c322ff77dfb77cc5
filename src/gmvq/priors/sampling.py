r"""From probabilities to codes: temperature, top-k, top-p, guidance, and numbers that depend on the sample alone.

A draw inverts the cumulated distribution at one uniform number. The numbers of sample i come from the seed and i, so
that a sample is the same alone and in any batch.

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
    r"""How to draw from logits.

    .. math:: \ell = \ell_\varnothing + w\, (\ell_y - \ell_\varnothing), \qquad
              p \propto \exp(\ell / \tau) \text{ over the kept codes}

    Args:
        temperature: tau; 0 takes the most likely code.
        top_k: Keep the k most likely codes; None for all. Codes as likely as the k-th stay, too.
        top_p: Keep the most likely codes that together have this probability; 1 for all.
        guidance: w, the classifier-free guidance: 0 is without the class, 1 with it, more exaggerates it.
        seed: Of the uniform numbers.
        steps: Steps in which priors draw that draw many codes at a time, the masked one and the flows; None for each
            one's own number.

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
        for name, remedy in (("top_k", "Use None for all codes."), ("steps", "Use None for the prior's own number.")):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1, remedy)
        if fraction("top_p", self.top_p, "Use 1.0 for all codes.") == 0:
            raise ValueError("'top_p' must be above 0, got 0. Use top_k=1 for the most likely code.")

    def steps_or(self, usual: int) -> int:
        """Steps in which to draw, or as many as are usual."""
        return usual if self.steps is None else self.steps

    @property
    def needs_both(self) -> bool:
        """True if logits with and without the class are needed."""
        return self.guidance not in (0.0, 1.0)

    def conditions(self, labels: Tensor | None) -> list[Tensor | None]:
        """What logits are needed with: the class, or none, or both in this order."""
        return [labels, None] if self.needs_both else [labels if self.guidance else None]

    def guided(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Logits at the guidance, float32, of those with and without the class."""
        conditional, unconditional = conditional.float(), unconditional.float()
        return unconditional + self.guidance * (conditional - unconditional)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What to draw from, of logits ``(B, K)``; each row sums to 1."""
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
            ordered = ordered.masked_fill(before >= self.top_p, 0)  # the most likely one always stays
            probabilities = torch.zeros_like(probabilities).scatter_(-1, places, ordered)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities

    def drawn(self, answers: Sequence[Sequence[Tensor]], uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Draws all codes of some images at once.

        Args:
            answers: For each of :meth:`conditions` the logits of each level ``(B, T, K)``.
            uniforms: A number for each code, the levels of a place next to each other, ``(B, S)``.

        Returns:
            Codes, and their log-probabilities before temperature and cuts, both ``(B, S)``.
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
            # NumPy hashes both numbers; a generator of torch would take 32 bits of a sum of them
            torch.from_numpy(np.random.default_rng((self.seed, index)).random(numbers))
            for index in range(first, first + samples)
        ]
        return torch.stack(rows).to(device) if rows else torch.empty(0, numbers, dtype=torch.float64, device=device)


def inverted(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The codes at uniform numbers, by inversion: ``(B, K)`` and ``(B,)`` -> int64 ``(B,)``; none of probability 0."""
    cumulated = probabilities.double().cumsum(-1)
    # the total is 1 up to rounding
    targets = uniforms.double()[:, None] * cumulated[:, -1:]
    codes = torch.searchsorted(cumulated, targets, right=True)[:, 0]
    last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1)
    return torch.minimum(codes, last)

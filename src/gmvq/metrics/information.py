r"""Mutual information of data and codes, from the posterior over codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmvq.distributed import sum_over_ranks
from gmvq.metrics.precision import distributions


class MixtureInformation:
    r"""Mutual information of data and the codes of a mixture, streamed over tokens.

    From the responsibilities q(c | x) of each token, with the aggregated posterior q(c) = E_x q(c | x):

    .. math:: I_q(x; c) = H(q(c)) - \mathbb{E}_x H(q(c | x)) \in [0, \log K]

    One-hot posteriors spread over all codes give log K; a posterior that does not depend on the data gives 0. The
    metrics are those of the tokens that this process has seen. Under ``torch.distributed`` take them from
    :meth:`merged`, which every rank must call.

    Args:
        codebook_size: Number of components K.

    Raises:
        ValueError: If ``codebook_size`` is less than 1.

    Example:
        >>> information = MixtureInformation(4)
        >>> information.update(torch.eye(4))
        >>> information.posterior_entropy, round(math.exp(information.mutual_information), 6)
        (0.0, 4.0)
    """

    def __init__(self, codebook_size: int) -> None:
        if codebook_size < 1:
            raise ValueError(f"'codebook_size' must be at least 1, got {codebook_size}. Give the number of components.")
        self.codebook_size = codebook_size
        # q(c) of each code, entropy, tokens; made with the first tokens, since a codebook may be huge
        self._sums: Tensor | None = None

    def update(self, responsibilities: Tensor, mask: Tensor | None = None) -> None:
        """Adds tokens.

        Args:
            responsibilities: q(c | x), sums to 1 over the last axis, ``(*, K)``.
            mask: Booleans ``(*)``, False where a token is left out; None to count all.

        Raises:
            ValueError: If the responsibilities are not distributions over K codes, or the mask does not fit.
        """
        self.add(self.checked(responsibilities, mask))

    def checked(self, responsibilities: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns distributions of the tokens that count, float64 ``(N, K)``; arguments and errors as in `update`."""
        if responsibilities.ndim < 1 or responsibilities.shape[-1] != self.codebook_size:
            raise ValueError(
                f"The last axis of 'responsibilities' must have {self.codebook_size} components, "
                f"got shape {tuple(responsibilities.shape)}. Give the responsibilities of posterior()."
            )
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != responsibilities.shape[:-1]:
                raise ValueError(
                    f"'mask' must be boolean with the shape {tuple(responsibilities.shape[:-1])} of the tokens, "
                    f"got {mask.dtype} {tuple(mask.shape)}. Convert it with .bool()."
                )
            responsibilities = responsibilities[mask]
        return distributions("responsibilities", responsibilities.detach().reshape(-1, self.codebook_size))

    def add(self, rows: Tensor) -> None:
        """Adds rows that :meth:`checked` returned."""
        if len(rows):
            entropies = torch.special.entr(rows).sum()
            sums = torch.cat([rows.sum(dim=0), entropies[None], entropies.new_tensor([len(rows)])]).cpu()
            self._sums = sums if self._sums is None else self._sums + sums

    def merged(self) -> MixtureInformation:
        """Sums over all ranks into a new accumulator; without a process group it is a copy.

        This is a collective: when a process group exists at the call, every rank must call it.
        """
        merged = MixtureInformation(self.codebook_size)
        if bool(sum_over_ranks(torch.tensor(self._sums is not None, dtype=torch.int64))):
            own = torch.zeros(self.codebook_size + 2, dtype=torch.float64) if self._sums is None else self._sums
            merged._sums = sum_over_ranks(own).clone()
        return merged

    @property
    def tokens(self) -> int:
        """Number of tokens seen."""
        return 0 if self._sums is None else int(self._sums[-1])

    @property
    def aggregated_posterior(self) -> Tensor:
        """q(c), the mean of q(c | x) over tokens, float64 ``(K,)``.

        Raises:
            ValueError: If no token was seen.
        """
        if self._sums is None:
            raise ValueError("The aggregated posterior needs at least 1 token, got 0. Call update() first.")
        return self._sums[:-2] / self._sums[:-2].sum()

    @property
    def posterior_entropy(self) -> float:
        """Mean over tokens of the entropy of q(c | x) in nats, in [0, log K].

        Raises:
            ValueError: If no token was seen.
        """
        if self._sums is None:
            raise ValueError("The posterior entropy needs at least 1 token, got 0. Call update() first.")
        return min(float(self._sums[-2] / self._sums[-1]), math.log(self.codebook_size))

    @property
    def aggregated_posterior_entropy(self) -> float:
        """Entropy of q(c) in nats, in [0, log K].

        Raises:
            ValueError: If no token was seen.
        """
        entropy = float(torch.special.entr(self.aggregated_posterior).sum())
        return min(entropy, math.log(self.codebook_size))  # rounding may lift it above its bound by an ulp

    @property
    def mutual_information(self) -> float:
        """I_q(x; c) in nats, in [0, log K]: :attr:`aggregated_posterior_entropy` less :attr:`posterior_entropy`.

        Raises:
            ValueError: If no token was seen.
        """
        return max(self.aggregated_posterior_entropy - self.posterior_entropy, 0.0)

r"""Averaged weights: smoother than the last ones; a run saves them.

.. math:: \bar\theta_n = \gamma_n \bar\theta_{n-1} + (1 - \gamma_n) \theta_n, \quad
          \gamma_n = \min\big(\gamma, \tfrac{1 + n}{10 + n}\big)

Parameters are averaged, buffers are copied: moving-average codes, variances and normalization statistics already are
running averages over past steps. Averaged twice, the codes would lag behind the averaged encoder, and a dead code that
is revived repeatedly would end up between all its former positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of a model's parameters.

    Args:
        model: The model whose parameters are averaged.
        decay: gamma, in [0, 1); 0 keeps the current parameters.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, _ in model.named_parameters()]
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self._averages = [parameter.clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the parameters after optimizer step ``step``, counted from 1, to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def tensors(self) -> dict[str, Tensor]:
        """Returns the averages by name."""
        return dict(zip(self.names, self._averages, strict=True))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores averages from the result of :meth:`tensors`."""
        for name, average in self.tensors().items():
            average.copy_(tensors[name])

    @torch.no_grad()
    def write_to(self, averaged: nn.Module, model: nn.Module) -> None:
        """Loads the averaged parameters, and the buffers of ``model``, into another model of the same kind."""
        # load_state_dict instead of copy_: on loading, modules update flags that they keep on the host
        averaged.load_state_dict({**model.state_dict(), **self.tensors()})


class BestWeights:
    """The state of the model that was best on held-out data so far, which a run that overfits saves.

    Attributes:
        score: Score of that model, higher is better.
        state: Its parameters and buffers by name, empty before the first.
    """

    def __init__(self) -> None:
        self.score = -math.inf
        self.state: dict[str, Tensor] = {}

    @torch.no_grad()
    def offer(self, score: float, model: nn.Module) -> None:
        """Stores a model if its score is the best so far."""
        if score > self.score:
            self.score = score
            self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Returns state and score for a checkpoint."""
        return {**self.state, "score": torch.tensor(self.score, dtype=torch.float64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the result of :meth:`tensors`."""
        self.score = float(tensors["score"])
        self.state = {name: tensor for name, tensor in tensors.items() if name != "score"}

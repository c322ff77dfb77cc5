r"""Flows from noise to codes: all places move at once, from t = 0 to t = 1.

**Between codes** (:class:`CodeFlowPrior`). At time t each code is that of the item with probability t, and a uniformly
random one otherwise. A transformer that sees all of them and t learns to predict the item's codes, by cross entropy. In
a draw, each code jumps to a predicted one at the rate :math:`1 / (1 - t)`. So a drawn code can change again, which a
masked prior's cannot.

**Between latents** (:class:`LatentFlowPrior`). The codes are the means of a mixture, so they have positions in space:

.. math:: z_t = (1 - t)\, \epsilon + t\, z, \quad z \sim p(z \mid c) \text{ in the cell of } c, \qquad
          \min_v \mathbb{E} \big| v(z_t, t) - (z - \epsilon) \big|^2

and a draw follows :math:`dz = v\, dt` from noise to a latent, whose nearest code is the result.

In a completion, known codes have their final value from the start, and are marked: in training, a part of the codes of
half of the items is shown like this. These flows have no likelihood here.

References:
    Discrete Flow Matching (Gat et al., 2024), https://arxiv.org/abs/2407.15595;
    Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.checks import at_least, fraction
from gmvq.distributed import places_per_rank
from gmvq.kernels import nearest_code
from gmvq.networks.layers import WAVES, even_times, waves
from gmvq.networks.transformer import Transformer, initialize
from gmvq.priors.base import AbstractPrior, CodeShape, Integers, NoLikelihoodError
from gmvq.priors.conditioning import ClassVectors, grid_vectors
from gmvq.priors.sampling import Sampling

STEPS = 50
"""Number of steps of a draw, by default."""
SHORTENED = 4
"""Number of times that the noise of a latent outside its cell is halved, before it is set to 0."""


@dataclass(frozen=True)
class FlowConfig:
    """Size of a flow.

    Args:
        width: Features of the transformer.
        depth: Number of layers.
        heads: Number of attention heads.
        dropout: Share of features set to 0 in each part of a layer, in training.
        label_dropout: Share of the items that are learned without their class, as guidance needs.
        known_share: Share of the items of which a part of the codes is known in training, as completion needs.

    Raises:
        ValueError: If ``known_share`` is not in [0, 1].
    """

    width: int = 256
    depth: int = 6
    heads: int = 4
    dropout: float = 0.1
    label_dropout: float = 0.1
    known_share: float = 0.5

    def __post_init__(self) -> None:
        fraction("known_share", self.known_share, "Use 0.5.")


@dataclass(frozen=True)
class LatentFlowConfig(FlowConfig):
    """Size of a flow of latents.

    Args:
        codebook_dim: Features L of a code.

    Raises:
        ValueError: If a number is out of range.
    """

    codebook_dim: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("codebook_dim", self.codebook_dim, 1, "Use the codebook's.")


class AbstractFlowPrior(AbstractPrior):
    """A transformer that sees all places, a time and a class.

    Args:
        shape: Shape of the codes.
        config: Its size; the defaults of its class, if None.
    """

    has_likelihood: ClassVar[bool] = False

    def __init__(self, shape: CodeShape, config: FlowConfig) -> None:
        super().__init__(shape)
        self.config = config
        width = self.config.width
        self.classes = ClassVectors(shape.classes, width, self.config.label_dropout)
        self.times = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.axes = nn.ParameterList(nn.Parameter(torch.empty(side, width)) for side in (*shape.sides, shape.levels))
        self.transformer = Transformer(
            width, self.config.depth, self.config.heads, shape.length + 2, causal=False, dropout=self.config.dropout
        )
        self.known = nn.Parameter(torch.empty(width))
        initialize(self.axes, self.times)
        nn.init.normal_(self.known, std=0.02)

    def log_prob(self, codes: Integers, labels: Integers | None = None) -> Tensor:
        """Raises an error, since a flow has no likelihood here.

        Raises:
            NoLikelihoodError: Always.
        """
        raise NoLikelihoodError(f"{type(self).__name__} has no likelihood of codes. Use AutoregressivePrior.")

    def forward(self, codes: Integers, labels: Integers | None = None) -> Tensor:
        """Computes the loss, ``()``. In training, classes are dropped at random.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each item ``(B,)``; None for no class.
        """
        # checking values would wait for a GPU in each step; the trainer has checked its codes before
        looks = self.device.type == "cpu"
        rows = self.shape.checked(codes, ranges=looks).to(self.device).reshape(-1, self.shape.length)
        labels = self.shape.checked_labels(labels, len(codes), self.device, ranges=looks)
        times = even_times(len(rows), rows.device, over_ranks=self.training)
        shares = torch.rand(2, len(rows), 1, device=rows.device)
        shown = torch.where(shares[0] < self.config.known_share, shares[1], 0)
        return self._loss(rows, times, labels, torch.rand(rows.shape, device=rows.device) < shown)

    @torch.no_grad()
    def complete(  # noqa: D102
        self, known: Integers, labels: Integers | None = None, sampling: Sampling | None = None, *, first: int = 0
    ) -> Tensor:
        sampling = Sampling() if sampling is None else sampling
        known, labels = self._to_complete(known, labels, sampling)
        rows = known.reshape(-1, self.shape.length)
        return self._drawn(rows, labels, sampling, first).reshape(known.shape)

    @abstractmethod
    def _loss(self, codes: Tensor, times: Tensor, labels: Tensor | None, known: Tensor) -> Tensor:
        """The loss of codes ``(B, S)`` at times ``(B,)``, over those that are not ``known`` ``(B, S)``."""

    def _mean(self, losses: Tensor, unknown: Tensor) -> Tensor:
        """Averages losses ``(B, S)`` over codes that are not known, in training those of all ranks."""
        number = unknown.sum()
        return (losses * unknown).sum() / (places_per_rank(number) if self.training else number.clamp_min(1))

    @abstractmethod
    def _drawn(self, known: Tensor, labels: Tensor | None, sampling: Sampling, first: int) -> Tensor:
        """Draws the codes ``(B, S)`` that are -1."""

    def _answers(self, features: Tensor, times: Tensor, labels: Tensor | None, known: Tensor) -> Tensor:
        """Maps features of all codes ``(B, S, width)`` to the same shape, by the transformer."""
        *grid, levels = self.axes
        places = (grid_vectors(grid)[:, None] + levels).flatten(0, 1)
        features = features + places + known[..., None] * self.known
        time = self.times(waves(times).to(self.known.dtype))
        head = torch.stack([self.classes(labels, len(features)), time], dim=1)
        return self.transformer(torch.cat([head, features], dim=1))[:, 2:]


class CodeFlowPrior(AbstractFlowPrior):
    r"""A flow between codes, from uniformly random ones.

    .. math:: p(c_t = k) = t\, [k = c] + (1 - t) / K

    Args:
        shape: Shape of the codes.
        config: Its size; the defaults of its class, if None.

    Shape:
        codes ``(B, *grid[, levels])`` -> a cross entropy in nats per code, ``()``.

    References:
        Discrete Flow Matching (Gat et al., 2024), https://arxiv.org/abs/2407.15595

    Example:
        >>> prior = CodeFlowPrior(CodeShape((4, 4), (16,)), FlowConfig(width=32, depth=1, heads=2)).eval()
        >>> prior.sample(2).shape
        torch.Size([2, 4, 4])
    """

    citations: ClassVar[tuple[str, ...]] = ("dfm_gat2024",)
    sizes: Tensor

    def __init__(self, shape: CodeShape, config: FlowConfig | None = None) -> None:
        super().__init__(shape, FlowConfig() if config is None else config)
        width, sizes = self.config.width, shape.codebook_sizes
        self.register_buffer("sizes", torch.tensor(sizes).repeat(shape.places), persistent=False)
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        initialize(self.embeddings, self.heads)

    def _logits(self, codes: Tensor, times: Tensor, labels: Tensor | None, known: Tensor) -> list[Tensor]:
        """Logits of the item's codes, for each level ``(B, T, K)``."""
        by_place = codes.unflatten(1, (-1, self.shape.levels))
        parts = [embed(by_place[..., level]) for level, embed in enumerate(self.embeddings)]
        answers = self._answers(torch.stack(parts, dim=2).flatten(1, 2), times, labels, known)
        answers = answers.unflatten(1, (-1, self.shape.levels))
        return [head(answers[:, :, level]) for level, head in enumerate(self.heads)]

    def _loss(self, codes: Tensor, times: Tensor, labels: Tensor | None, known: Tensor) -> Tensor:
        noise = (torch.rand(codes.shape, device=codes.device) * self.sizes).long()
        there = (torch.rand(codes.shape, device=codes.device) < times[:, None]) | known
        logits = self._logits(torch.where(there, codes, noise), times, labels, known)
        by_place = codes.unflatten(1, (-1, self.shape.levels))
        nats = [
            F.cross_entropy(each.float().flatten(0, 1), by_place[..., level].flatten(), reduction="none")
            for level, each in enumerate(logits)
        ]
        return self._mean(torch.stack(nats, dim=-1).reshape(codes.shape), ~known)

    def _drawn(self, known: Tensor, labels: Tensor | None, sampling: Sampling, first: int) -> Tensor:
        steps, (batch, length) = sampling.steps_or(STEPS), known.shape
        numbers = sampling.uniforms(first, batch, (2 * steps + 1) * length, self.device).unflatten(1, (-1, length))
        given, sizes = known >= 0, self.sizes
        codes = torch.where(given, known, (numbers[:, 0] * sizes).long().minimum(sizes - 1))
        for step in range(steps):
            said = self._said(codes, step / steps, labels, sampling, numbers[:, 2 * step + 1], given)
            # in a step of length h a code jumps with probability h / (1 - t), which is 1 in the last step
            jumps = (numbers[:, 2 * step + 2] < 1 / (steps - step)) & ~given
            codes = torch.where(jumps, said, codes)
        return codes

    def _said(
        self, codes: Tensor, time: float, labels: Tensor | None, sampling: Sampling, uniforms: Tensor, known: Tensor
    ) -> Tensor:
        """Draws the item's codes ``(B, S)`` from their prediction at a time."""
        times = torch.full((len(codes),), time, device=codes.device)
        answers = [self._logits(codes, times, each, known) for each in sampling.conditions(labels)]
        return sampling.drawn(answers, uniforms)[0]


class LatentFlowPrior(AbstractFlowPrior):
    r"""A flow between latents, from a normal distribution, whose codes are the nearest ones.

    It needs the codebook, of one level: call :meth:`place` before training. In training, latents are spread around
    their code with the mixture's deviation, but never beyond its cell: the code of each remains the nearest.

    The temperature scales the noise at the start of the flow; ``top_k`` and ``top_p`` are not supported.

    Args:
        shape: Shape of the codes, with one level.
        config: Its size; the defaults of its class, if None.

    Shape:
        codes ``(B, *grid)`` -> a squared error of the velocity, ``()``, in units of the latents' standard deviation.

    Raises:
        ValueError: If there are several levels.

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747

    Example:
        >>> size = LatentFlowConfig(width=32, depth=1, heads=2, codebook_dim=2)
        >>> prior = LatentFlowPrior(CodeShape((4, 4), (16,)), size)
        >>> prior.place(torch.randn(16, 2), deviation=0.1)
        >>> prior.eval().sample(3).shape
        torch.Size([3, 4, 4])
    """

    citations: ClassVar[tuple[str, ...]] = ("flow_lipman2022",)
    codes: Tensor
    mean: Tensor
    scale: Tensor
    deviation: Tensor

    def __init__(self, shape: CodeShape, config: LatentFlowConfig | None = None) -> None:
        if shape.levels != 1:
            raise ValueError(f"'shape' must have one level for a flow of latents, got {shape.levels}. Join the codes.")
        config = LatentFlowConfig() if config is None else config
        super().__init__(shape, config)
        self.codebook_dim = codebook_dim = config.codebook_dim
        self.project_in = nn.Linear(codebook_dim, self.config.width)
        self.project_out = nn.Linear(self.config.width, codebook_dim)
        initialize(self.project_in, self.project_out)
        self.register_buffer("codes", torch.zeros(shape.codebook_sizes[0], codebook_dim))
        self.register_buffer("mean", torch.zeros(codebook_dim))
        self.register_buffer("scale", torch.zeros(codebook_dim))  # 0: no codebook yet
        self.register_buffer("deviation", torch.zeros(()))

    @torch.no_grad()
    def place(self, codebook: Tensor, deviation: float = 0.0, counts: Tensor | None = None) -> None:
        """Sets the positions of the codes.

        Args:
            codebook: Code vectors ``(K, L)``, inside the quantizer's projection.
            deviation: sigma, the standard deviation of latents around their code in training.
            counts: How often each code occurs ``(K,)``; equally often by default.

        Raises:
            ValueError: If the codebook has another shape or is not finite, ``deviation`` is below 0, or counts are not
                one number of at least 0 per code with a sum above 0.
        """
        if codebook.shape != self.codes.shape or not bool(codebook.isfinite().all()):
            raise ValueError(
                f"'codebook' must be finite, of shape {tuple(self.codes.shape)}, got {tuple(codebook.shape)}. Give the "
                "tokenizer's, inside its projection."
            )
        if not 0 <= deviation < math.inf:
            raise ValueError(f"'deviation' must be a finite number of at least 0, got {deviation}. Use 0.0.")
        if counts is not None and (counts.shape != codebook.shape[:1] or bool((counts < 0).any()) or not counts.any()):
            raise ValueError(f"'counts' must be {len(codebook)} numbers of at least 0, not all 0. Count the codes.")
        codebook = codebook.float()
        weights = torch.ones(len(codebook)) if counts is None else counts.cpu().float()
        weights = (weights / weights.sum())[:, None].to(codebook)
        mean = (weights * codebook).sum(0)
        variance = (weights * (codebook - mean).square()).sum(0) + deviation**2
        self.codes.copy_(codebook)
        self.mean.copy_(mean)
        self.scale.copy_(variance.clamp_min(1e-12).sqrt())
        self.deviation.fill_(deviation)

    def _velocity(self, latents: Tensor, times: Tensor, labels: Tensor | None, known: Tensor) -> Tensor:
        features = self.project_in(latents.to(self.known.dtype))
        return self.project_out(self._answers(features, times, labels, known)).float()

    def latents_of(self, codes: Tensor) -> Tensor:
        """Draws latents in the cells of codes: ``(*)`` -> ``(*, L)``; uses torch's global generator."""
        means = self.codes.float()[codes]
        noise = self.deviation * torch.randn(means.shape, device=means.device)
        for _ in range(SHORTENED):
            strayed = self.code_of(means + noise) != codes
            noise = torch.where(strayed[..., None], noise / 2, noise)
        return torch.where((self.code_of(means + noise) == codes)[..., None], means + noise, means)

    def code_of(self, latents: Tensor) -> Tensor:
        """Nearest codes of latents: ``(*, L)`` -> int64 ``(*)``."""
        rows = latents.float().reshape(-1, self.codebook_dim)
        return nearest_code(rows, self.codes.float()).reshape(latents.shape[:-1])

    def _loss(self, codes: Tensor, times: Tensor, labels: Tensor | None, known: Tensor) -> Tensor:
        self._check_placed()
        latents = ((self.latents_of(codes) - self.mean) / self.scale).float()
        noise = torch.randn(latents.shape, device=codes.device)
        moving = torch.lerp(noise, latents, times[:, None, None])
        velocity = self._velocity(torch.where(known[..., None], latents, moving), times, labels, known)
        return self._mean((velocity - (latents - noise)).square().mean(-1), ~known)

    def _drawn(self, known: Tensor, labels: Tensor | None, sampling: Sampling, first: int) -> Tensor:
        self._check_placed()
        if sampling.top_k is not None or sampling.top_p < 1:
            raise ValueError("'top_k' and 'top_p' must be left out for a flow of latents. Use temperature.")
        steps, (batch, length) = sampling.steps_or(STEPS), known.shape
        uniforms = sampling.uniforms(first, batch, length * self.codebook_dim, self.device).clamp(1e-12, 1 - 1e-12)
        noise = torch.special.ndtri(uniforms).float().unflatten(1, (length, self.codebook_dim))
        given, there = known >= 0, (self.codes.float()[known.clamp_min(0)] - self.mean) / self.scale
        latents = torch.where(given[..., None], there, sampling.temperature * noise)
        for step in range(steps):
            half = latents + self._guided(latents, step / steps, labels, sampling, given) / (2 * steps)
            # the midpoint rule
            latents = latents + self._guided(half, (step + 0.5) / steps, labels, sampling, given) / steps
        return torch.where(given, known, self.code_of(latents * self.scale + self.mean))

    def _guided(self, latents: Tensor, time: float, labels: Tensor | None, sampling: Sampling, known: Tensor) -> Tensor:
        """Velocity of all latents at a time; 0 for those that are known."""
        times = torch.full((len(latents),), time, device=latents.device)
        answers = [self._velocity(latents, times, each, known) for each in sampling.conditions(labels)]
        velocity = sampling.guided(*answers) if len(answers) == 2 else answers[0]
        return velocity.masked_fill(known[..., None], 0.0)

    def _check_placed(self) -> None:
        if self.device.type == "cpu" and not bool(self.scale.any()):  # a look would wait for a GPU
            raise ValueError("A flow of latents must have a codebook, got none. Call place(codebook) first.")

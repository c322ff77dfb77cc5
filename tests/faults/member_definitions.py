r"""What codes, posteriors and values of each quantizer are, plainly and in float64, and what rounding may change.

A row's scores are compared with a bound of their rounding: a code is wrong if another one is better by more than both
bounds. Distances of codes are computed as differences of products around the median m of some codes, so that they may
be off by :math:`(L + 8)\,\epsilon\,(|z - m| + |\mu_c - m|)^2`.
"""

import copy
import math
from functools import singledispatch
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq import quantizers as q

LARGEST = 1e10
"""Magnitude to which quantizers clamp latents."""

MIDDLE = 63
"""Most codes that the median is taken of, one in every so many: with two heaps of codes it may lie in the other one."""

SHORTEST = 1e-4
"""Length below which a latent has no direction."""


class Problem(NamedTuple):
    """Rows to quantize.

    Attributes:
        rows: Float64, ``(N, dim)``.
        error: By how much the quantizer's own rows may differ from them, ``(N,)``.
        epsilon: Relative spacing of the type that it computes in.
    """

    rows: Tensor
    error: Tensor
    epsilon: float

    @property
    def lengths(self) -> Tensor:
        return self.rows.norm(dim=-1)

    @property
    def tiny(self) -> float:
        """What products may lose to underflow."""
        return 1e-36 if self.epsilon > 1e-10 else 1e-300

    def to(self, rows: Tensor, gain: float, lengths: Tensor | float = 0.0) -> "Problem":
        """Rows behind a map with a gain, itself rounded in proportion to the lengths."""
        own = 16 * (self.rows.shape[-1] + 4) * self.epsilon * (gain * self.lengths + lengths + rows.norm(dim=-1))
        return Problem(rows, gain * self.error + own, self.epsilon)

    def clamped(self) -> "Problem":
        """Rows as each quantizer clamps its own."""
        return self._replace(rows=self.rows.clamp(-LARGEST, LARGEST))

    def unit(self) -> "Problem":
        """Rows scaled to length 1."""
        lengths = self.lengths.clamp_min(SHORTEST)
        return Problem(self.rows / lengths[:, None], 2 * self.error / lengths + 8 * self.epsilon, self.epsilon)


def wrong(scores: Tensor, bounds: Tensor, codes: Tensor) -> Tensor:
    """Rows ``(N,)`` for whose code another has a lower score, beyond the bounds; all ``(N, K)``."""
    bounds = torch.broadcast_to(bounds, scores.shape)
    own = (scores - bounds).gather(-1, codes[:, None])[:, 0]
    return ~(own <= (scores + bounds).amin(-1))


def distances(problem: Problem, codes: Tensor, weights: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Squared distances ``(N, K)`` to codes ``(K, L)``, with weights of ``(N or 1, K or 1, L)``, and their bounds."""
    rows, codes = problem.rows, codes.double()
    weights = torch.as_tensor(weights, dtype=torch.float64)
    squares = (weights * (rows[:, None] - codes).square()).sum(-1)
    center = codes[:: math.ceil(len(codes) / MIDDLE)].median(0).values
    most = weights.amax(-1) if weights.ndim else weights
    reach = (rows - center).norm(dim=-1)[:, None] + (codes - center).norm(dim=-1)
    plain = (rows[:, None] - codes).norm(dim=-1)
    rounding = (rows.shape[-1] + 8) * problem.epsilon * (reach + 2 * problem.epsilon * codes.norm(dim=-1)).square()
    # codes and rows have a rounding of their own, relative to their size
    moved = problem.error[:, None] + problem.epsilon * (codes.norm(dim=-1) + problem.lengths[:, None])
    return squares, most * (rounding + 4 * moved * (plain + moved)) + problem.tiny


def inside(quantizer: q.AbstractBottleneck, problem: Problem) -> Problem:
    """Rows behind the learned projection of a quantizer, if it has one."""
    if quantizer.projection is None:
        return problem
    directions, offset = quantizer.projection.directions.double().T, quantizer.projection.offset.double()
    inverse = torch.linalg.pinv(directions)
    gain = float(torch.linalg.matrix_norm(inverse, 2) * torch.linalg.cond(directions) ** 2)
    return problem.to((problem.rows - offset) @ inverse.T, gain, gain * offset.norm())


def of_latents(latents: Tensor) -> Problem:
    """The problem of latents ``(*, dim)``."""
    epsilon = torch.finfo(torch.float64 if latents.dtype == torch.float64 else torch.float32).eps
    rows = latents.detach().double().reshape(-1, latents.shape[-1])
    return Problem(rows, torch.zeros(len(rows), dtype=torch.float64), epsilon).clamped()


@singledispatch
def wrong_codes(quantizer: q.AbstractBottleneck, problem: Problem, codes: Tensor) -> Tensor:
    """Rows ``(N,)`` whose codes in evaluation, ``(N, *code_shape)``, are not those of the definition."""
    problem = inside(quantizer, problem)  # by default the nearest of all code vectors
    if getattr(quantizer, "cosine", False):
        problem = problem.unit()
    return wrong(*distances(problem, quantizer.code_vectors), codes)


@wrong_codes.register
def _(quantizer: q.GaussianMixtureQuantizer, problem: Problem, codes: Tensor) -> Tensor:
    scores, bounds = mixture_scores(quantizer, problem)
    return wrong(scores, bounds, codes)


def mixture_scores(quantizer: q.GaussianMixtureQuantizer, problem: Problem) -> tuple[Tensor, Tensor]:
    """Energies less log-weights and log-volumes, in nats ``(N, K)``, and their bounds."""
    problem = inside(quantizer, problem)
    vectors = quantizer.code_vectors.detach()
    variance = quantizer.variance.value(vectors).detach().double()  # (1 or K, 1 or L)
    sharp = float(quantizer.sharpening(quantizer.progress))
    weights = quantizer.feature_weights.detach().double() / (2 * variance * sharp**2)
    scores, bounds = distances(problem, vectors, weights[None].expand(1, -1, vectors.shape[-1]))
    rounding = 16 * (torch.finfo(vectors.dtype).eps + problem.epsilon)  # of the variances themselves
    prior = quantizer.log_prior.detach().double()
    volumes = variance.log().expand(-1, vectors.shape[-1]).sum(-1) / 2
    volumes = volumes - volumes.mean()
    total = scores - prior + volumes
    return total, bounds + rounding * (scores + prior.abs() + volumes.abs() + 1)


@wrong_codes.register
def _(quantizer: q.FiniteScalarQuantizer, problem: Problem, codes: Tensor) -> Tensor:
    problem = inside(quantizer, problem)
    shift, half = quantizer.shift.double(), quantizer.half_range.double()
    sizes = quantizer.grid.sizes

    def places(rows: Tensor) -> Tensor:
        squashed = (rows + shift).tanh() if quantizer.bound == "tanh" else (rows + shift).clamp(-1, 1)
        if quantizer.symmetric:
            return (sizes - 1) * (squashed + 1) / 2
        return half * squashed - quantizer.offset.double() + sizes // 2

    levels = codes[:, None] // quantizer.grid.strides % sizes
    slack = problem.error[:, None] + 4 * problem.epsilon * (problem.rows.abs() + 1)
    low, high = places(problem.rows - slack), places(problem.rows + slack)
    rounding = 0.5 + 16 * problem.epsilon * sizes
    highest = sizes - 1.0
    low, high = low.clamp_min(0).minimum(highest), high.clamp_min(0).minimum(highest)
    return ((levels < low - rounding) | (levels > high + rounding)).any(-1)


@wrong_codes.register
def _(quantizer: q.LatentQuantizer, problem: Problem, codes: Tensor) -> Tensor:
    problem = inside(quantizer, problem)
    bad = torch.zeros(len(codes), dtype=torch.bool)
    levels = codes[:, None] // quantizer.grid.strides % quantizer.grid.sizes
    values = quantizer.values.detach().double().split(quantizer.levels)
    for feature, own in enumerate(values):
        rows = problem.rows[:, feature, None]
        bounds = problem.error[:, None] + 4 * problem.epsilon * (rows.abs() + own.abs().max()) + problem.tiny
        bad |= wrong((rows - own).abs(), bounds, levels[:, feature])
    return bad


@wrong_codes.register(q.LookupFreeQuantizer)
@wrong_codes.register(q.BinarySphericalQuantizer)
def _(quantizer: q.LookupFreeQuantizer, problem: Problem, codes: Tensor) -> Tensor:
    problem = inside(quantizer, problem)
    bits = codes[:, None] >> torch.arange(quantizer.codebook_dim - 1, -1, -1) & 1  # the first is the most significant
    sure = problem.rows.abs() > problem.error[:, None] + problem.tiny
    return (sure & ((problem.rows > 0) != bits.bool())).any(-1)


@wrong_codes.register
def _(quantizer: q.IndexBackpropagationQuantizer, problem: Problem, codes: Tensor) -> Tensor:
    problem = inside(quantizer, problem)
    problem = problem.unit() if quantizer.cosine else problem
    vectors = quantizer.code_vectors.detach().double()
    lengths = vectors.norm(dim=-1)
    rounding = (problem.rows.shape[-1] + 8) * problem.epsilon * problem.lengths + problem.error
    return wrong(-problem.rows @ vectors.T, rounding[:, None] * lengths + problem.tiny, codes)


@wrong_codes.register
def _(quantizer: q.RandomProjectionQuantizer, problem: Problem, codes: Tensor) -> Tensor:
    projection = quantizer.random_projection.double()
    rows, lengths = problem.rows, problem.lengths
    if quantizer.normalize:
        rows = rows - rows.mean(-1, keepdim=True)
        lengths = (problem.rows - problem.rows[:, :1]).norm(dim=-1) + rows.norm(dim=-1)
    gain = float(torch.linalg.matrix_norm(projection, 2))
    projected = rows @ projection
    error = 16 * (rows.shape[-1] + 4) * problem.epsilon * gain * lengths + 2 * gain * problem.error
    return wrong(*distances(Problem(projected, error, problem.epsilon).unit(), quantizer.code_vectors), codes)


@wrong_codes.register
def _(quantizer: q.StochasticQuantizer, problem: Problem, codes: Tensor) -> Tensor:
    return wrong(*stochastic_scores(quantizer, problem), codes)


def stochastic_scores(quantizer: q.StochasticQuantizer, problem: Problem) -> tuple[Tensor, Tensor]:
    """Energies in nats ``(N, K)`` for the variances of each latent by itself, and their bounds."""
    problem = inside(quantizer, problem)
    logits = quantizer.variance_offset.detach().double().expand(len(problem.rows), -1)
    slack = problem.epsilon * logits.abs()
    if quantizer.variance_head is not None:
        weight, seen = quantizer.variance_head.weight.detach().double(), problem.rows.clamp(-1e4, 1e4)
        logits = logits + seen @ weight.T
        moved = 16 * problem.epsilon * seen.norm(dim=-1) + problem.error.clamp_max(1e4)
        slack = slack + moved[:, None] * weight.norm(dim=-1)
    precision = (-20 * (logits / 20).tanh()).exp()  # (N, 1 or L)
    relative = (slack + 64 * problem.epsilon).amax(-1, keepdim=True).clamp_max(40).expm1()
    if quantizer.is_spherical:
        near, vectors = problem.unit(), F.normalize(quantizer.learned_codes.detach().double(), dim=-1, eps=SHORTEST)
        scores = precision * (1 - near.rows @ vectors.T)
        epsilon = max(problem.epsilon, torch.finfo(quantizer.learned_codes.dtype).eps)  # codes have the state's
        return scores, precision * (near.error[:, None] + 32 * epsilon) + relative * scores.abs()
    scores, bounds = distances(problem, quantizer.code_vectors.detach(), precision[:, None] / 2)
    return scores, bounds + relative * scores


@wrong_codes.register
def _(quantizer: q.GaussianQuantizer, problem: Problem, codes: Tensor) -> Tensor:
    means, error, variance, relative = _moments(quantizer, problem)
    noise = quantizer.noise.double()
    bad = torch.zeros(len(codes), dtype=torch.bool)
    parts = (part.unflatten(-1, (quantizer.groups, quantizer.group_dim)).unbind(1) for part in (means, variance))
    for group, (mean, spread) in enumerate(zip(*parts, strict=True)):
        # the kernel centers both on the codes, so that its rounding is that of the distances to their middle
        rows = Problem(mean, error, problem.epsilon)
        scores, bounds = distances(rows, noise, (1 / spread)[:, None] / 2)
        scores = scores - quantizer.prior_weight * noise.square().sum(-1) / 2
        bad |= wrong(
            scores,
            bounds + relative[:, None] * (scores.abs() + 1),
            codes.reshape(len(codes), quantizer.groups)[:, group],
        )
    return bad


def _moments(quantizer: nn.Module, problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and the bound of their error, variances and the bound of their relative error."""
    problem = inside(quantizer, problem)
    weight, bias = quantizer.moments.weight.detach().double(), quantizer.moments.bias.detach().double()
    mean, log_variance = (problem.rows @ weight.T + bias).chunk(2, -1)
    behind = problem.to(mean, float(torch.linalg.matrix_norm(weight, 2)), float(bias.norm()))
    low, high = -20.0, 10.0
    log_variance = log_variance.clamp(low, high)
    relative = (behind.error + 64 * problem.epsilon).clamp_max(high - low).expm1()
    return mean, behind.error, log_variance.exp(), relative


@wrong_codes.register
def _(quantizer: q.GaussianBottleneck, problem: Problem, codes: Tensor) -> Tensor:
    means, error, _, _ = _moments(quantizer, problem)
    return (codes.double() - means).norm(dim=-1) > 2 * error + problem.tiny


@wrong_codes.register
def _(quantizer: q.Residual, problem: Problem, codes: Tensor) -> Tensor:
    if quantizer.beam_size > 1:
        return _worse_than_greedy(quantizer, problem, codes)
    bad, rows, error = torch.zeros(len(codes), dtype=torch.bool), problem.rows, problem.error
    for level, member in enumerate(quantizer.places):
        bad |= wrong_codes(member, Problem(rows, error, problem.epsilon).clamped(), codes[:, level])
        values = member.decode(codes[:, level]).double()
        rows = rows - values
        error = error + 16 * problem.epsilon * (values.norm(dim=-1) + rows.norm(dim=-1) + problem.lengths)
    return bad


def _worse_than_greedy(quantizer: q.Residual, problem: Problem, codes: Tensor) -> Tensor:
    """Rows ``(N,)`` where a search has found a sum that is farther than that of each level's own choice."""
    found = greedy = problem.rows
    sizes = problem.lengths
    for level, member in enumerate(quantizer.places):
        own = member.decode(member.encode(greedy.to(quantizer.training_progress.dtype))).double()
        values = member.decode(codes[:, level]).double()
        found, greedy = found - values, greedy - own
        sizes = sizes + values.norm(dim=-1) + own.norm(dim=-1)
    epsilon = max(problem.epsilon, torch.finfo(quantizer.training_progress.dtype).eps)
    bound = 64 * epsilon * sizes + problem.error
    return found.norm(dim=-1) > greedy.norm(dim=-1) + bound + problem.tiny


def wrong_maps(quantizer: q.Hierarchical, latents: Tensor, codes: Tensor) -> Tensor:
    """Whether a place of each sequence ``(B, T, dim)`` has a wrong code at some scale, with linear interpolation."""
    size = latents.shape[1]
    given = of_latents(latents)
    left = given.rows.reshape(latents.shape).movedim(-1, 1)  # (B, dim, T)
    bad, most = torch.zeros(len(latents), dtype=torch.bool), left.abs().amax((1, 2))
    epsilon = max(given.epsilon, torch.finfo(quantizer.training_progress.dtype).eps)
    for member, part in zip(quantizer.places, quantizer.split(codes, size), strict=True):
        coarse = F.interpolate(left, size=part.shape[1], mode="area").movedim(1, -1)
        error = 256 * epsilon * most[:, None].expand(part.shape[:2]).flatten()
        rows = Problem(coarse.flatten(0, 1), error * latents.shape[-1] ** 0.5, epsilon)
        bad |= wrong_codes(member, rows.clamped(), part.flatten(0, 1)).reshape(part.shape[:2]).any(-1)
        values = member.decode(part).double().movedim(-1, 1)
        left = left - F.interpolate(values, size=size, mode="linear")
        most = most + values.abs().amax((1, 2))
    return bad


@wrong_codes.register
def _(quantizer: q.Product, problem: Problem, codes: Tensor) -> Tensor:
    bad = torch.zeros(len(codes), dtype=torch.bool)
    parts = problem.rows.split([member.dim for member in quantizer.places], dim=-1)
    for place, (member, rows) in enumerate(zip(quantizer.places, parts, strict=True)):
        bad |= wrong_codes(member, Problem(rows, problem.error, problem.epsilon).clamped(), codes[:, place])
    return bad


@wrong_codes.register
def _(quantizer: q.Projected, problem: Problem, codes: Tensor) -> Tensor:
    behind = inside(quantizer, problem)
    if quantizer.project_in is not None:
        weight, bias = quantizer.project_in.weight.detach().double(), quantizer.project_in.bias.detach().double()
        gain = float(torch.linalg.matrix_norm(weight, 2))
        behind = problem.to(problem.rows @ weight.T + bias, gain, bias.norm())
        behind = behind._replace(
            error=behind.error
            + torch.finfo(quantizer.project_in.weight.dtype).eps * (16 * (gain * problem.lengths + bias.norm()))
        )
    return wrong_codes(quantizer.quantizer, behind.unit() if quantizer.normalize else behind.clamped(), codes)


@wrong_codes.register
def _(quantizer: q.Joined, problem: Problem, codes: Tensor) -> Tensor:
    return wrong_codes(quantizer.quantizer, problem, quantizer.split(codes))


@wrong_codes.register
def _(quantizer: q.ImplicitResidual, problem: Problem, codes: Tensor) -> Tensor:
    bad, total = torch.zeros(len(codes), dtype=torch.bool), torch.zeros_like(problem.rows)
    epsilon = max(problem.epsilon, torch.finfo(quantizer.training_progress.dtype).eps)
    for level, member in enumerate(quantizer.places):
        base = member.codebook.detach().double()
        vectors = base.expand(len(total), -1, -1)
        gain = 1.0
        if level:
            network = copy.deepcopy(quantizer.transforms[level - 1]).double()
            with torch.no_grad():
                vectors = network(base, total[:, None])
            gain += sum(float(weight.norm()) for weight in network.parameters() if weight.ndim > 1) ** 2
        left = problem.rows - total
        scores = (vectors - left[:, None]).square().sum(-1)
        sizes = problem.lengths[:, None] + gain * (total.norm(dim=-1)[:, None] + base.norm(dim=-1))
        error = 64 * epsilon * (sizes + vectors.norm(dim=-1)) + problem.error[:, None]
        near = vectors - vectors.median(1, keepdim=True).values
        reach = near.norm(dim=-1) + (left[:, None] - vectors).norm(dim=-1)
        bounds = 4 * error * (scores.sqrt() + error) + 64 * epsilon * reach.square() + problem.tiny
        bad |= wrong(scores, bounds, codes[:, level])
        chosen = vectors.gather(1, codes[:, level, None, None].expand(-1, 1, vectors.shape[-1]))[:, 0]
        total = total + chosen
        problem = problem._replace(error=problem.error + 64 * epsilon * (sizes.amax(-1) + chosen.norm(dim=-1)))
    return bad


def posterior_of(quantizer: q.AbstractQuantizer, problem: Problem) -> tuple[Tensor, Tensor] | None:
    """Responsibilities ``(N, K)`` and the bound of their difference ``(N,)``, of the quantizers that have a mixture."""
    if isinstance(quantizer, q.GaussianMixtureQuantizer):
        scores, bounds = mixture_scores(quantizer, problem)
    elif isinstance(quantizer, q.StochasticQuantizer) and quantizer.variance != "sample":
        scores, bounds = stochastic_scores(quantizer, problem)
    else:
        return None
    responsibilities = (-scores).softmax(-1)
    bounds = torch.broadcast_to(bounds, scores.shape)
    possible = scores - bounds <= (scores + bounds).amin(-1, keepdim=True) + math.log(1e9)
    most = torch.where(possible, bounds, 0.0).amax(-1)
    return responsibilities, (2 * most).clamp_max(5).expm1().clamp_max(1.0) + 64 * problem.epsilon


def commitment_of(quantizer: q.AbstractQuantizer, problem: Problem, codes: Tensor) -> tuple[float, float] | None:
    """Mean squared error of rows and their codes, and the bound of its rounding, of the quantizers that report it."""
    kinds = (q.VectorQuantizer, q.SimVQ, q.OptimalTransportQuantizer, q.IndexBackpropagationQuantizer)
    if not isinstance(quantizer, kinds) or not len(codes):
        return None
    near = inside(quantizer, problem)
    near = near.unit() if getattr(quantizer, "cosine", False) else near
    vectors = quantizer.code_vectors.detach().double()[codes]
    apart, size = (near.rows - vectors).norm(dim=-1), near.rows.norm(dim=-1) + vectors.norm(dim=-1)
    error = near.error + 4 * near.epsilon * size
    bound = (error * (2 * apart + error)).mean() + 16 * (len(codes) + 8) * near.epsilon * apart.square().mean()
    features = near.rows.shape[-1]
    return float(apart.square().mean() / features), float(bound / features) + near.tiny

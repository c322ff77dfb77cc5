r"""Semi-amortized inference: the decoder's gradient improves the encoder's codes for each image.

An encoder is trained to predict good codes of all images; for a single image other codes may reconstruct better. With
the error :math:`E = |x - \hat x(c)|^2` of the hard codes, its gradient g with respect to the decoder's input and a
curvature :math:`h M`, moving one token from code c to c' changes the error by about

.. math::
    \Delta E = g^T (e_{c'} - e_c) + \tfrac{h}{2} (e_{c'} - e_c)^T M (e_{c'} - e_c),

which is least for the code nearest to :math:`e_c - M^{-1} g / h` in the metric of M. M is that of Gauss and Newton,
:math:`2 J^T J` of the decoder's Jacobian J, the mean over the image's tokens: white noise n in the pixels, taken back
through the decoder once, gives :math:`J^T n` at each token, and :math:`E[J^T n n^T J] = J^T J`. h is a number for each
token, which rises where its moves raise the error. Tokens that move together disturb each other, so a part of them
moves in a step, and an image keeps the moves that lower its error.

::

    codes --decoder--> E at each token, g --+-- some tokens to the code nearest to e - M^-1 g / h --+--> candidate
                                            +-- harmful moves of the last step, reversed -----------+        |
                                                                                                             |
    codes = candidate where E of the image is less; else its helpful moves come next, alone <------decoder---+

For GM-VQ without noise and with even mixture weights E is the negative log-joint -log p(x, c) up to a factor and a
constant, and this is a search for its mode from the encoder's codes.

References:
    Semi-Amortized Variational Autoencoders (Kim et al., 2018), https://arxiv.org/abs/1802.02550
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.checks import at_least
from gmvq.kernels import nearest_code
from gmvq.models import Autoencoder
from gmvq.models.modes import evaluating
from gmvq.quantizers import AbstractQuantizer, Joined

MOST_LISTED = 2**16
"""Largest codebook whose nearest code is searched for in the image's metric; beyond it in the quantizer's own."""

FIRST_CURVATURE = 2.0
"""h of the first moves: more than 1, since the neighbors of a token move with it."""

CORRECTION = 2**0.5
"""Factor by which h grows where a move raised the error, and shrinks where no move was found."""

LEAST_CURVATURE = 1e-3
"""Least h: its target is beyond all codes, and at a much smaller h the target would not be finite."""

PRIOR_TOKENS = 16.0
"""Weight, in tokens, of a curvature equal in all directions in the mean of M: a small image has few tokens."""

ROUNDING = 1e-6
"""Least relative fall of the error that counts: less is the rounding of a batch of another size."""


class Refined(NamedTuple):
    """Result of :func:`refine`.

    Attributes:
        codes: The better codes, int64 ``(B, h, w[, levels])``.
        error_before: Mean squared error of the given codes, ``(B,)``.
        error_after: Mean squared error of ``codes``, ``(B,)``: for no image more than before.
        decoder_passes: Number of passes of the batch through the decoder, forward or backward.
    """

    codes: Tensor
    error_before: Tensor
    error_after: Tensor
    decoder_passes: int


def refine(model: Autoencoder, images: Tensor, codes: Tensor, steps: int) -> Refined:
    """Lowers the mean squared error of hard codes, image by image.

    No image depends on other images of its batch, and the same call returns the same codes. The model's mode, weights
    and gradients do not change; the search itself runs in evaluation mode.

    Args:
        model: The model that made the codes and will decode them.
        images: Float in [0, 1] or uint8 ``(B, C, H, W)``, of any size.
        codes: int64 ``(B, h, w[, levels])``, as ``model.encode(images)`` returns them.
        steps: Candidates to try, each one a forward and a backward pass of the decoder. Most of the gain comes in the
            first 4 to 16.

    Raises:
        ValueError: If the model's bottleneck has no codes, images or codes do not fit the model, or ``steps`` is not an
            integer of at least 0.

    Example:
        >>> from gmvq.models import Autoencoder, AutoencoderConfig
        >>> model = Autoencoder(AutoencoderConfig(codebook_size=16, width=8)).eval()
        >>> images = torch.rand(2, 3, 16, 16)
        >>> refined = refine(model, images, model.encode(images), steps=4)
        >>> refined.codes.shape, bool((refined.error_after <= refined.error_before).all())
        (torch.Size([2, 4, 4]), True)
    """
    at_least("steps", steps, 0, "Use 8.")
    quantizer, images, codes = _checked(model, images, codes)
    if codes.numel() == 0:
        codes = quantizer.split(codes) if isinstance(quantizer, Joined) else codes
        return Refined(codes, images.new_zeros(0), images.new_zeros(0), 0)
    precise = torch.autocast(images.device.type, enabled=False)
    # a caller in inference mode would get no gradient
    with torch.inference_mode(False), torch.no_grad(), precise, evaluating(model):
        search = _Search(model, quantizer, images, codes)
        before = search.errors.flatten(1).sum(1)
        for step in range(steps):
            search.step(last=step == steps - 1)
        after = search.errors.flatten(1).sum(1)
    dimensions = images[0].numel()
    codes = quantizer.split(search.codes) if isinstance(quantizer, Joined) else search.codes
    return Refined(codes, before / dimensions, after / dimensions, search.decoder_passes)


class _Made(NamedTuple):
    """Input of the decoder ``(B, h, w, dim)``, its output, and each token's squared error ``(B, h, w)``."""

    values: Tensor
    images: Tensor
    errors: Tensor


class _Search:
    """State of a search: the current codes of a batch, and the terms of the next candidate.

    Args:
        model: The model, in evaluation mode.
        quantizer: Its bottleneck.
        images: Floats ``(B, C, H, W)``.
        codes: Codes to start from, ``(B, h, w)``.
    """

    def __init__(self, model: Autoencoder, quantizer: AbstractQuantizer, images: Tensor, codes: Tensor) -> None:
        self.model, self.quantizer, self.images, self.codes = model, quantizer, images, codes
        self.decoder_passes = 0
        made = self._made(codes, differentiable=True)
        self.errors, self.gradient = made.errors.detach(), self._backward(made.errors, made.values, retain_graph=True)
        # the same noise for each image, so that no image depends on the others
        noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0)).to(made.images)
        with torch.enable_grad():
            noisy = made.images * noise
        self.metric = _Metric(quantizer, self._backward(noisy, made.values))
        self.curvature = torch.full_like(self.errors, FIRST_CURVATURE)
        self.planned = torch.full_like(codes, -1)  # codes to try next, -1 for none
        self.alone = torch.zeros_like(codes[:, 0, 0], dtype=torch.bool)  # images that try only these
        self.phase = torch.zeros_like(codes[:, 0, 0])

    def step(self, last: bool) -> None:
        """Tries one candidate for each image; after the last, no gradient is needed."""
        chosen = self._turn()
        values = self.quantizer.decode(self.codes)
        nearest = self.metric.nearest(values, self.gradient, self.curvature)
        candidate = torch.where(self.planned >= 0, self.planned, torch.where(chosen, nearest, self.codes))
        made = self._made(candidate, differentiable=not last)
        gradient = self.gradient if last else self._backward(made.errors, made.values)
        errors, moved = made.errors.detach(), candidate != self.codes
        # a token also changes its neighbors' pixels
        change = F.avg_pool2d((errors - self.errors)[:, None], 3, stride=1, padding=1, divisor_override=1)[:, 0]
        self._learn_curvature(moved, chosen, change >= 0)
        better = errors.flatten(1).sum(1) < self.errors.flatten(1).sum(1) * (1 - ROUNDING)
        better = better[:, None, None]
        self._plan(candidate, moved, change >= 0, better)
        self.codes = torch.where(better, candidate, self.codes)
        self.errors = torch.where(better, errors, self.errors)
        self.gradient = torch.where(better[..., None], gradient, self.gradient)

    def _learn_curvature(self, moved: Tensor, chosen: Tensor, harmful: Tensor) -> None:
        """Raises h of harmful moves, which went too far, and lowers it where the nearest code is the current one."""
        factor = torch.where(moved & harmful, CORRECTION, torch.where(chosen & ~moved, 1 / CORRECTION, 1.0))
        self.curvature = (self.curvature * factor).clamp_min(LEAST_CURVATURE)

    def _plan(self, candidate: Tensor, moved: Tensor, harmful: Tensor, better: Tensor) -> None:
        """Plans to reverse the harmful moves after a success, and to try the helpful ones alone after a failure."""
        back = torch.where(moved & harmful, self.codes, -1)
        mixed = (moved & harmful).flatten(1).any(1)[:, None, None]  # without harm the same candidate would come again
        again = torch.where(moved & ~harmful & mixed, candidate, -1)
        self.planned = torch.where(better, back, again)
        self.alone = (~better & (again >= 0)).flatten(1).any(1)
        self.phase = torch.where(self.alone, self.phase, self.phase + 1)

    def _turn(self) -> Tensor:
        """Selects the tokens to move, booleans ``(B, h, w)``: both halves of a checkerboard first, then quarters."""
        rows, columns = (torch.arange(length, device=self.codes.device) % 2 for length in self.codes.shape[1:])
        rows, phase = rows[:, None], self.phase[:, None, None]
        halves = (rows + columns) % 2 == phase
        # diagonal neighbors follow each other
        quarters = (rows == phase % 2) & ((rows + columns) % 2 == phase // 2 % 2)
        return torch.where(phase < 2, halves, quarters) & ~self.alone[:, None, None]

    def _made(self, codes: Tensor, differentiable: bool) -> _Made:
        self.decoder_passes += 1
        height, width = self.images.shape[-2:]
        factor = self.model.downsampling
        values = self.quantizer.decode(codes).detach().requires_grad_(differentiable)
        with torch.set_grad_enabled(differentiable):
            images = self.model.likelihood.mean(self.model.decode_values(values, (height, width))).to(self.images)
            errors = (images - self.images).square().sum(1, keepdim=True)
            errors = F.pad(errors, (0, -width % factor, 0, -height % factor))
            return _Made(values, images, F.avg_pool2d(errors, factor, divisor_override=1)[:, 0])

    def _backward(self, of: Tensor, values: Tensor, retain_graph: bool = False) -> Tensor:
        self.decoder_passes += 1
        return torch.autograd.grad(of, values, torch.ones_like(of), retain_graph=retain_graph)[0]


class _Metric:
    """Distances between codes by their effect on the decoder's output, for each image: M of the module's equation.

    Args:
        quantizer: The quantizer of the codes.
        responses: White noise taken back through the decoder, ``(B, h, w, dim)``.
    """

    def __init__(self, quantizer: AbstractQuantizer, responses: Tensor) -> None:
        self.quantizer = quantizer
        self.codebook = quantizer.codebook.detach() if quantizer.codebook_size <= MOST_LISTED else None
        dim = responses.shape[-1]
        self.basis = torch.eye(dim).to(responses) if self.codebook is None else _directions(self.codebook)
        rows = responses.flatten(1, 2) @ self.basis
        moments = 2 * rows.mT @ rows
        scale = moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] / rows.shape[1]
        prior = scale.clamp_min(1e-12) * torch.eye(rows.shape[-1]).to(rows)
        matrix = (moments + PRIOR_TOKENS * prior) / (rows.shape[1] + PRIOR_TOKENS)
        self.factor = torch.linalg.cholesky_ex(matrix).L  # M = L L^T; if the model is NaN, no candidate is better

    def nearest(self, values: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
        """Finds the code nearest to values - M^-1 gradient / h of each token, int64 ``(B, h, w)``."""
        shape = curvature.shape
        slopes = torch.linalg.solve_triangular(self.factor, (gradient.flatten(1, 2) @ self.basis).mT, upper=False).mT
        targets = values.flatten(1, 2) @ self.basis @ self.factor - slopes / curvature.flatten(1)[..., None]
        if self.codebook is None:
            targets = torch.linalg.solve_triangular(self.factor.mT, targets.mT, upper=True).mT  # back to latents
            return self.quantizer.encode(targets).clamp_min(0).reshape(shape)
        listed = self.codebook @ self.basis
        found = [nearest_code(rows, listed @ factor) for rows, factor in zip(targets, self.factor, strict=True)]
        return torch.stack(found).reshape(shape)


def _directions(codebook: Tensor) -> Tensor:
    """Finds orthonormal directions in which codes differ, ``(dim, r)``: a projected codebook spans only some."""
    centered = (codebook - codebook.mean(0)).cpu().double()
    variances, directions = torch.linalg.eigh(centered.T @ centered)
    number = max(1, int((variances > 1e-10 * variances[-1]).sum()))
    return directions[:, -number:].to(codebook)


def _checked(model: Autoencoder, images: Tensor, codes: Tensor) -> tuple[AbstractQuantizer, Tensor, Tensor]:
    """Returns the model's quantizer, images as floats, and codes as int64.

    Raises:
        ValueError: If they do not fit the model, or it has no codes.
    """
    quantizer = model.bottleneck
    if not isinstance(quantizer, AbstractQuantizer):
        raise ValueError(
            f"'model' must have codes to refine, got one with a {type(quantizer).__name__}. Leave the refinement out, "
            "or train with a quantizer."
        )
    if not quantizer.quantizes_rows:
        raise ValueError(
            f"'model' must have codes for each place to refine, got one with a {type(quantizer).__name__}, whose codes "
            "are of several scales. Leave the refinement out."
        )
    if model.signal.axes != 2:
        raise ValueError(f"'model' must be of items with 2 axes, got {model.signal.axes}. Leave the refinement out.")
    images = model.prepared(images)
    shape = (len(images), *model.grid(model.signal.size(images)), *quantizer.code_shape)
    if codes.is_floating_point() or codes.shape != shape or bool((codes < 0).any()):
        raise ValueError(
            f"'codes' must be integers of at least 0 of shape {shape} for these images, got {codes.dtype} "
            f"{tuple(codes.shape)}. Pass model.encode(images)."
        )
    images, codes = images.to(torch.promote_types(images.dtype, torch.float32)), codes.long()
    if not quantizer.code_shape:
        return quantizer, images, codes
    joined = _joined(quantizer)
    return joined, images, joined.join(codes)


def _joined(quantizer: AbstractQuantizer) -> Joined:
    """Wraps a quantizer to one code in place of several, whose codebook can be searched, without changing it."""
    parts = [part for part in quantizer.modules() if isinstance(part, AbstractQuantizer)]
    updating = [part.updates_itself for part in parts]
    joined = Joined(quantizer).to(quantizer.training_progress.device)
    for part, updates_itself in zip(parts, updating, strict=True):
        part.updates_itself = updates_itself
    return joined

"""What flows through gmvq has a name and a type.

::

    Batch --networks--> latents --quantizers--> Quantized --networks--> Reconstruction

The shape vocabulary of all docstrings: ``B`` images in a batch, ``C`` channels, ``H`` and ``W`` height and width in
pixels, ``h`` and ``w`` height and width in tokens, ``K`` codes, ``L`` features of a code, ``N`` rows of latents,
``D = C H W`` dimensions of an image, and ``*`` any number of leading axes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images as a model takes them.

    Attributes:
        images: Float in [0, 1], shape ``(B, C, H, W)``.
        labels: Class of each image, int64 ``(B,)``, or None for data without labels.
    """

    images: Tensor
    labels: Tensor | None = None


class CodeBatch(NamedTuple):
    """Codes as a prior takes them.

    Attributes:
        codes: Codes of images, int64 ``(B, *grid[, levels])``.
        labels: Class of each image, int64 ``(B,)``, or None for data without labels.
    """

    codes: Tensor
    labels: Tensor | None = None


class Quantized(NamedTuple):
    """What every bottleneck returns, in training and in evaluation.

    Attributes:
        values: What the decoder sees, shape ``(*, dim)``.
        codes: Index of the chosen code, int64 ``(*, *code_shape)``; -1 where masked. A continuous bottleneck has its
            means here.
        loss: What to add to the reconstruction loss, shape ``()``: a squared error of the latents, or nats for
            each token for a continuous bottleneck.
        terms: Parts of the loss and figures to log, detached, each of shape ``()``.
    """

    values: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Reconstruction(NamedTuple):
    """What an autoencoder returns.

    Attributes:
        images: Reconstructed images in [0, 1], shape ``(B, C, H, W)``.
        codes: Codes of the tokens, ``(B, h, w)``.
        loss: Objective to minimize in nats for each data dimension, shape ``()``.
        terms: Parts of the objective and figures to log, detached, each of shape ``()``.
    """

    images: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Posterior(NamedTuple):
    """What a mixture says of each latent.

    Attributes:
        responsibilities: q(c | x), sums to 1 over the last axis, shape ``(*, *code_shape, K)``.
        entropy: Entropy of q(c | x) in nats, of all codes of a token together, shape ``(*)``.
        log_density: Logarithm of the mixture's density at the latent in nats, shape ``(*)``; None where the model says
            nothing of the density of latents.
    """

    responsibilities: Tensor
    entropy: Tensor
    log_density: Tensor | None


class PosteriorSample(NamedTuple):
    """A draw z from q(z | x) with what an importance weight needs.

    Attributes:
        values: The draw, shape ``(*, dim)``.
        log_prior: log p(z) in nats for each token, shape ``(*)``.
        log_posterior: log q(z | x) in nats for each token, shape ``(*)``.
    """

    values: Tensor
    log_prior: Tensor
    log_posterior: Tensor

r"""Losses of a discriminator and of the autoencoder against it, from logits of real and of reconstructed images.

.. math::
    \text{hinge}: \quad & L_D = \mathbb{E} \max(0, 1 - D(x)) + \mathbb{E} \max(0, 1 + D(\hat x)), \quad
                          L_G = -\mathbb{E} D(\hat x) \\
    \text{non-saturating}: \quad & L_D = \mathbb{E} \log(1 + e^{-D(x)}) + \mathbb{E} \log(1 + e^{D(\hat x)}), \quad
                          L_G = \mathbb{E} \log(1 + e^{-D(\hat x)})

References:
    hinge: Geometric GAN (Lim and Ye, 2017), https://arxiv.org/abs/1705.02894;
    non-saturating: Generative Adversarial Nets (Goodfellow et al., 2014), https://arxiv.org/abs/1406.2661;
    R1: Which Training Methods for GANs do actually Converge? (Mescheder et al., 2018),
    https://arxiv.org/abs/1801.04406;
    LeCam: Regularizing Generative Adversarial Networks under Limited Data (Tseng et al., 2021),
    https://arxiv.org/abs/2104.03310;
    adaptive weight: Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021),
    https://arxiv.org/abs/2012.09841, there from gradients of the decoder's last layer, here from those of the images
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.distributed import mean_over_ranks, norm_over_ranks

AdversarialLoss = Literal["hinge", "non-saturating"]

LARGEST_WEIGHT = 1e4
"""Upper limit of the adaptive weight, reached where the adversarial gradient is almost 0."""


def discriminator_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Computes the loss of the discriminator, ``()``, from logits of any shape.

    Raises:
        ValueError: If the loss is unknown.
    """
    _check(kind)
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(kind: AdversarialLoss, fake: Tensor) -> Tensor:
    """Computes the adversarial loss of the autoencoder, ``()``.

    Raises:
        ValueError: If the loss is unknown.
    """
    _check(kind)
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    r"""Computes R1, :math:`\mathbb{E} |\nabla_x D(x)|^2`, the mean squared norm of the gradient at real images, ``()``.

    D(x) is the mean over the patches of an image, as in the losses, so the penalty does not grow with the image.

    Args:
        logits: Logits of the patches of the images ``(B, ...)``, with a graph back to them.
        images: Real images ``(B, C, H, W)`` that require a gradient.
    """
    by_image = logits.reshape(len(logits), -1).mean(1)
    (gradient,) = torch.autograd.grad(by_image.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


class LeCam(nn.Module):
    r"""Holds the logits of real and of reconstructed images close together, against overfitting to few images.

    .. math:: \mathbb{E} \max(0, D(x) - \alpha_{\hat x})^2 + \mathbb{E} \max(0, \alpha_x - D(\hat x))^2

    with :math:`\alpha` the running means of the logits of real and of reconstructed images, over all ranks.
    :meth:`update` moves them, once for each step, whatever its number of forward passes.

    Args:
        decay: Share of the past in the running means.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))
        self._seen: list[Tensor] = []

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Computes the penalty of logits, ``()``; in training their means are kept for :meth:`update`."""
        if self.training:
            self._seen.append(torch.stack([real.detach().mean(), fake.detach().mean()]).to(self.real))
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()

    @torch.no_grad()
    def update(self) -> None:
        """Moves the running means toward the mean logits of the forward passes since the last call, over all ranks."""
        if not self._seen:
            return
        seen = mean_over_ranks(torch.stack(self._seen).mean(0))
        self._seen = []
        self.real.lerp_(seen[0], 1 - self.decay)
        self.fake.lerp_(seen[1], 1 - self.decay)


def adaptive_weight(adversarial: Tensor, reconstructions: Tensor, images: Tensor, error_weight: Tensor) -> Tensor:
    r"""Computes the weight that makes the adversarial gradient at the pixels as large as the squared error's, ``()``.

    .. math:: \lambda = s\, |\nabla_{\hat x} \mathrm{MSE}(\hat x, x)| \,/\, |\nabla_{\hat x} L_G|

    The gradients are those of images, not of weights: as training converges, the weights' gradient of the squared error
    averages to 0 over a batch, whatever the error of each image, and would take the adversarial loss with it. They are
    those of the images of all ranks.

    Args:
        adversarial: :math:`L_G` ``()``, with a graph back to the reconstructions; the graph is kept.
        reconstructions: :math:`\hat x` ``(B, C, H, W)``.
        images: x, of the same shape.
        error_weight: s, the weight of the mean squared error in the autoencoder's loss, ``()``.
    """
    (pull,) = torch.autograd.grad(adversarial, reconstructions, retain_graph=True)
    residual = reconstructions.detach().float() - images.detach().float()
    pulled = 2 * error_weight.float() * norm_over_ranks(residual) / residual.numel()
    return (pulled / norm_over_ranks(pull.float()).clamp_min(1e-12)).clamp_max(LARGEST_WEIGHT)


def _check(kind: str) -> None:
    if kind not in get_args(AdversarialLoss):
        raise ValueError(f"'loss' must be one of {', '.join(get_args(AdversarialLoss))}, got {kind!r}. Use hinge.")

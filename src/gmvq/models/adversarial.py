r"""An autoencoder and its opponent, in one module with one loss: reconstructions that a discriminator takes for real.

::

    images --autoencoder--> reconstructions --discriminator (held still)--> L_G --adaptive weight--+
       |                          |                                                                +--> loss
       +--discriminator--> L_D <--+ (detached) --------------------------------------------------- +

.. math:: L = L_{\text{autoencoder}} + w_f\, L_{\text{features}} + w(t)\, \lambda\, L_G + L_D

The discriminator is held still in :math:`L_G`, and the reconstructions in :math:`L_D`, so the gradient of the sum is
each part's own: one optimizer step moves both. :math:`\lambda` makes :math:`L_G` move the decoder's last layer as much
as the rest does; w(t) is 0 until the discriminator has learned for a while, and then rises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gmvq.losses.adversarial import (
    AdversarialLoss,
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from gmvq.losses.perceptual import FeatureLoss
from gmvq.models.autoencoder import Autoencoder
from gmvq.networks.discriminators import DiscriminatorNorm, PatchDiscriminator
from gmvq.types import Reconstruction

OPPONENT = (
    *("discriminator", "real_logit", "fake_logit", "discriminator_accuracy"),
    *("adversarial", "adversarial_weight"),
)
"""Figures of the opponent; all 0 before it begins, the last two before it counts."""


@dataclass(frozen=True)
class AdversarialConfig:
    """How an opponent sharpens a tokenizer.

    Args:
        weight: w, of the opponent's loss against the autoencoder's, once it counts.
        loss: ``hinge`` or ``non-saturating``.
        width: Channels of the discriminator's first layer.
        layers: Its strided convolutions.
        norm: ``spectral``, ``layer`` or ``none``.
        begin: Progress of training in [0, 1] at which the opponent begins to learn.
        count: Progress at which its loss begins to count.
        full: Progress at which it counts in full; between them its weight rises along a line.
        gradient_penalty: Weight of R1; 0 for none.
        lecam: Weight of the LeCam regularizer; 0 for none.
        feature_weight: Weight of the distance of features, where there is one.

    Raises:
        ValueError: If a weight is below 0, or ``begin``, ``count`` and ``full`` are not in order within [0, 1].
    """

    weight: float = 0.3
    loss: AdversarialLoss = "hinge"
    width: int = 64
    layers: int = 3
    norm: DiscriminatorNorm = "spectral"
    begin: float = 0.3
    count: float = 0.4
    full: float = 0.6
    gradient_penalty: float = 0.0
    lecam: float = 0.001
    feature_weight: float = 0.1

    def __post_init__(self) -> None:
        for name in ("weight", "gradient_penalty", "lecam", "feature_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"'{name}' must be a finite number of at least 0, got {getattr(self, name)}. Use 0.1.")
        if not 0 <= self.begin <= self.count <= self.full <= 1:
            raise ValueError(
                f"'begin', 'count' and 'full' must be in order within [0, 1], got {self.begin}, {self.count} and "
                f"{self.full}. Use 0.3, 0.4 and 0.6."
            )

    def weight_at(self, progress: float) -> float:
        """W at a progress of training in [0, 1].

        Example:
            >>> AdversarialConfig(weight=1.0, count=0.4, full=0.6).weight_at(0.5)
            0.5
        """
        if progress < self.count:
            return 0.0
        if progress >= self.full:
            return self.weight
        return round(self.weight * (progress - self.count) / (self.full - self.count), 12)


class AdversarialAutoencoder(nn.Module):
    """An autoencoder in training against a discriminator.

    Args:
        autoencoder: The tokenizer: what is kept in the end.
        config: How its opponent works.
        features: A distance of features beside, or None.

    Shape:
        images ``(B, C, H, W)`` -> :class:`gmvq.types.Reconstruction`; in evaluation that of the autoencoder alone.
    """

    progress: Tensor

    def __init__(
        self, autoencoder: Autoencoder, config: AdversarialConfig | None = None, features: FeatureLoss | None = None
    ) -> None:
        super().__init__()
        self.config = AdversarialConfig() if config is None else config
        self.autoencoder, self.features = autoencoder, features
        self.discriminator = PatchDiscriminator(
            autoencoder.config.channels, self.config.width, self.config.layers, self.config.norm
        )
        self.lecam = LeCam()
        self.register_buffer("progress", torch.zeros(()))
        # on the host: a branch on the buffer would wait for the GPU in each step
        self._progress = 0.0

    @property
    def last_layer(self) -> Tensor:
        """Weights of the decoder's last layer."""
        return [weight for weight in self.autoencoder.decoder.parameters() if weight.ndim >= 2][-1]

    def set_progress(self, progress: float) -> None:
        """Tells how far training has come, in [0, 1]."""
        self.autoencoder.bottleneck.set_progress(progress)
        self.progress.fill_(progress)
        self._progress = progress

    def forward(self, images: Tensor) -> Reconstruction:
        """Reconstruction, codes and the objective of a batch."""
        made = self.autoencoder(images)
        if not self.training:
            return made
        images = self.autoencoder.as_float(images)
        loss, terms = made.loss, dict(made.terms)
        if self.features is not None and self.config.feature_weight:
            distance = self.features(made.images, images)
            scale = self.autoencoder.likelihood.squared_error_weight(terms["mse"])
            loss = loss + self.config.feature_weight * scale * distance
            terms["feature_distance"] = distance.detach()
        terms |= dict.fromkeys(OPPONENT, loss.new_zeros(()))  # a log has the same figures from the first step
        if self._progress >= self.config.begin:
            opposed, found = self._opposed(loss, made.images, images)
            loss, terms = loss + opposed, terms | found
        return made._replace(loss=loss, terms=terms)

    def _opposed(self, loss: Tensor, fakes: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the opponent adds to the loss, and figures of it."""
        config = self.config
        images = images.detach().requires_grad_(config.gradient_penalty > 0)
        real, fake = self.discriminator(images), self.discriminator(fakes.detach())
        own = discriminator_loss(config.loss, real, fake)
        if config.lecam:
            own = own + config.lecam * self.lecam(real, fake)
        if config.gradient_penalty:
            own = own + config.gradient_penalty / 2 * gradient_penalty(real, images)
        still = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        fooled = generator_loss(config.loss, functional_call(self.discriminator, still, (fakes,)))
        terms = {
            "discriminator": own.detach(),
            "real_logit": real.detach().mean(),
            "fake_logit": fake.detach().mean(),
            "discriminator_accuracy": ((real > 0).float().mean() + (fake < 0).float().mean()).detach() / 2,
        }
        weight = config.weight_at(self._progress)
        if not weight:
            return own, terms
        balanced = weight * adaptive_weight(loss, fooled, self.last_layer)
        terms |= {"adversarial": fooled.detach(), "adversarial_weight": balanced}
        return own + balanced * fooled, terms

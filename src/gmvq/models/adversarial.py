r"""An autoencoder and a discriminator in one module with one loss, for reconstructions that look real.

::

    images --autoencoder--> reconstructions --discriminator (frozen)------> L_G --adaptive weight--+
       |                          |                                                                +--> loss
       +--discriminator--> L_D <--+ (detached) --------------------------------------------------- +

With a distance of features, the discriminator's input is the features of that frozen network in place of images, unless
the configuration says ``pixels``.

.. math:: L = L_{\text{autoencoder}} + w_f\, s\, L_{\text{features}} + w(t)\, a\, \lambda\, L_G + L_D

s is the weight that the likelihood gives to a squared error of the images, and distances of features have it, too. The
discriminator is frozen in :math:`L_G`, and the reconstructions are detached in :math:`L_D`, so each part gets the
gradient of its own loss and one optimizer step moves both. :math:`\lambda` makes the gradient of :math:`L_G` at the
pixels as large as that of the squared error; w(t) is 0 until the discriminator has learned for a while, and then rises.
The factor a rises from 0 to 1 as the discriminator's accuracy rises from chance to 62% of the patches: without it
:math:`\lambda` would amplify the meaningless gradient of a discriminator that has learned nothing.

a and :math:`\lambda` are of the images of all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gmvq.distributed import mean_over_ranks
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
from gmvq.networks.discriminators import DiscriminatorNorm, FeatureDiscriminator, PatchDiscriminator
from gmvq.types import Reconstruction

_Seen = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Inputs of the discriminator, from reconstructions and from images: pixels or features."""
Sight = Literal["features", "pixels"]

GUESSES, LEADS = 0.52, 0.62
"""Accuracies of the discriminator up to which the adversarial loss counts 0, and from which it counts in full."""

LEARNING, OPPOSING = "discriminator_share", "adversarial_share"
"""Metrics that say whether the discriminator learned in a step, and whether the adversarial loss counted: 1 or 0."""
DISCRIMINATOR = ("discriminator", "real_logit", "fake_logit", "discriminator_accuracy")
GENERATOR = ("adversarial", "adversarial_weight")
"""Metrics that are measured in such steps only, and 0 in all other steps."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Settings of adversarial training.

    Args:
        weight: w, of the adversarial loss after the warm-up: at 1 its gradient at pixels equals the squared error's.
        loss: ``hinge`` or ``non-saturating``.
        sees: Input of the discriminator: ``features`` of the network of the distance of features, if there is one, or
            ``pixels``.
        width: Channels of the discriminator's first layer, or of each head of features.
        layers: Number of its strided convolutions, if it sees pixels.
        norm: ``spectral``, ``layer`` or ``none``.
        discriminator_start: Progress of training in [0, 1] at which the discriminator begins to learn.
        start: Progress at which the adversarial loss begins to count.
        warmup: Share of training over which its weight then rises linearly from 0.
        gradient_penalty: Weight of R1; 0 for none.
        lecam: Weight of the LeCam regularizer; 0 for none.
        feature_weight: w_f, of the distance of features, if there is one, relative to the squared error.

    Raises:
        ValueError: If a weight is below 0, a number of the discriminator is not at least 1, loss or norm is unknown,
            ``discriminator_start`` comes after ``start``, or training ends before the warm-up.
    """

    weight: float = 1.0
    loss: AdversarialLoss = "hinge"
    sees: Sight = "features"
    width: int = 64
    layers: int = 3
    norm: DiscriminatorNorm = "spectral"
    discriminator_start: float = 0.3
    start: float = 0.4
    warmup: float = 0.2
    gradient_penalty: float = 0.0
    lecam: float = 0.001
    feature_weight: float = 0.01

    def __post_init__(self) -> None:
        for name in ("weight", "gradient_penalty", "lecam", "feature_weight", "warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"'{name}' must be a finite number of at least 0, got {getattr(self, name)}. Use 0.1.")
        for name in ("width", "layers"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"'{name}' must be an integer of at least 1, got {getattr(self, name)!r}. Use 3.")
        named = (("loss", AdversarialLoss), ("sees", Sight), ("norm", DiscriminatorNorm))
        for name, kinds in ((name, get_args(kind)) for name, kind in named):
            if getattr(self, name) not in kinds:
                raise ValueError(f"'{name}' must be one of {', '.join(kinds)}, got {getattr(self, name)!r}.")
        if not 0 <= self.discriminator_start <= self.start <= self.start + self.warmup <= 1 + 1e-9:
            raise ValueError(
                "'discriminator_start', 'start' and the end of the 'warmup' must be in order within [0, 1], got "
                f"{self.discriminator_start}, {self.start} and {self.start + self.warmup}. Use 0.3, 0.4 and a warm-up "
                "of 0.2."
            )

    @property
    def smallest_side(self) -> int:
        """Least length of an image's shorter side, in pixels."""
        return 2**self.layers

    def weight_at(self, progress: float) -> float:
        """Computes the weight w at a progress of training in [0, 1].

        Example:
            >>> AdversarialConfig(weight=1.0, start=0.4, warmup=0.2).weight_at(0.5)
            0.5
        """
        if progress < self.start:
            return 0.0
        if progress >= self.start + self.warmup:
            return self.weight
        return round(self.weight * (progress - self.start) / self.warmup, 12)


class AdversarialAutoencoder(nn.Module):
    """An autoencoder in training against a discriminator.

    Args:
        autoencoder: The tokenizer, the part to keep after training.
        config: Settings of adversarial training.
        features: Distance of features to add to the loss, whose network also makes the discriminator's input; or None.
            It is not part of the model's state.

    Shape:
        images ``(B, C, H, W)`` -> :class:`gmvq.types.Reconstruction`; in evaluation that of the autoencoder alone.
    """

    def __init__(
        self, autoencoder: Autoencoder, config: AdversarialConfig | None = None, features: FeatureLoss | None = None
    ) -> None:
        super().__init__()
        self.config = AdversarialConfig() if config is None else config
        signal = autoencoder.signal
        if signal.axes != 2 or signal.values != "unit":
            raise ValueError(
                f"'autoencoder' must be of items with 2 axes and values in [0, 1], got {signal.modality}. Train it "
                "without a discriminator."
            )
        self.autoencoder = autoencoder
        self._features = (features,)  # not registered: a checkpoint would hold its weights several times
        self.discriminator: nn.Module
        if self.sees_features:
            assert features is not None
            blank = torch.zeros(1, autoencoder.signal.channels, 32, 32, device=features.mean.device)
            with torch.no_grad():
                channels = [layer.shape[1] for layer in features.features(blank)]
            self.discriminator = FeatureDiscriminator(channels, self.config.width, self.config.norm)
        else:
            self.discriminator = PatchDiscriminator(
                autoencoder.signal.channels, self.config.width, self.config.layers, self.config.norm
            )
        self.lecam = LeCam()
        # on the host: a branch on a buffer would wait for the GPU in each step
        self._progress = 0.0

    @property
    def features(self) -> FeatureLoss | None:
        """The distance of features, or None."""
        return self._features[0]

    @property
    def sees_features(self) -> bool:
        """True if the discriminator sees features, False if pixels."""
        return self.features is not None and self.config.sees == "features"

    def set_progress(self, progress: float) -> None:
        """Sets the progress of training, in [0, 1]."""
        self.autoencoder.bottleneck.set_progress(progress)
        self._progress = progress

    def forward(self, images: Tensor) -> Reconstruction:
        """Computes reconstruction, codes and objective of a batch."""
        made = self.autoencoder(images)
        if not self.training:
            return made
        images = self.autoencoder.prepared(images)
        loss, terms = made.loss, dict(made.terms)
        error_weight = self.autoencoder.likelihood.squared_error_weight(terms["mse"])
        begun = self._progress >= self.config.discriminator_start
        seen: _Seen = [made.items], [images]
        if self.features is not None and (self.config.feature_weight or (begun and self.sees_features)):
            if self.features.mean.device != images.device:
                self.features.to(images.device)
            with torch.no_grad():
                aim = self.features.features(images)
            found = self.features.features(made.items)
            if self.config.feature_weight:
                distance = self.features.distance(found, aim)
                loss = loss + self.config.feature_weight * error_weight * distance
                terms["feature_distance"] = distance.detach()
            if self.sees_features:
                seen = found, aim
        # a log has the same metrics from the first step
        terms |= dict.fromkeys((LEARNING, OPPOSING, *DISCRIMINATOR, *GENERATOR), loss.new_zeros(()))
        if begun:
            opposed, metrics = self._opposed(made.items, images, seen, error_weight)
            loss, terms = loss + opposed, terms | metrics
        return made._replace(loss=loss, terms=terms)

    def _opposed(
        self, fakes: Tensor, images: Tensor, seen: _Seen, error_weight: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes what the discriminator adds to the loss, and metrics; ``seen`` are its inputs from both."""
        config = self.config
        of_fakes, of_images = seen
        if config.gradient_penalty:
            images = images.detach().requires_grad_()
            of_images = [images]
            if self.features is not None and self.sees_features:
                of_images = self.features.features(images)
        real, fake = self._logits(of_images), self._logits([part.detach() for part in of_fakes])
        own = discriminator_loss(config.loss, real, fake)
        accuracy = mean_over_ranks(((real > 0).float().mean() + (fake < 0).float().mean()) / 2)
        terms = {
            LEARNING: torch.ones_like(own.detach()),
            "discriminator": own.detach(),
            "real_logit": real.detach().mean(),
            "fake_logit": fake.detach().mean(),
            "discriminator_accuracy": accuracy,
        }
        if config.lecam:
            own = own + config.lecam * self.lecam(real, fake)
        if config.gradient_penalty:
            own = own + config.gradient_penalty / 2 * gradient_penalty(real, images)
        weight = config.weight_at(self._progress)
        if not weight:
            return own, terms
        still = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        fooled = generator_loss(config.loss, self._logits(of_fakes, still))
        lead = ((accuracy - GUESSES) / (LEADS - GUESSES)).clamp(0, 1)
        balanced = weight * lead * adaptive_weight(fooled, fakes, images, error_weight)
        terms |= {OPPOSING: terms[LEARNING], "adversarial": fooled.detach(), "adversarial_weight": balanced}
        return own + balanced * fooled, terms

    def _logits(self, seen: Sequence[Tensor], weights: dict[str, Tensor] | None = None) -> Tensor:
        """Computes the discriminator's logits of its input, with its own weights or the given ones."""
        shown = seen if self.sees_features else seen[0]
        if weights is None:
            return self.discriminator(shown).float()
        return functional_call(self.discriminator, weights, (shown,)).float()

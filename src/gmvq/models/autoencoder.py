r"""VAE, VQ-VAE and GM-VQ are one autoencoder with three bottlenecks.

::

    images --encoder--> latents --bottleneck--> values --decoder--> parameters --likelihood--> images
                                       |
                                     codes

The objective is in nats for each data dimension; the bottleneck says what its loss weighs there. That of the VAE is in
nats for each token and counts as the model says. That of a quantizer is a squared error of the latents and counts as
one of the images does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.losses import make_likelihood
from gmvq.losses.reconstruction import LikelihoodName
from gmvq.models.bottlenecks import QuantizerName, latent_dim, make_bottleneck
from gmvq.models.modes import evaluating
from gmvq.models.refinement import refine
from gmvq.networks import Decoder, Encoder, SQVAEDecoder, SQVAEEncoder
from gmvq.networks.layers import Normalization
from gmvq.quantizers import Hierarchical, Joined
from gmvq.types import Reconstruction

NetworkName = Literal["convolutional", "sq-vae"]

_ADDED = ("network", "quantizer_options")
"""Fields that came after the first models were saved: at their defaults they are no part of what a model is called."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """What an autoencoder is made of.

    Args:
        quantizer: ``gaussian-mixture`` (GM-VQ), ``vector`` (VQ-VAE as published: codebook by gradient from a small
            random start), ``vector-kmeans`` (the same from k-means of the first batch), ``vector-ema`` (moving
            averages from k-means, with revival of dead codes), ``vector-affine`` (affine codes of length 1 with steps
            in place and revival), ``finite-scalar`` (FSQ), ``lookup-free`` (LFQ), ``binary-spherical`` (BSQ),
            ``simvq``, ``index-backpropagation`` (IBQ), ``stochastic`` (SQ-VAE), ``optimal-transport`` (OptVQ),
            ``gaussian-codes`` (Gaussian Quant), ``product``, ``residual``, ``implicit-residual`` (QINCo),
            ``hierarchical`` (VAR's scales) or ``none`` (VAE).
        channels: Channels of the images.
        codebook_size: Number of codes.
        code_dim: Features of a latent; FSQ, LFQ and BSQ take as many as their codebook needs instead.
        width: Channels of the networks.
        downsampling: Pixels of a token's side, a power of two.
        blocks: Residual blocks of encoder and of decoder.
        normalization: ``layer`` (over the channels of each place), ``group``, ``batch`` or ``none``.
        likelihood: ``gaussian`` (variance at its maximum-likelihood value), ``mean-squared-error``, ``laplace`` or
            ``bernoulli``.
        network: ``convolutional``, or ``sq-vae``: that of the SQ-VAE paper, on which the literature compares
            quantizers; half the width after the first halving, batch normalization always, a sigmoid at the end.
        quantizer_options: Arguments of the quantizer beside or instead of those that its name stands for, as JSON has
            them; an object is written ``{"kind": NAME, ...}``, see :func:`gmvq.models.bottlenecks.from_json`.
    """

    quantizer: QuantizerName = "gaussian-mixture"
    channels: int = 3
    codebook_size: int = 512
    code_dim: int = 4
    width: int = 64
    downsampling: int = 4
    blocks: int = 2
    normalization: Normalization = "layer"
    likelihood: LikelihoodName = "gaussian"
    network: NetworkName = "convolutional"
    quantizer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("channels", "codebook_size", "code_dim", "width", "blocks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"'{name}' must be an integer of at least 1, got {value!r}. See AutoencoderConfig.")
        if self.downsampling < 2 or self.downsampling & (self.downsampling - 1):
            raise ValueError(
                f"'downsampling' must be a power of two of at least 2, got {self.downsampling}. Use 4 or 8."
            )
        if self.network not in get_args(NetworkName):
            raise ValueError(f"'network' must be one of {', '.join(get_args(NetworkName))}, got {self.network!r}.")

    def identity(self) -> dict[str, Any]:
        """What a saved model of this configuration is called by: all fields but later ones at their defaults."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        default = AutoencoderConfig()
        return {name: x for name, x in values.items() if name not in _ADDED or x != getattr(default, name)}


class Autoencoder(nn.Module):
    """A tokenizer for images.

    Args:
        config: What it is made of.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        halvings = config.downsampling.bit_length() - 1
        dim = latent_dim(config.quantizer, config.code_dim, config.codebook_size)
        widths = (config.width,) * halvings
        if config.network == "sq-vae":
            widths = (max(1, config.width // 2), *widths[1:]) if halvings > 1 else widths
        self.encoder = self._network(Encoder, SQVAEEncoder, dim, widths)
        self.bottleneck = make_bottleneck(config.quantizer, dim, config.codebook_size, config.quantizer_options)
        self.decoder = self._network(Decoder, SQVAEDecoder, dim, widths)
        self.likelihood = make_likelihood(config.likelihood)

    @property
    def downsampling(self) -> int:
        """Pixels of a token's side."""
        return self.config.downsampling

    @property
    def codebook_size(self) -> int | None:
        """Number of codes, None for a continuous bottleneck."""
        return self.bottleneck.codebook_size

    @property
    def has_code_maps(self) -> bool:
        """True if each place of the latents has one code: codes are ``(B, h, w)``."""
        return self.codebook_size is not None and self.bottleneck.quantizes_rows

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level of a code, as ``(K,)``; several where it stands for several, as of a residual.

        Raises:
            ValueError: If the bottleneck has no codes.
        """
        if self.codebook_size is None:
            raise ValueError("The model has no codes: its bottleneck is continuous. Train one with a quantizer.")
        if isinstance(self.bottleneck, Joined):
            return self.bottleneck.places[0].codebook_sizes
        return (self.codebook_size,)

    def levels_of(self, codes: Tensor) -> Tensor:
        """The codes that one stands for: int64 ``(*)`` -> ``(*, levels)``; -1 gives -1 at all levels.

        Raises:
            ValueError: If there are several levels, and codes are not integers or none of the codebook.
        """
        if not isinstance(self.bottleneck, Joined):
            return codes[..., None]
        return self.bottleneck.split(codes).flatten(codes.ndim)

    def code_of(self, levels: Tensor) -> Tensor:
        """The one code that some stand for: int64 ``(*, levels)`` -> ``(*)``; -1 at any level gives -1.

        Raises:
            ValueError: If there are several levels, and codes are not integers or none of their level's codebook.
        """
        if not isinstance(self.bottleneck, Joined):
            return levels[..., 0]
        return self.bottleneck.join(levels.unflatten(-1, self.bottleneck.places[0].code_shape))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of latents of an image of some height and width."""
        height, width = (-(-side // self.downsampling) for side in size)
        return height, width

    def latents(self, images: Tensor) -> Tensor:
        """What the encoder says: images ``(B, C, H, W)`` -> ``(B, h, w, dim)``, h and w rounded up.

        Raises:
            ValueError: If the images' shape or type does not fit the model.
        """
        images = self.as_float(images)
        height, width = images.shape[-2:]
        right, bottom = -width % self.downsampling, -height % self.downsampling
        # the border is repeated: reflection needs images larger than the padding
        padded = F.pad(images, (0, right, 0, bottom), mode="replicate") if right or bottom else images
        return self.encoder(padded).movedim(1, -1)

    @torch.no_grad()
    def encode(self, images: Tensor, refine_steps: int = 0) -> Tensor:
        """Codes of images: float in [0, 1] or uint8 ``(B, C, H, W)`` -> int64 ``(B, h, w)``.

        A VAE gives its means instead, floats ``(B, h, w, dim)``; a hierarchical quantizer the codes of all scales in
        one row, ``(B, T)``.

        Args:
            images: Of any size.
            refine_steps: Candidates by which the decoder's gradient lowers the squared error of each image's codes, see
                :func:`gmvq.models.refinement.refine`; 0 leaves them as the encoder says.

        Raises:
            ValueError: If the images' shape or type does not fit the model, they are not finite, ``refine_steps`` is
                not an integer of at least 0, or a VAE is to refine.
        """
        if images.is_floating_point() and not bool(images.isfinite().all()):
            raise ValueError("'images' must be finite, got NaN or infinity. Clean them with torch.nan_to_num(images).")
        codes = self.bottleneck.encode(self.latents(images))
        return codes if refine_steps == 0 else refine(self, images, codes, refine_steps).codes

    @torch.no_grad()
    def decode(self, codes: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images of codes: int64 ``(B, h, w)`` -> float in [0, 1] ``(B, C, h f, w f)``.

        Args:
            codes: What :meth:`encode` returned.
            size: Height and width to crop to, for images whose size is no multiple of the downsampling factor f. Codes
                of several scales, ``(B, T)``, do not tell the size of their image, and need it.

        Raises:
            ValueError: If the codes' shape, type or range does not fit the model.
        """
        return self.decode_with_values(codes, size)[0]

    @torch.no_grad()
    def decode_with_values(self, codes: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`decode`'s images of codes, and the values ``(B, h, w, dim)`` that the decoder saw."""
        values = self._values_of(codes, size)
        return self.likelihood.mean(self.decode_values(values, size)), values

    def _values_of(self, codes: Tensor, size: tuple[int, int] | None) -> Tensor:
        """What the decoder sees for codes, ``(B, h, w, dim)``."""
        if isinstance(self.bottleneck, Hierarchical):
            if size is None:
                raise ValueError(
                    "'size' must be given for codes of several scales, which do not tell the size of their image. Pass "
                    "its height and width, as images.shape[-2:]."
                )
            return self.bottleneck.decode(codes, self.grid(size))
        axes = 3 if self.codebook_size else 4
        if codes.ndim != axes:
            raise ValueError(
                f"'codes' must have {axes} axes (images, h, w), got {tuple(codes.shape)}. Add one with codes[None]."
            )
        return self.bottleneck.decode(codes)

    def decode_values(self, values: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Parameters of the likelihood: values ``(B, h, w, dim)`` -> ``(B, C, H, W)``, cropped to ``size``."""
        parameters = self.decoder(values.movedim(-1, 1))
        return parameters if size is None else parameters[..., : size[0], : size[1]]

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images through their hard codes and back: ``(B, C, H, W)`` -> float in [0, 1] of the same shape."""
        return self.decode(self.encode(images), (images.shape[-2], images.shape[-1]))

    def forward(self, images: Tensor) -> Reconstruction:
        """Reconstruction, codes and the objective of a batch ``(B, C, H, W)``."""
        images = self.as_float(images)
        quantized = self.bottleneck(self.latents(images))
        parameters = self.decode_values(quantized.values, (images.shape[-2], images.shape[-1]))
        reconstruction = self.likelihood(parameters, images)
        decoded = self.likelihood.mean(parameters)
        error = F.mse_loss(decoded.detach().float(), images.float())
        tokens_per_dimension = quantized.values[..., 0].numel() / images.numel()
        weight = self.bottleneck.loss_weight(self.likelihood.squared_error_weight(error), tokens_per_dimension)
        cost = weight * quantized.loss
        terms = {
            "reconstruction": reconstruction.detach(),
            "bottleneck": cost.detach(),
            "mse": error,
            **quantized.terms,
        }
        return Reconstruction(decoded, quantized.codes, reconstruction + cost, terms)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Sets the likelihood's scale to the error that draws from the posterior make on training images.

        Args:
            batches: Images ``(B, C, H, W)``.
        """
        total, count = 0.0, 0
        with evaluating(self):
            for images in batches:
                images = self.as_float(images)
                generator = torch.Generator(images.device).manual_seed(count)
                values = self.bottleneck.sample_posterior(self.latents(images), generator).values
                parameters = self.decode_values(values, (images.shape[-2], images.shape[-1]))
                total += float((parameters - images).square().sum(dtype=torch.float32))
                count += images.numel()
        if count:
            self.likelihood.calibrate(total / count)

    def _network(self, own: type[Any], published: type[Any], dim: int, widths: tuple[int, ...]) -> nn.Module:
        config = self.config
        if config.network == "sq-vae":
            return published(config.channels, dim, widths, config.blocks)
        return own(config.channels, dim, widths, config.blocks, config.normalization)

    def as_float(self, images: Tensor) -> Tensor:
        """Images as floats in [0, 1].

        Raises:
            ValueError: If their shape or type does not fit the model.
        """
        if images.ndim != 4 or images.shape[1] != self.config.channels or 0 in images.shape[2:]:
            raise ValueError(
                f"'images' must have shape (B, {self.config.channels}, H, W), got {tuple(images.shape)}. "
                "Add an axis with images[None], or convert the channels."
            )
        if images.dtype == torch.uint8:
            return images.float() / 255
        if not images.is_floating_point():
            raise ValueError(
                f"'images' must be float in [0, 1] or uint8, got {images.dtype}. Convert with .float() / 255."
            )
        return images

r"""A diffusion decoder: a flow from noise to the detail that a tokenizer's own decoder lacks.

::

    codes --tokenizer.decode--> reconstruction x0
    noise, x0, values of the codes --flow, t = 0 to 1--> r,    image = x0 + s r

.. math:: r_t = (1 - t)\, \epsilon + t\, (x - x_0) / s, \qquad
          \min_v \mathbb{E} \big| v(r_t, t \mid x_0, z) - ((x - x_0) / s - \epsilon) \big|^2

x is an image, z the values of its codes, s the standard deviation of the detail x - x0. A decoder of least squared
error returns the mean of all images that have the codes, which is blurred; this one draws a single image. Its squared
error is up to twice as large.

References:
    Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747;
    a decoder by diffusion: Diffusion Autoencoders (Preechakul et al., 2021), https://arxiv.org/abs/2111.15640
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.models.autoencoder import Autoencoder
from gmvq.networks.denoiser import Denoiser
from gmvq.networks.layers import even_times
from gmvq.types import Signal

MOST_PIXELS = 1 << 22
"""Pixels of the largest image: at a width of 64 the features of one layer take 1 GB."""


@dataclass(frozen=True)
class DiffusionConfig:
    """Size of a diffusion decoder.

    Args:
        channels: Channels C of the images.
        dim: Features of the values, the input of the tokenizer's decoder.
        downsampling: Pixels of a token's side, a power of two.
        width: Channels of the network's first level.
        blocks: Residual blocks of each level.
        steps: Steps of the flow; each takes two passes.

    Raises:
        ValueError: If a number is not at least 1, or the downsampling is not a power of two of at least 2.
    """

    channels: int
    dim: int
    downsampling: int
    width: int = 64
    blocks: int = 2
    steps: int = 8

    def __post_init__(self) -> None:
        for name in ("channels", "dim", "width", "blocks", "steps"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"'{name}' must be an integer of at least 1, got {getattr(self, name)!r}. Use 8.")
        if type(self.downsampling) is not int or self.downsampling < 2 or self.downsampling & (self.downsampling - 1):
            raise ValueError(f"'downsampling' must be a power of two of at least 2, got {self.downsampling!r}. Use 4.")


class DiffusionDecoder(nn.Module):
    """Draws images from codes, together with the tokenizer that made them.

    Args:
        config: Size of the network.

    Shape:
        images and reconstructions ``(B, C, H, W)``, values ``(B, h, w, dim)`` -> a squared error of the velocity,
        ``()``, in units of the squared deviation s.

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747

    Example:
        >>> from gmvq.models import Autoencoder, AutoencoderConfig
        >>> tokenizer = Autoencoder(AutoencoderConfig(width=8, codebook_size=16)).eval()
        >>> decoder = DiffusionDecoder(DiffusionConfig(channels=3, dim=4, downsampling=4, width=8)).eval()
        >>> codes = tokenizer.encode(torch.rand(2, 3, 30, 30))
        >>> decoder.decode(tokenizer, codes, (30, 30)).shape
        torch.Size([2, 3, 30, 30])
    """

    citations: ClassVar[tuple[str, ...]] = ("flow_lipman2022",)
    scale: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        halvings = config.downsampling.bit_length() - 1
        self.network = Denoiser(config.channels, config.dim, halvings, config.width, config.blocks)
        self.register_buffer("scale", torch.ones(()))

    def set_scale(self, deviation: float) -> None:
        """Sets s, the standard deviation of the detail that the tokenizer's decoder lacks, before training.

        Raises:
            ValueError: If it is not a finite number above 0.
        """
        if not 0 < deviation < math.inf:
            raise ValueError(f"'deviation' must be a finite number above 0, got {deviation}. Use the root of the MSE.")
        self.scale.fill_(deviation)

    def forward(self, images: Tensor, reconstructions: Tensor, values: Tensor) -> Tensor:
        """Computes the training loss, ``()``.

        Args:
            images: Float in [0, 1], ``(B, C, H, W)``.
            reconstructions: Output of the tokenizer's decoder for their codes, the same shape.
            values: Input of that decoder, ``(B, h, w, dim)``.
        """
        size = images.shape[-2:]
        known, lacking = self._whole(reconstructions), self._whole((images - reconstructions) / self.scale)
        times, noise = even_times(len(images), images.device, over_ranks=self.training), torch.randn_like(lacking)
        noisy = torch.lerp(noise, lacking, times[:, None, None, None])
        velocity = self.network(noisy, known, values.movedim(-1, 1), times)
        error = velocity.float() - (lacking - noise)
        return error[..., : size[0], : size[1]].square().mean()

    @torch.no_grad()
    def draw(
        self,
        reconstructions: Tensor,
        values: Tensor,
        *,
        steps: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> Tensor:
        """Draws images from codes, each with its own random numbers.

        Args:
            reconstructions: Output of the tokenizer's decoder for the codes, float in [0, 1] ``(B, C, H, W)``.
            values: Input of that decoder, ``(B, h, w, dim)``.
            steps: Steps of the flow; by default those of the configuration.
            temperature: Scale of the noise; 0 for no noise, which comes near the reconstruction.
            seed: Seed of the noise.
            first: Number of the first image: the noise of an image depends on its number, not on its batch.

        Returns:
            Float in [0, 1], ``(B, C, H, W)``.

        Raises:
            ValueError: If ``steps`` is not at least 1, ``temperature`` is not a finite number of at least 0, ``seed``
                or ``first`` is below 0, or the images have more than 2^22 pixels.
        """
        steps = self.config.steps if steps is None else steps
        if type(steps) is not int or steps < 1:
            raise ValueError(f"'steps' must be an integer of at least 1, got {steps!r}. Use 8.")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"'temperature' must be a finite number of at least 0, got {temperature}. Use 1.0.")
        if seed < 0 or first < 0:
            raise ValueError(f"'seed' and 'first' must be at least 0, got {seed} and {first}. Use 0.")
        _check_pixels(tuple(reconstructions.shape[-2:]))
        known, seen = self._whole(reconstructions), values.movedim(-1, 1)
        moving = temperature * _noise(known, seed, first)
        for step in range(steps):
            times = torch.full((len(known),), step / steps, device=known.device)
            half = moving + self.network(moving, known, seen, times) / (2 * steps)
            moving = moving + self.network(half, known, seen, times + 0.5 / steps) / steps  # the midpoint rule
        height, width = reconstructions.shape[-2:]
        return (reconstructions + self.scale * moving[..., :height, :width]).clamp(0, 1)

    @torch.no_grad()
    def decode(
        self, tokenizer: Autoencoder, codes: Tensor, size: tuple[int, ...] | None = None, **how: int | float
    ) -> Tensor:
        """Decodes codes to images, as :meth:`gmvq.Autoencoder.decode`, with the detail that it lacks.

        Args:
            tokenizer: The tokenizer that made the codes, in evaluation mode.
            codes: Output of its ``encode``.
            size: Height and width to crop to.
            how: ``steps``, ``temperature``, ``seed`` and ``first``, see :meth:`draw`.

        Raises:
            ValueError: If codes do not fit the tokenizer, or the tokenizer does not fit this decoder.
        """
        self.check_fits(tokenizer)
        _check_pixels(tokenizer.size_of(codes, size))  # before the tokenizer's own decoder takes all memory
        reconstructions, values = tokenizer.decode_with_values(codes, size)
        return self.draw(reconstructions, values, **how)  # pyright: ignore[reportArgumentType]

    def check_fits(self, tokenizer: Autoencoder) -> None:
        """Checks that a tokenizer has the images and values that this decoder was fitted to.

        Raises:
            ValueError: If it does not.
        """
        self.check_signal(tokenizer.signal)
        own = (self.config.channels, self.config.dim, self.config.downsampling)
        others = (tokenizer.signal.channels, tokenizer.bottleneck.dim, tokenizer.downsampling)
        if own != others:
            raise ValueError(
                "'tokenizer' must have {} channels, values of {} features and tokens of {} pixels, got ".format(*own)
                + "{}, {} and {}. Give the one that this decoder was fitted to.".format(*others)
            )

    @staticmethod
    def check_signal(signal: Signal) -> None:
        """Checks that items are images.

        Raises:
            ValueError: If they are not.
        """
        if signal.axes != 2 or signal.values != "unit":
            raise ValueError(
                f"'tokenizer' must be of items with 2 axes and values in [0, 1], got {signal.modality}: a diffusion "
                "decoder is for images."
            )

    def _whole(self, images: Tensor) -> Tensor:
        """Pads images to whole tokens, by repeating their border."""
        right, bottom = (-side % self.config.downsampling for side in (images.shape[-1], images.shape[-2]))
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if right or bottom else images


def _check_pixels(size: tuple[int, ...]) -> None:
    if math.prod(size) > MOST_PIXELS:
        raise ValueError(
            f"Images must have at most {MOST_PIXELS:,} pixels, got {size}: a diffusion decoder works on all of them at "
            "once. Cut the image into parts."
        )


def _noise(like: Tensor, seed: int, first: int) -> Tensor:
    """Draws normal numbers, those of an image by its number."""
    rows = [
        # the last number separates them from those that draw codes, of the same seed and image
        np.random.default_rng((seed, index, 1)).standard_normal(like.shape[1:], dtype=np.float32)
        for index in range(first, first + len(like))
    ]
    return torch.from_numpy(np.stack(rows)).to(like) if rows else torch.zeros_like(like)

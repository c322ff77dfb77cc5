"""New images: a prior draws codes, or two images share theirs; the tokenizer decodes them.

::

    labels --prior.sample--> codes --tokenizer.decode--> images
    images, mask --tokenizer.encode--> known codes --prior.complete--> codes --tokenizer.decode--> images
    two images --tokenizer--> latents --interpolate--> codes, or codes --swap--> codes --tokenizer.decode--> images
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.models import Autoencoder, DiffusionDecoder
from gmvq.priors import AbstractPrior, Sampling


class Generated(NamedTuple):
    """Images that were drawn.

    Attributes:
        images: Float in [0, 1], ``(B, C, H, W)``.
        codes: What they were decoded from, int64 ``(B, h, w)``.
    """

    images: Tensor
    codes: Tensor


class Generator:
    """A prior over the codes of a tokenizer, with that tokenizer.

    Args:
        tokenizer: In evaluation mode.
        prior: Over its codes, in evaluation mode, on the same device.
        decoder: What decodes the codes in place of the tokenizer's own decoder, there too; None for that.

    Raises:
        ValueError: If the tokenizer has not one code for each place, or the prior or the decoder is of others.
    """

    def __init__(self, tokenizer: Autoencoder, prior: AbstractPrior, decoder: DiffusionDecoder | None = None) -> None:
        if not tokenizer.has_code_maps:
            raise ValueError(
                f"'tokenizer' must have a code for each place, got one with the quantizer "
                f"{tokenizer.config.quantizer!r}. Train one with --quantizer gaussian-mixture."
            )
        sizes, levels = prior.shape.codebook_sizes, tokenizer.level_sizes
        if sizes not in ((tokenizer.codebook_size,), levels) or len(prior.shape.grid) != 2:
            raise ValueError(
                f"'prior' must be of maps of {' x '.join(map(str, levels))} codes, got {sizes} on "
                f"{prior.shape.grid}. Give the prior that was fitted to this tokenizer."
            )
        if decoder is not None:
            decoder.check_fits(tokenizer)
        self.tokenizer, self.prior, self.decoder = tokenizer, prior, decoder

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is drawn, in pixels."""
        height, width = self.prior.shape.grid
        return height * self.tokenizer.downsampling, width * self.tokenizer.downsampling

    @torch.no_grad()
    def sample(
        self,
        number: int,
        labels: Tensor | None = None,
        sampling: Sampling | None = None,
        *,
        first: int = 0,
        batch_size: int = 64,
    ) -> Generated:
        """Draws images.

        Args:
            number: Images B.
            labels: Class of each ``(B,)``; None for none.
            sampling: Temperature, guidance, seed and so on.
            first: Number of the first image: each has random numbers of its own, in any batch.
            batch_size: Images at a time.

        Raises:
            ValueError: If labels do not fit.
        """
        labels = self.prior.shape.checked_labels(labels, number, self.prior.device)
        parts = []
        for start in range(0, number, batch_size):
            end = min(number, start + batch_size)
            some = None if labels is None else labels[start:end]
            codes = self._code_of(self.prior.sample(end - start, some, sampling, first=first + start))
            parts.append(Generated(self._decoded(codes, sampling, first + start), codes))
        if not parts:
            codes = self._code_of(self.prior.sample(0, labels, sampling))
            return Generated(torch.zeros(0, self.tokenizer.config.channels, *self.size, device=codes.device), codes)
        return Generated(*(torch.cat(some) for some in zip(*parts, strict=True)))

    @torch.no_grad()
    def complete(
        self,
        images: Tensor,
        mask: Tensor,
        labels: Tensor | None = None,
        sampling: Sampling | None = None,
        *,
        keep: bool = True,
        first: int = 0,
    ) -> Generated:
        """Draws the hidden part of images anew.

        Args:
            images: Float in [0, 1] or uint8 ``(B, C, H, W)``, of the prior's size.
            mask: Booleans ``(H, W)`` or ``(B, H, W)``, True where a pixel is hidden. A token is drawn if any of its
                pixels is hidden; the encoder sees the mean of the shown pixels there.
            labels: Class of each image ``(B,)``; None for none.
            sampling: Temperature, guidance, seed and so on.
            keep: Put the shown pixels back over what was decoded.
            first: Number of the first image, for its random numbers.

        Raises:
            ValueError: If images, mask or labels do not fit.
        """
        shapes = (self.size, (len(images), *self.size))
        if tuple(images.shape[-2:]) != self.size or tuple(mask.shape) not in shapes or mask.dtype != torch.bool:
            raise ValueError(
                f"'images' must have {self.size[0]}x{self.size[1]} pixels and 'mask' be boolean of that size, one or "
                f"one for each, got {tuple(images.shape)} and {mask.dtype} {tuple(mask.shape)}. Resize them."
            )
        images, mask = images.to(self.prior.device), mask.to(self.prior.device)
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        hidden = mask.expand(len(images), -1, -1)[:, None]
        shown = ~hidden
        means = (images * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp_min(1)
        codes = self.tokenizer.encode(torch.where(hidden, means, images))
        redrawn = F.max_pool2d(hidden.float(), self.tokenizer.downsampling)[:, 0] > 0
        known = codes.masked_fill(redrawn, -1)
        known = self.tokenizer.levels_of(known) if self.prior.shape.levels > 1 else known
        codes = self._code_of(self.prior.complete(known, labels, sampling, first=first))
        decoded = self._decoded(codes, sampling, first)
        return Generated(torch.where(shown, images, decoded) if keep else decoded, codes)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, first: int = 0) -> Tensor:
        """Images through their codes and back, decoded as drawn codes are: ``(B, C, H, W)``, float in [0, 1].

        Args:
            images: Float in [0, 1] or uint8, of whole tokens.
            first: Number of the first image, for the noise of a diffusion decoder.
        """
        return self._decoded(self.tokenizer.encode(images), None, first)

    def _decoded(self, codes: Tensor, sampling: Sampling | None, first: int) -> Tensor:
        """Images of codes; a diffusion decoder's noise is that of the sampling's seed and the image's number."""
        if self.decoder is None:
            return self.tokenizer.decode(codes)
        seed = 0 if sampling is None else sampling.seed
        return self.decoder.decode(self.tokenizer, codes, seed=seed, first=first)

    def _code_of(self, drawn: Tensor) -> Tensor:
        """The tokenizer's codes ``(B, h, w)``, of the prior's, which may be several levels of them."""
        return self.tokenizer.code_of(drawn) if self.prior.shape.levels > 1 else drawn


@torch.no_grad()
def interpolate(tokenizer: Autoencoder, first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Images between two, by way of their latents: each step is quantized, so that it is an image that codes can hold.

    Of a VAE, whose latents are not quantized, they are the images of latents between two means.

    Args:
        tokenizer: In evaluation mode.
        first: Float in [0, 1] or uint8 ``(B, C, H, W)``.
        second: The same.
        steps: Images on the way, both ends among them, at least 2.

    Returns:
        Float in [0, 1], ``(steps, B, C, H, W)``.

    Raises:
        ValueError: If there are fewer than 2 steps, the images differ in shape, or are not finite.
    """
    if type(steps) is not int or steps < 2:
        raise ValueError(f"'steps' must be an integer of at least 2, got {steps!r}. Use 8.")
    if first.shape != second.shape:
        raise ValueError(
            f"'first' and 'second' must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}. Resize one."
        )
    for images in (first, second):
        if images.is_floating_point() and not bool(images.isfinite().all()):
            raise ValueError("'first' and 'second' must be finite, got NaN or infinity. Clean them.")
    ends = tokenizer.latents(first), tokenizer.latents(second)
    size = (first.shape[-2], first.shape[-1])
    between = [torch.lerp(*ends, step / (steps - 1)) for step in range(steps)]
    return torch.stack([tokenizer.decode(tokenizer.bottleneck.encode(latents), size) for latents in between])


@torch.no_grad()
def swap(tokenizer: Autoencoder, first: Tensor, second: Tensor, mask: Tensor) -> Generated:
    """Images with the codes of others in some places.

    Args:
        tokenizer: In evaluation mode, with a code for each place.
        first: What is changed, float in [0, 1] or uint8 ``(B, C, H, W)``.
        second: What the codes are of, the same.
        mask: Booleans ``(H, W)`` or ``(B, H, W)``, True where a pixel is to be of the second: a code is taken if any of
            its pixels is.

    Raises:
        ValueError: If images and mask do not fit each other, or the tokenizer has not one code for each place.
    """
    if not tokenizer.has_code_maps:
        raise ValueError("'tokenizer' must have a code for each place. Train one with --quantizer gaussian-mixture.")
    size = (first.shape[-2], first.shape[-1])
    if first.shape != second.shape or tuple(mask.shape) not in (size, (len(first), *size)) or mask.dtype != torch.bool:
        raise ValueError(
            f"'first' and 'second' must have one shape and 'mask' be boolean of their size, got {tuple(first.shape)}, "
            f"{tuple(second.shape)} and {mask.dtype} {tuple(mask.shape)}. Resize them."
        )
    masked = mask.to(first.device).expand(len(first), -1, -1)[:, None].float()
    taken = F.max_pool2d(masked, tokenizer.downsampling, ceil_mode=True)[:, 0] > 0
    codes = torch.where(taken, tokenizer.encode(second), tokenizer.encode(first))
    return Generated(tokenizer.decode(codes, size), codes)


def sheet(images: Tensor, columns: int, gap: int = 2, magnify: int = 1) -> Tensor:
    """Images side by side on white: ``(B, C, H, W)`` -> ``(C, rows (H + gap) - gap, columns (W + gap) - gap)``.

    Args:
        images: Float in [0, 1].
        columns: Images in a row.
        gap: Pixels between them.
        magnify: Side of the square that stands for a pixel; H and W above are those of the magnified images.

    Raises:
        ValueError: If there is no image.
    """
    if not len(images):
        raise ValueError("'images' must be at least one, got none. Draw some.")
    images = images.repeat_interleave(magnify, dim=-1).repeat_interleave(magnify, dim=-2)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    framed = F.pad(images, (0, gap, 0, gap), value=1.0)
    framed = torch.cat([framed, framed.new_ones(rows * columns - len(images), *framed.shape[1:])])
    height, width = framed.shape[-2:]
    pasted = framed.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).reshape(-1, rows * height, columns * width)
    return pasted[:, : pasted.shape[1] - gap, : pasted.shape[2] - gap]

"""Generation of items: a prior draws codes, or codes of two items are mixed; the tokenizer decodes them.

::

    labels --prior.sample--> codes --tokenizer.decode--> items
    items, mask --tokenizer.encode--> known codes --prior.complete--> codes --tokenizer.decode--> items
    two items --tokenizer--> latents --interpolate--> codes, or codes --swap--> codes --tokenizer.decode--> items
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.checks import at_least
from gmvq.models import Autoencoder, DiffusionDecoder
from gmvq.priors import AbstractPrior, Sampling


class Generated(NamedTuple):
    """Drawn items and their codes.

    Attributes:
        items: Items as the tokenizer decodes them, ``(B, C, *S)``; symbols ``(B, T)``.
        codes: The codes that were decoded, int64 ``(B, *grid[, levels])``.
    """

    items: Tensor
    codes: Tensor


class Generator:
    """A tokenizer with a prior over its codes.

    Args:
        tokenizer: The tokenizer, in evaluation mode.
        prior: Prior over its codes, in evaluation mode, on the same device.
        decoder: Decoder in place of the tokenizer's own, on the same device; None for the tokenizer's own.

    Raises:
        ValueError: If the tokenizer has no codes for each place, or the prior or the decoder is another tokenizer's.
    """

    def __init__(self, tokenizer: Autoencoder, prior: AbstractPrior, decoder: DiffusionDecoder | None = None) -> None:
        if not tokenizer.has_code_maps:
            raise ValueError(
                f"'tokenizer' must have codes for each place, got one with the quantizer "
                f"{tokenizer.config.quantizer!r}. Train one with --quantizer gaussian-mixture."
            )
        sizes, axes = tokenizer.level_sizes, tokenizer.signal.axes
        if prior.shape.codebook_sizes != sizes or len(prior.shape.grid) != axes:
            raise ValueError(
                f"'prior' must be of {' x '.join(map(str, sizes))} codes at each place of {axes} axes, got "
                f"{prior.shape.codebook_sizes} on {prior.shape.grid}. Give the prior that was fitted to this tokenizer."
            )
        if decoder is not None:
            decoder.check_fits(tokenizer)
        self.tokenizer, self.prior, self.decoder = tokenizer, prior, decoder

    @property
    def size(self) -> tuple[int, ...]:
        """Samples along each axis of drawn items: height and width of images."""
        return tuple(length * self.tokenizer.downsampling for length in self.prior.shape.grid)

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
        """Draws items.

        Args:
            number: Number of items B.
            labels: Class of each item ``(B,)``; None for no classes.
            sampling: Temperature, guidance, seed and so on.
            first: Number of the first item: the random numbers of an item depend on its number, not on its batch.
            batch_size: Number of items at a time.

        Raises:
            ValueError: If a number is out of range, or labels do not fit.
        """
        at_least("number", number, 0, "Say how many to draw.")
        at_least("batch_size", batch_size, 1, "Use 64.")
        labels = self.prior.shape.checked_labels(labels, number, self.prior.device)
        parts = []
        for start in range(0, max(1, number), batch_size):
            end = min(number, start + batch_size)
            some = None if labels is None else labels[start:end]
            codes = self.prior.sample(end - start, some, sampling, first=first + start)
            parts.append(Generated(self._decoded(codes, sampling, first + start), codes))
        return Generated(*(torch.cat(some) for some in zip(*parts, strict=True)))

    @torch.no_grad()
    def complete(
        self,
        items: Tensor,
        mask: Tensor,
        labels: Tensor | None = None,
        sampling: Sampling | None = None,
        *,
        keep: bool = True,
        first: int = 0,
    ) -> Generated:
        """Draws the hidden part of items anew.

        Args:
            items: Items as the tokenizer encodes them, of the prior's size.
            mask: Booleans ``(*S)`` or ``(B, *S)``, True where a sample is hidden. A token is drawn if any of its
                samples is hidden; the encoder gets the mean of the shown samples there, or symbol 0.
            labels: Class of each item ``(B,)``; None for no classes.
            sampling: Temperature, guidance, seed and so on.
            keep: Put the shown samples back into the decoded items.
            first: Number of the first item, for its random numbers.

        Raises:
            ValueError: If items, mask or labels do not fit, or items have no axes along which to hide a part.
        """
        signal = self.tokenizer.signal
        if not signal.axes:
            raise ValueError(f"'items' must have axes, along which a part is hidden, and {signal.modality} have none.")
        size = signal.size(items)
        if size != self.size or tuple(mask.shape) not in (size, (len(items), *size)) or mask.dtype != torch.bool:
            raise ValueError(
                f"'items' must have {_by(self.size)} samples and 'mask' be boolean of that size, for all or for each, "
                f"got {tuple(items.shape)} and {mask.dtype} {tuple(mask.shape)}. Resize or cut them."
            )
        items, mask = signal.checked(items.to(self.prior.device)), mask.to(self.prior.device)
        hidden = mask.expand(len(items), *size)
        wide = hidden if signal.values == "symbols" else hidden[:, None]
        codes = self.tokenizer.encode(torch.where(wide, self._filling(items, ~wide), items))
        known = codes.masked_fill(self._of_levels(_tokens_with_any(hidden, self.tokenizer.downsampling)), -1)
        codes = self.prior.complete(known, labels, sampling, first=first)
        decoded = self._decoded(codes, sampling, first)
        return Generated(torch.where(wide, decoded, items) if keep else decoded, codes)

    @torch.no_grad()
    def reconstruct(self, items: Tensor, *, first: int = 0) -> Tensor:
        """Encodes items and decodes their codes as drawn codes: ``(B, C, *S)`` -> the same shape.

        Args:
            items: Items as the tokenizer encodes them, of whole tokens.
            first: Number of the first item, for the noise of a diffusion decoder.
        """
        return self._decoded(self.tokenizer.encode(items), None, first)

    def _decoded(self, codes: Tensor, sampling: Sampling | None, first: int) -> Tensor:
        """Decodes codes; a diffusion decoder's noise depends on the sampling's seed and the item's number."""
        if self.decoder is None:
            return self.tokenizer.decode(codes)
        seed = 0 if sampling is None else sampling.seed
        return self.decoder.decode(self.tokenizer, codes, seed=seed, first=first)

    def _filling(self, items: Tensor, shown: Tensor) -> Tensor:
        """Returns the encoder's input where items are hidden."""
        if self.tokenizer.signal.values == "symbols":
            return torch.zeros_like(items)
        axes = tuple(range(2, items.ndim))
        return (items * shown).sum(axes, keepdim=True) / shown.sum(axes, keepdim=True).clamp_min(1)

    def _of_levels(self, places: Tensor) -> Tensor:
        """Gives booleans of places ``(B, *grid)`` an axis for the levels of their codes, if there is one."""
        return (
            places if self.prior.shape.levels == 1 and not self.tokenizer.bottleneck.code_shape else places[..., None]
        )


def _tokens_with_any(marked: Tensor, stride: int) -> Tensor:
    """Marks tokens that have a marked sample: booleans ``(B, *S)`` -> ``(B, *grid)``, partial tokens included."""
    for axis in range(1, marked.ndim):
        parts = marked.split(stride, axis)
        marked = torch.stack([part.any(axis) for part in parts], axis)
    return marked


@torch.no_grad()
def interpolate(tokenizer: Autoencoder, first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Interpolates between items by their latents; each step is quantized, so that codes can represent it.

    Latents of a VAE are not quantized: its steps decode latents between two means.

    Args:
        tokenizer: The tokenizer, in evaluation mode.
        first: Items as the tokenizer encodes them, ``(B, C, *S)``.
        second: Items of the same shape.
        steps: Number of steps, both ends included, at least 2.

    Returns:
        ``(steps, B, C, *S)``.

    Raises:
        ValueError: If there are fewer than 2 steps, or the items differ in shape or do not fit the tokenizer.
    """
    at_least("steps", steps, 2, "Use 8.")
    if first.shape != second.shape:
        raise ValueError(
            f"'first' and 'second' must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}. Resize one."
        )
    ends = tokenizer.latents(first), tokenizer.latents(second)
    size = tokenizer.signal.size(first)
    between = [torch.lerp(*ends, step / (steps - 1)) for step in range(steps)]
    return torch.stack([tokenizer.decode(tokenizer.bottleneck.encode(latents), size) for latents in between])


@torch.no_grad()
def swap(tokenizer: Autoencoder, first: Tensor, second: Tensor, mask: Tensor) -> Generated:
    """Replaces codes of items by those of other items in some places, and decodes them.

    Args:
        tokenizer: The tokenizer, in evaluation mode, with codes for each place.
        first: Items to change, ``(B, C, *S)``.
        second: Items that give codes, of the same shape.
        mask: Booleans ``(*S)`` or ``(B, *S)``, True where a sample is to be of the second: the codes of a token are
            replaced if any of its samples is.

    Raises:
        ValueError: If items and mask do not fit each other, or the tokenizer has no codes for each place, or items
            have no axes.
    """
    if not tokenizer.signal.axes:
        raise ValueError(
            f"'tokenizer' must be of items with axes, along which a part is swapped, and {tokenizer.signal.modality} "
            "have none."
        )
    if not tokenizer.has_code_maps:
        raise ValueError("'tokenizer' must have codes for each place. Train one with --quantizer gaussian-mixture.")
    size = tokenizer.signal.size(first)
    if first.shape != second.shape or tuple(mask.shape) not in (size, (len(first), *size)) or mask.dtype != torch.bool:
        raise ValueError(
            f"'first' and 'second' must have one shape and 'mask' be boolean of their size, got {tuple(first.shape)}, "
            f"{tuple(second.shape)} and {mask.dtype} {tuple(mask.shape)}. Resize them."
        )
    taken = _tokens_with_any(mask.to(first.device).expand(len(first), *size), tokenizer.downsampling)
    taken = taken[..., None] if tokenizer.bottleneck.code_shape else taken
    codes = torch.where(taken, tokenizer.encode(second), tokenizer.encode(first))
    return Generated(tokenizer.decode(codes, size), codes)


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size[::-1]))  # width x height

r"""One autoencoder for VAE, VQ-VAE and GM-VQ, which differ in the bottleneck.

::

    items --encoder--> latents --bottleneck--> values --decoder--> parameters --likelihood--> items
                                      |
                                    codes

The objective is in nats for each data dimension; the bottleneck gives the weight of its loss. The loss of the VAE, in
nats for each token, is converted to nats for each dimension. The loss of a quantizer is a squared error of the latents
and has the weight of a squared error of the items.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.distributed import mean_over_ranks, rank, sum_over_ranks, world_size
from gmvq.losses import SpectralLoss, make_likelihood
from gmvq.modalities import Modality
from gmvq.models.configuration import AutoencoderConfig
from gmvq.models.modes import evaluating
from gmvq.models.tiles import TILE, Assembly, Network, Part, decode_tiles, encode_tiles, is_large, planned
from gmvq.networks import Decoder, Encoder, SQVAEDecoder, SQVAEEncoder
from gmvq.networks.layers import within
from gmvq.networks.standardization import Standardization
from gmvq.quantizers import AbstractQuantizer, Hierarchical, make_bottleneck
from gmvq.quantizers.catalogue import preset_of
from gmvq.quantizers.parts.rows import as_type
from gmvq.types import Batch, Reconstruction, Signal


class Autoencoder(nn.Module):
    """A tokenizer: encoder, bottleneck, decoder and likelihood.

    Args:
        config: Settings of the parts.

    Shape:
        items ``(B, C, *S)``, of symbols ``(B, T)`` <-> codes ``(B, *grid)``, or ``(B, *grid, levels)`` where the
        bottleneck has several for each token; ``grid`` is S over the downsampling, rounded up.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        dim = preset_of(config.quantizer).latent_dim(config.code_dim, config.codes)
        self.encoder = self._network(Encoder, SQVAEEncoder, dim)
        # before the bottleneck: with equal seeds, bottlenecks of latents as wide begin from the same networks
        decoder = self._network(Decoder, SQVAEDecoder, dim)
        self.bottleneck = make_bottleneck(config.quantizer, dim, config.codes, config.quantizer_options)
        self.decoder = decoder
        self.likelihood = make_likelihood(config.likelihood or "", self.signal.values)
        rate = self.signal.rate if self.signal.values == "signed" and config.spectral_weight > 0 else None
        self.spectral = None if rate is None else SpectralLoss(rate)
        self.standardization = Standardization(self.signal.channels) if self.signal.values == "real" else None

    @property
    def signal(self) -> Signal:
        """Description of the items' tensors."""
        return self.config.signal

    @property
    def modality(self) -> Modality:
        """Modality of the items."""
        assert self.config.modality is not None
        return self.config.modality

    @property
    def downsampling(self) -> int:
        """Samples of a token along each axis."""
        return self.config.stride

    @property
    def dtype(self) -> torch.dtype:
        """Type of the networks' weights."""
        return next(self.encoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.encoder.parameters()).device

    @property
    def codebook_size(self) -> int | None:
        """Number of codes, the largest of several levels; None for a continuous bottleneck."""
        return self.bottleneck.codebook_size

    @property
    def has_code_maps(self) -> bool:
        """True if each place of the latents has its own codes: codes are ``(B, *grid[, levels])``."""
        return self.codebook_size is not None and self.bottleneck.quantizes_rows

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level of a token, as ``(K,)``.

        Raises:
            ValueError: If the bottleneck has no codes.
        """
        if not isinstance(self.bottleneck, AbstractQuantizer):
            raise ValueError("The model has no codes: its bottleneck is continuous. Train one with a quantizer.")
        return self.bottleneck.codebook_sizes

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Computes the number of tokens along each axis of an item of a size."""
        return self.signal.grid(size, self.downsampling)

    def prepared(self, items: Tensor) -> Tensor:
        """Checks items and converts them to the networks' input: floats in range, standardized real numbers or symbols.

        Raises:
            ValueError: If shape, type or values do not fit the model.
        """
        items = self.signal.checked(items)
        return items if self.standardization is None else self.standardization(items)

    def latents(self, items: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encodes items to latents: ``(B, C, *S)`` -> ``(B, *grid, dim)``.

        Args:
            items: Items in the form that :meth:`encode` takes.
            lengths: Samples of each sequence that count ``(B,)``; None for all.

        Raises:
            ValueError: If shape, type or values of the items do not fit the model.
        """
        return self.latents_of(self.prepared(items), lengths)

    def latents_of(self, items: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encodes items that are :meth:`prepared` to :meth:`latents`."""
        if items.is_floating_point():
            items = items.to(self.dtype)
        padded = _whole_tokens(items, self.signal.axes, self.downsampling, lengths)
        tokens = self._tokens(lengths)
        if tokens is None:
            return self.encoder(padded).movedim(1, -1)
        return self.encoder(padded, tokens * self.downsampling).movedim(1, -1)

    def _tokens(self, lengths: Tensor | None) -> Tensor | None:
        """Computes the number of tokens of sequences ``(B,)``."""
        return None if lengths is None else -(-lengths // self.downsampling)

    @torch.no_grad()
    def encode(self, items: Tensor, lengths: Tensor | None = None, *, tile: int | None = TILE) -> Tensor:
        """Encodes items to codes: floats or the stored type ``(B, C, *S)`` -> int64 ``(B, *grid[, levels])``.

        A VAE returns its means instead, floats ``(B, *grid, dim)``; a hierarchical quantizer the codes of all scales in
        one row, ``(B, T)``.

        Args:
            items: Items of any size.
            lengths: Samples of each sequence that count ``(B,)``: tokens beyond them have code -1.
            tile: Largest number of samples of an item that pass the network at once. Larger items are encoded one by
                one in overlapping tiles, in the memory of a tile, to the codes of the whole. None for whole items.

        Raises:
            ValueError: If shape, type or values of the items do not fit the model.
            WholeItemError: If an item is large and the network cannot take tiles.
        """
        if len(items) and is_large(size := self.signal.size(items), tile):
            self.signal.check_shape(items)
            tiles = planned(self.encoder, self.grid(size), size, tile, self.config.width)
            if tiles is not None:
                return encode_tiles(self, items, lengths, tiles)
        return self.bottleneck.encode(self.latents(items, lengths), lengths=self._tokens(lengths))

    @torch.no_grad()
    def decode(self, codes: Tensor, size: tuple[int, ...] | None = None, *, tile: int | None = TILE) -> Tensor:
        """Decodes codes to items: int64 ``(B, *grid[, levels])`` -> ``(B, C, *S)``; symbols ``(B, T)``.

        Args:
            codes: Output of :meth:`encode`; tokens after the end of a sequence count as 0.
            size: Lengths of the axes to crop to, for items whose size is not a multiple of the downsampling. Codes of
                several scales, ``(B, T)``, need it, since they do not determine the size of their item.
            tile: As for :meth:`encode`.

        Raises:
            ValueError: If the codes' shape, type or range does not fit the model.
            WholeItemError: If an item is large and the network cannot take tiles.
        """
        made = Assembly(len(codes), self.size_of(codes, size))
        for part in self.decode_parts(codes, size, tile=tile):
            made.put(part)
        return made.items

    @torch.no_grad()
    def decode_parts(
        self, codes: Tensor, size: tuple[int, ...] | None = None, *, tile: int | None = TILE
    ) -> Iterator[Part]:
        """Decodes codes as :meth:`decode`, but yields large items tile by tile, so that none is in memory as a whole.

        Args:
            codes: As for :meth:`decode`.
            size: As for :meth:`decode`.
            tile: As for :meth:`encode`.

        Yields:
            Parts that cover the batch; the batch as one part, with the places ``...``, if its items are not large.
        """
        grid, whole = self._grid_of(codes, size), self.size_of(codes, size)
        tiles = planned(self.decoder, grid, whole, tile, self.config.width) if len(codes) else None
        if tiles is None:
            yield Part(..., self.decode_with_values(codes, size)[0])
        else:
            yield from decode_tiles(self, codes, whole, self._tokens_of(codes), tiles)

    def size_of(self, codes: Tensor, size: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Computes the lengths of the axes of the items that :meth:`decode` makes of codes."""
        whole = tuple(length * self.downsampling for length in self._grid_of(codes, size))
        return whole if not size else tuple(min(pair) for pair in zip(whole, size, strict=True))

    @torch.no_grad()
    def decode_with_values(self, codes: Tensor, size: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Decodes codes as :meth:`decode`, and returns items and the decoder's input, values ``(B, *grid, dim)``."""
        values = self.values_of(codes, size)
        return self.mean(self.decode_values(values, size, self._tokens_of(codes))), values

    def mean(self, parameters: Tensor) -> Tensor:
        """Computes expected items in the data's units from the decoder's output."""
        made = self.likelihood.mean(parameters)
        return made if self.standardization is None else self.standardization.undo(made)

    def values_of(self, codes: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        """Returns the decoder's input for codes, ``(B, *grid, dim)``; the arguments are those of :meth:`decode`."""
        grid = self._grid_of(codes, size)
        if isinstance(self.bottleneck, Hierarchical):
            return self.bottleneck.decode(codes, grid)
        return self.bottleneck.decode(codes)

    def _grid_of(self, codes: Tensor, size: tuple[int, ...] | None) -> tuple[int, ...]:
        """Returns the number of tokens along each axis of the items of codes."""
        if not isinstance(codes, Tensor):
            raise ValueError(f"'codes' must be a tensor, got {type(codes).__name__}. Use torch.as_tensor(codes).")
        if isinstance(self.bottleneck, Hierarchical):
            if size is None:
                raise ValueError(
                    "'size' must be given for codes of several scales, which do not determine the size of their item. "
                    "Pass its lengths, as items.shape[-2:] of images."
                )
            return self.grid(size)
        inner = len(self.bottleneck.code_shape) if self.codebook_size else 1
        if codes.ndim != 1 + self.signal.axes + inner:
            raise ValueError(
                f"'codes' must have {1 + self.signal.axes + inner} axes (B, *grid[, levels]), got "
                f"{tuple(codes.shape)}. Add one with codes[None]."
            )
        return tuple(codes.shape[1 : 1 + self.signal.axes])

    def _tokens_of(self, codes: Tensor) -> Tensor | None:
        """Counts the tokens of sequences, which may have ended ``(B,)``; None for other codes."""
        if self.signal.axes != 1 or not self.has_code_maps:
            return None
        return (codes.reshape(*codes.shape[:2], -1)[..., 0] >= 0).sum(-1)

    def decode_values(
        self, values: Tensor, size: tuple[int, ...] | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        """Decodes values to parameters of the likelihood: ``(B, *grid, dim)`` -> ``(B, C, *S)``, cropped to ``size``.

        Args:
            values: Output of the bottleneck.
            size: Lengths to crop to; None for whole tokens.
            tokens: Tokens of each sequence that count ``(B,)``; None for all.
        """
        values = as_type(values, next(self.decoder.parameters()).dtype).movedim(-1, 1)
        parameters = self.decoder(values) if tokens is None else self.decoder(values, tokens)
        if size:
            parameters = parameters[(..., *(slice(length) for length in size))]
        return parameters

    @torch.no_grad()
    def reconstruct(self, items: Tensor, lengths: Tensor | None = None, *, tile: int | None = TILE) -> Tensor:
        """Encodes items to hard codes and decodes these: ``(B, C, *S)`` -> the same shape.

        Args:
            items: As for :meth:`encode`.
            lengths: As for :meth:`encode`.
            tile: As for :meth:`encode`; of large items :meth:`decode_parts` needs less memory.
        """
        return self.decode(self.encode(items, lengths, tile=tile), self.signal.size(items), tile=tile)

    def forward(self, items: Tensor, lengths: Tensor | None = None) -> Reconstruction:
        """Computes reconstruction, codes and objective of a batch.

        Args:
            items: Items in the form that :meth:`encode` takes.
            lengths: Samples of each sequence that count ``(B,)``; None for all.
        """
        items = self.prepared(items)
        mask = None if lengths is None else within(lengths, items.shape[-1])
        tokens = self._tokens(lengths)
        quantized = self.bottleneck(self.latents_of(items, lengths), lengths=tokens)
        parameters = self.decode_values(quantized.values, self.signal.size(items), tokens)
        reconstruction = self.likelihood(parameters, items, mask)
        made = self.likelihood.mean(parameters)
        error = self.likelihood.error(made.detach(), items, mask)
        error = mean_over_ranks(error) if self.training else error
        weight = self.bottleneck.loss_weight(
            self.likelihood.squared_error_weight(error), self._tokens_per_dimension(quantized.values, items, lengths)
        )
        cost = weight * quantized.loss
        if self.spectral is not None:
            distance = self.spectral(made.float(), items.float(), lengths)
            reconstruction = reconstruction + self.config.spectral_weight * distance
        terms = {
            "reconstruction": reconstruction.detach(),
            "bottleneck": cost.detach(),
            self.likelihood.error_name: error,
            **quantized.terms,
        }
        made = made if self.standardization is None else self.standardization.undo(made)
        return Reconstruction(made, quantized.codes, reconstruction + cost, terms)

    def _tokens_per_dimension(self, values: Tensor, items: Tensor, lengths: Tensor | None) -> float | Tensor:
        """Computes tokens over data dimensions, without those of padding, alike on all ranks in training."""
        if lengths is None:
            return values[..., 0].numel() / items.numel()
        channels = 1 if self.signal.values == "symbols" else items.shape[1]
        numbers = torch.stack([-(-lengths // self.downsampling), lengths * channels]).sum(1).float()
        tokens, dimensions = mean_over_ranks(numbers) if self.training else numbers
        return tokens / dimensions.clamp_min(1)

    @torch.no_grad()
    def standardize(self, batches: Iterable[Tensor]) -> None:
        """Sets mean and deviation of each channel from training items of real numbers; does nothing for other items.

        Args:
            batches: Items ``(B, C, *S)``.
        """
        if self.standardization is not None:
            self.standardization.fit(batches)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Sets the likelihood's scale to the error of draws from the posterior on training items.

        All ranks must call it, each with its own items, and get one scale, that of the items of all.

        Args:
            batches: Items ``(B, C, *S)`` with their lengths.
        """
        total, count = 0.0, 0
        if self.likelihood.range is None and self.standardization is None:
            return  # symbols have no scale
        with evaluating(self):
            for batch in batches:
                items = self.prepared(batch.items)
                # ranks draw different noise
                generator = torch.Generator(items.device).manual_seed(count * world_size() + rank())
                latents = self.latents_of(items, batch.lengths)
                values = self.bottleneck.sample_posterior(latents, generator).values
                tokens = self._tokens(batch.lengths)
                parameters = self.decode_values(values, self.signal.size(items), tokens)
                squares = (parameters - items).square()
                if batch.lengths is not None:
                    squares = squares * within(batch.lengths, items.shape[-1])[:, None]
                total += float(squares.sum(dtype=torch.float32))
                count += items.numel() if batch.lengths is None else int(batch.lengths.sum()) * items.shape[1]
        squares, number = sum_over_ranks(torch.tensor([total, count], dtype=torch.float64)).tolist()
        if number:
            self.likelihood.calibrate(squares / number)

    def _network(self, own: type[Any], published: type[Any], dim: int) -> Network:
        config = self.config
        halvings = config.stride.bit_length() - 1
        widths = (config.width,) * max(1, halvings)
        if config.network == "sq-vae":
            widths = (max(1, config.width // 2), *widths[1:]) if halvings > 1 else widths
            return published(self.signal.channels, dim, widths, config.blocks)
        return own(self.signal, dim, widths, config.blocks, config.normalization, halves=halvings > 0)


def _whole_tokens(items: Tensor, axes: int, stride: int, lengths: Tensor | None) -> Tensor:
    """Pads items to multiples of the stride by repeating the border, of a sequence its last sample.

    Reflection would need items larger than the padding.
    """
    missing = [-length % stride for length in items.shape[items.ndim - axes :]]
    if lengths is not None:
        length = items.shape[-1] + missing[-1]
        places = torch.arange(length, device=items.device).clamp_max(items.shape[-1] - 1)
        places = torch.minimum(places, (lengths[:, None] - 1).clamp_min(0))
        return items.gather(-1, (places if items.ndim == 2 else places[:, None]).expand(*items.shape[:-1], length))
    if not any(missing):
        return items
    if not items.is_floating_point():
        return torch.cat([items, items[..., -1:].expand(*items.shape[:-1], missing[-1])], -1)
    return F.pad(items, [extra for length in reversed(missing) for extra in (0, length)], mode="replicate")

"""Encoder and decoder for items with 0 to 3 axes: levels halve or double all axes, residual blocks follow at the end.

Items with axes pass through convolutions along them, vectors through linear layers; symbols are embedded first.
"""

from __future__ import annotations

from torch import Tensor, nn

from gmvq.networks.layers import ResidualBlock, convolution, doubling, normalization_layer, through
from gmvq.networks.reach import Reach, decoder_reach, encoder_reach
from gmvq.types import Signal


class Encoder(nn.Module):
    """Maps items to latents.

    Args:
        signal: Description of the items' tensors.
        dim: Features of a latent.
        widths: Channels after each halving; the downsampling factor f is 2 to the number of widths.
        blocks: Residual blocks at the smallest size.
        normalization: ``"layer"``, ``"group"``, ``"batch"`` or ``"none"``.
        halves: False for f = 1; then there is one width.

    Shape:
        ``(B, channels, *S)``, of symbols ``(B, T)`` -> ``(B, dim, *S / f)``, S multiples of f.
    """

    def __init__(
        self,
        signal: Signal,
        dim: int,
        widths: tuple[int, ...],
        blocks: int,
        normalization: str,
        *,
        halves: bool = True,
    ) -> None:
        super().__init__()
        axes, previous = signal.axes, signal.channels
        self.axes = axes
        self.embedding = None
        if signal.values == "symbols":
            self.embedding = nn.Embedding(signal.channels, widths[0])
            previous = widths[0]
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            layers += [nn.SiLU()] if level else []
            layers.append(convolution(axes, previous, width, 4, 2) if halves else convolution(axes, previous, width, 3))
            previous = width
        layers += [ResidualBlock(previous, normalization, axes) for _ in range(blocks)]
        layers += [normalization_layer(normalization, previous, axes), nn.SiLU(), convolution(axes, previous, dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, items: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps items to latents; of padded sequences the first ``lengths`` samples count, ``(B,)``."""
        if self.embedding is not None:
            items = self.embedding(items).movedim(-1, 1)
        return self.layers(items) if lengths is None else through(self.layers, items, lengths)[0]

    def reach(self) -> Reach:
        """Computes the receptive field.

        Raises:
            WholeItemError: If a normalization takes its statistics over all places.
        """
        return encoder_reach(self.layers, self.axes)


class Decoder(nn.Module):
    """Maps latents to parameters of the items' likelihood: the mirrored encoder.

    Args:
        signal: Description of the items' tensors.
        dim: Features of a latent.
        widths: Channels after each halving of the encoder, in the encoder's order.
        blocks: Residual blocks at the smallest size.
        normalization: ``"layer"``, ``"group"``, ``"batch"`` or ``"none"``.
        halves: As for the encoder.

    Shape:
        ``(B, dim, *S)`` -> ``(B, channels, *S f)``.
    """

    def __init__(
        self,
        signal: Signal,
        dim: int,
        widths: tuple[int, ...],
        blocks: int,
        normalization: str,
        *,
        halves: bool = True,
    ) -> None:
        super().__init__()
        axes, first = signal.axes, widths[-1]
        self.axes = axes
        layers: list[nn.Module] = [convolution(axes, dim, first, 3)]
        layers += [ResidualBlock(first, normalization, axes) for _ in range(blocks)]
        layers.append(normalization_layer(normalization, first, axes))
        for narrow, wide in zip(widths[::-1], (*widths[-2::-1], signal.channels), strict=True):
            layers += [nn.SiLU(), doubling(axes, narrow, wide) if halves else convolution(axes, narrow, wide, 3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps latents to parameters; of padded sequences the first ``lengths`` places count, ``(B,)``."""
        return self.layers(values) if lengths is None else through(self.layers, values, lengths)[0]

    def reach(self) -> Reach:
        """Computes the receptive field.

        Raises:
            WholeItemError: If a normalization takes its statistics over all places.
        """
        return decoder_reach(self.layers, self.axes)

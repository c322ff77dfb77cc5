"""A small classifier of items, whose features describe their content."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gmvq.checks import at_least
from gmvq.networks.convolutional import Encoder
from gmvq.networks.standardization import Standardization
from gmvq.types import Signal


@dataclass(frozen=True)
class ClassifierConfig:
    """Size of a classifier.

    Args:
        signal: Description of the items' tensors.
        classes: Number of classes.
        width: Channels of the convolutions.
        features: Number of features F of an item.
        halvings: Number of halvings of the axes before features are averaged over places.
        blocks: Number of residual blocks.

    Raises:
        ValueError: If a number is not at least 1.
    """

    signal: Signal
    classes: int
    width: int = 64
    features: int = 128
    halvings: int = 2
    blocks: int = 2

    def __post_init__(self) -> None:
        for name in ("classes", "width", "features", "halvings", "blocks"):
            at_least(name, getattr(self, name), 1, "Use 2.")


class Classifier(nn.Module):
    """Maps items to logits of their classes, through features averaged over places.

    Args:
        config: Size of the network.

    Shape:
        :meth:`prepared` items ``(B, channels, *S)``, S multiples of 2 to the number of halvings -> logits
        ``(B, classes)``.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        signal = config.signal
        widths = (config.width,) * (config.halvings if signal.axes else 1)
        self.encoder = Encoder(signal, config.features, widths, config.blocks, "batch", halves=signal.axes > 0)
        self.head = nn.Linear(config.features, config.classes)

        self.standardization = Standardization(signal.channels) if signal.values == "real" else None

    def prepared(self, items: Tensor) -> Tensor:
        """Checks items and converts them to the network's input, see :meth:`gmvq.types.Signal.checked`.

        Raises:
            ValueError: If shape, type or values do not fit.
        """
        items = self.config.signal.checked(items)
        return items if self.standardization is None else self.standardization(items)

    def features(self, prepared: Tensor) -> Tensor:
        """Computes features of prepared items ``(B, F)``: the encoder's output, averaged over places."""
        found = self.encoder(prepared)
        axes = tuple(range(2, found.ndim))
        return found.mean(axes) if axes else found

    def forward(self, prepared: Tensor) -> Tensor:
        """Computes the logits of the classes of prepared items."""
        return self.head(self.features(prepared).relu())

"""Settings of an autoencoder, for recipes, files and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

from gmvq.checks import at_least, non_negative, one_of
from gmvq.losses import default_likelihood, make_likelihood
from gmvq.modalities import Image, Modality, described, from_description
from gmvq.networks.layers import Normalization
from gmvq.quantizers.catalogue import preset_of
from gmvq.types import Signal

NetworkName = Literal["convolutional", "sq-vae"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings of an autoencoder.

    Args:
        quantizer: A name in ``gmvq.quantizers.QUANTIZERS``, which has a title for each: ``gaussian-mixture`` is
            GM-VQ, ``vector-ema`` a VQ-VAE with moving averages, ``none`` a VAE.
        modality: Modality of the items with all its settings; None until the data are known.
        codebook_size: Number of codes; ``auto`` for the one under which held-out items and their codes take the fewest
            bits together, which shorter trials find before training.
        code_dim: Features of a latent; FSQ, LFQ and BSQ derive it from their codebook instead.
        width: Channels of the networks.
        downsampling: Samples of a token along each axis, a power of two; 1 for items without axes. None for the default
            of the modality.
        blocks: Residual blocks of encoder and of decoder.
        normalization: ``layer`` (over the channels of each place), ``group``, ``batch`` or ``none``.
        likelihood: ``gaussian`` (variance at its maximum-likelihood value), ``mean-squared-error``, ``laplace``,
            ``bernoulli`` or ``categorical``; None for the first that fits the values.
        spectral_weight: Weight of the distance of log-mel spectra beside the likelihood, for sounds alone, see
            :class:`gmvq.losses.SpectralLoss`; 0 leaves it out.
        network: ``convolutional``, or ``sq-vae``: that of the SQ-VAE paper, on which the literature compares
            quantizers of images, with half the width after the first halving, always batch normalization, and a
            sigmoid at the end.
        quantizer_options: Arguments of the quantizer beside or instead of those of its name, in JSON; an object is
            written ``{"kind": NAME, ...}``, see :func:`gmvq.quantizers.catalogue.from_json`.

    Raises:
        ValueError: If a field is out of range or fields contradict each other.
    """

    quantizer: str = "gaussian-mixture"
    modality: Modality | None = Image(channels=3)
    codebook_size: int | Literal["auto"] = 512
    code_dim: int = 4
    width: int = 64
    downsampling: int | None = None
    blocks: int = 2
    normalization: Normalization = "layer"
    likelihood: str | None = None
    spectral_weight: float = 1.0
    network: NetworkName = "convolutional"
    quantizer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        preset_of(self.quantizer)
        if isinstance(self.codebook_size, str):
            one_of("codebook_size", self.codebook_size, ("auto",))
        else:
            at_least("codebook_size", self.codebook_size, 1, "See AutoencoderConfig.")
        for name in ("code_dim", "width", "blocks"):
            at_least(name, getattr(self, name), 1, "See AutoencoderConfig.")
        non_negative("spectral_weight", self.spectral_weight, "The default is 1.")
        one_of("network", self.network, get_args(NetworkName))
        if self.downsampling is None:
            object.__setattr__(self, "downsampling", 4 if self.modality is None else self.modality.downsampling)
        stride = at_least("downsampling", self.downsampling, 1, "Use 4 or 8.")
        if stride & (stride - 1):
            raise ValueError(f"'downsampling' must be a power of two, got {stride}. Use 4 or 8.")
        if self.modality is not None:
            self._check_signal(self.modality, stride)

    def _check_signal(self, modality: Modality, stride: int) -> None:
        signal = modality.signal
        if stride > 1 and signal.axes == 0:
            raise ValueError(f"'downsampling' of {modality.items} must be 1, got {stride}: they have no axes.")
        if self.network == "sq-vae" and (signal.axes != 2 or signal.values == "symbols" or stride == 1):
            raise ValueError("'network' must be 'convolutional' for all but images in tokens of several pixels.")
        if self.likelihood is None:
            object.__setattr__(self, "likelihood", default_likelihood(signal.values))
        make_likelihood(self.likelihood or "", signal.values)

    @property
    def signal(self) -> Signal:
        """Description of the items' tensors.

        Raises:
            ValueError: If the modality is not known yet.
        """
        if self.modality is None:
            raise ValueError("'modality' must be known for a model, got None. Give for example Image(channels=3).")
        return self.modality.signal

    @property
    def codes(self) -> int:
        """Number of codes.

        Raises:
            ValueError: If it is not known yet.
        """
        if isinstance(self.codebook_size, str):
            raise ValueError("'codebook_size' must be a number for a model, got 'auto'. 'gmvq train' finds one.")
        return self.codebook_size

    @property
    def stride(self) -> int:
        """Samples of a token along each axis."""
        assert self.downsampling is not None
        return self.downsampling

    def described(self) -> dict[str, Any]:
        """Returns the configuration in types of JSON."""
        return {**asdict(self), "modality": None if self.modality is None else described(self.modality)}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Makes the configuration that :meth:`described` returned as JSON.

        Raises:
            ValueError: If a field is out of range.
            TypeError: If a field is unknown.
        """
        modality = description["modality"]
        return cls(**{**description, "modality": None if modality is None else from_description(modality)})

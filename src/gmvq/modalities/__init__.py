"""Kinds of data: images, audio, time series, vectors and text."""

from gmvq.modalities.audio import Audio
from gmvq.modalities.base import (
    MODALITIES,
    Data,
    Exhibit,
    Modality,
    Passage,
    Picture,
    Sound,
    described,
    fingerprint,
    from_description,
    register,
)
from gmvq.modalities.image import Image
from gmvq.modalities.series import Series
from gmvq.modalities.text import Text
from gmvq.modalities.vectors import Vectors

__all__ = [
    "MODALITIES",
    "Audio",
    "Data",
    "Exhibit",
    "Image",
    "Modality",
    "Passage",
    "Picture",
    "Series",
    "Sound",
    "Text",
    "Vectors",
    "described",
    "fingerprint",
    "from_description",
    "register",
]

"""Text: reading files, encoding as symbols, display and writing."""

from gmvq.modalities.text.modality import Text
from gmvq.modalities.text.symbols import Characters, Subwords

__all__ = ["Characters", "Subwords", "Text"]

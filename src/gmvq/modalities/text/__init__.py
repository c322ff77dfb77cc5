"""Text: where it comes from, how it becomes symbols, how it is shown and written."""

from gmvq.modalities.text.modality import Text
from gmvq.modalities.text.symbols import Characters, Subwords

__all__ = ["Characters", "Subwords", "Text"]

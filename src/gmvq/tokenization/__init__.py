"""Tokenization: items to one file of codes, and the file back to items.

::

    Items --tokenize--> tokens.safetensors --detokenize--> files
                               |
                           TokenFile[i] -> codes (*grid[, levels])
"""

from gmvq.tokenization.corpora import detokenize, info_of, join, tokenize
from gmvq.tokenization.naming import file_names, file_of_all, inside, targets
from gmvq.tokenization.tokens import TokenFile, TokenInfo, write_tokens

__all__ = [
    "TokenFile",
    "TokenInfo",
    "detokenize",
    "file_names",
    "file_of_all",
    "info_of",
    "inside",
    "join",
    "targets",
    "tokenize",
    "write_tokens",
]

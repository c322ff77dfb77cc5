"""Images become one file of codes, and the file becomes images again.

::

    Images --tokenize--> tokens.safetensors --detokenize--> PNG files
                                |
                            TokenFile[i] -> codes (h, w)
"""

from gmvq.tokenization.corpora import detokenize, join, tokenize
from gmvq.tokenization.pictures import inside, png_names, write_png
from gmvq.tokenization.tokens import TokenFile, TokenInfo, write_tokens

__all__ = [
    "TokenFile",
    "TokenInfo",
    "detokenize",
    "inside",
    "join",
    "png_names",
    "tokenize",
    "write_png",
    "write_tokens",
]

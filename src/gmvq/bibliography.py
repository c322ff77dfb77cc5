"""Sources are computed: the BibTeX of what a model is made of.

::

    module --modules, their attributes--> parts --citations--> keys --bibliography.bib--> BibTeX

A part says its sources as a class attribute, ``citations = ("vqvae_oord2017",)``: the keys of its entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import resources
from typing import Any

from torch import nn


@cache
def entries() -> dict[str, str]:
    """BibTeX of each entry of the bibliography by its key, in the order of the file."""
    text = resources.files("gmvq").joinpath("bibliography.bib").read_text(encoding="utf-8")
    parts = [part.strip() for part in re.split(r"^(?=@)", text, flags=re.MULTILINE) if part.startswith("@")]
    return {part.partition("{")[2].partition(",")[0].strip(): part for part in parts}


def citation(part: object) -> str:
    """BibTeX of everything that a part contains, each source once, in order of first appearance.

    Args:
        part: A module of any depth, as a quantizer or a whole autoencoder; or an estimator, an objective or another
            part; or the class of one.

    Returns:
        Entries with an empty line between them; nothing for a part that has no source.

    Raises:
        TypeError: If neither the object nor anything inside has a ``citations`` attribute.
        KeyError: If a part cites what is not in the bibliography.

    Example:
        >>> from gmvq import Rotation, VectorQuantizer
        >>> text = citation(VectorQuantizer(8, 32, estimator=Rotation()))
        >>> [line for line in text.splitlines() if line.startswith("@")]
        ['@inproceedings{vqvae_oord2017,', '@inproceedings{rotation_fifty2024,']
    """
    found = [source.citations for source in _parts(part, set()) if hasattr(source, "citations")]
    if not found:
        name = part.__name__ if isinstance(part, type) else type(part).__name__
        raise TypeError(f"'part' must be a part of gmvq or contain one, got {name}. Pass a quantizer or a model.")
    keys = dict.fromkeys(key for citations in found for key in citations)
    missing = [key for key in keys if key not in entries()]
    if missing:
        raise KeyError(f"There is no {missing[0]!r} in gmvq's bibliography.bib. Correct 'citations' or add the entry.")
    return "\n\n".join(entries()[key] for key in keys)


def _parts(part: Any, seen: set[int]) -> Iterator[Any]:  # noqa: ANN401 (whatever a module holds)
    """The part itself and what it holds: submodules, fields of dataclasses, elements of collections; each once."""
    if id(part) in seen:
        return
    seen.add(id(part))
    yield part
    held: Iterable[Any] = ()
    if isinstance(part, nn.Module):
        # submodules, parameters and buffers are in dictionaries of their own, with names that begin with _
        attributes = [value for name, value in vars(part).items() if not name.startswith("_")]
        held = [*attributes, *part.children()]
    elif is_dataclass(part) and not isinstance(part, type):
        held = [getattr(part, field.name) for field in fields(part)]
    elif isinstance(part, Mapping):
        held = part.values()
    elif isinstance(part, list | tuple | set | frozenset):
        held = part
    for value in held:
        yield from _parts(value, seen)

"""Recognition of the kind of data at a path: by file names, and if these fit several kinds, by reading one file.

::

    files, those of archives --recognizes--> kinds --suits--> a kind for each ending --most files--> Modality
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from gmvq.data import archives
from gmvq.data.finding import is_visible
from gmvq.data.labels import LABELS_TABLE, METADATA_TABLE
from gmvq.modalities.base import MODALITIES, Modality
from gmvq.modalities.tables import suffix_of

LOOKED_AT = 5000
"""Largest number of file names of a folder that are looked at."""
PACKED = 100
"""Largest number of file names of an archive that are looked at."""
TRIED = 5
"""Largest number of files per suffix that are opened until one can be read."""


def recognized(source: Path) -> Modality:
    """Returns the modality of a file, or of most files in a folder.

    File names decide if they can. Tables may be series, texts or vectors: of each suffix one file is opened.

    Args:
        source: An existing file or folder.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If no file there looks like data of any kind.
    """
    if not source.exists():
        raise FileNotFoundError(f"There is nothing at '{source}' (looked from '{Path.cwd()}'). Check the path.")
    kinds = {kind: modality() for kind, modality in MODALITIES.items()}
    votes: Counter[str] = Counter()
    decided: dict[tuple[str, ...], list[str | None]] = {}
    for path in itertools.islice(_files(source), LOOKED_AT):
        if archives.is_archive(path):
            names = archives.first_names(path, PACKED)
            votes.update(kind for name in names for kind, one in kinds.items() if one.recognizes(Path(name)))
            continue
        found = [kind for kind, modality in kinds.items() if modality.recognizes(path)]
        if len(found) > 1:
            looks = decided.setdefault((suffix_of(path), *found), [])
            if not any(looks) and len(looks) < TRIED:
                looks.append(_looked_into(path, {kind: kinds[kind] for kind in found}))
            found = [kind for kind in looks if kind is not None][:1]
        votes.update(found)
    if not votes:
        wanted = "; or ".join(modality.wanted for modality in kinds.values())
        raise ValueError(f"No file at '{source}' looks like data of any kind. Give {wanted}.")
    return kinds[votes.most_common(1)[0][0]]


def _files(source: Path) -> Iterator[Path]:
    """Yields the files that may hold data: hidden files and tables of labels are left out."""
    if not source.is_dir():
        yield source
        return
    for path in sorted(source.iterdir()):
        if not is_visible(path.name) or path.name.lower() in (LABELS_TABLE, METADATA_TABLE):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif path.is_file():
            yield path


def _looked_into(path: Path, kinds: Mapping[str, Modality]) -> str | None:
    """Returns the first kind that a file suits; None if it cannot be read."""
    try:
        return next((kind for kind, modality in kinds.items() if modality.suits(path)), None)
    except (ValueError, OSError, ImportError):
        return None

"""Data that come with gmvq's dependencies, which have no place of their own."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package_folder(package: str, distribution: str) -> Path:
    """The folder of an installed package.

    Args:
        package: Name that it is imported by.
        distribution: Name that it is installed by.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    # importlib.resources would import the package, for scikit-learn a second's work, only to learn its place.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"The bundled data need {distribution}. Install it with: pip install {distribution}")
    return Path(spec.submodule_search_locations[0])

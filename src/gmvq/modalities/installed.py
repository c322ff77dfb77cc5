"""Data that come with gmvq's dependencies."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package_folder(package: str, distribution: str) -> Path:
    """Returns the folder of an installed package.

    Args:
        package: Import name.
        distribution: Name on PyPI.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    # importlib.resources would import the package, which takes a second for scikit-learn, only to find its folder.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"The bundled data need {distribution}. Install it with: pip install {distribution}")
    return Path(spec.submodule_search_locations[0])

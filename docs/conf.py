"""Sphinx settings: ``make docs``.

The pages of ``api/`` are made of docstrings; the rest is Markdown. Nothing is fetched while they are built, or
while they are read.
"""

import contextlib
import importlib.util
import io
import os
import re
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective

from gmvq.__main__ import main


def mathjax() -> Path:
    """Finds MathJax in one file, which draws equations as SVG and so needs no fonts beside it.

    Raises:
        ModuleNotFoundError: If the package that brings it is not installed.
    """
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("The equations need sphinx-mathjax-offline: pip install 'gmvq[docs]', or make setup.")
    return Path(spec.origin).parent / "static" / "mathjax" / "tex-svg.js"


project = "gmvq"
author = "The gmvq authors"
release = metadata.version("gmvq")
html_title = f"gmvq {release}"
html_theme = "furo"
html_static_path = ["_static", str(mathjax())]
mathjax_path = mathjax().name
html_css_files = ["wide.css"]
html_show_copyright = False
highlight_language = "none"  # a block without a language is a drawing; examples are known by their >>>
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Shape"]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88


class CommandHelp(SphinxDirective):
    """``.. command-help:: evaluate`` shows what ``gmvq evaluate --help`` says; without a verb, ``gmvq --help``."""

    optional_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Runs the command."""
        shown, columns = io.StringIO(), os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = "96"
        try:
            with contextlib.redirect_stdout(shown):
                status = main([*self.arguments, "--help"])
        finally:
            if columns is None:
                del os.environ["COLUMNS"]
            else:
                os.environ["COLUMNS"] = columns
        if status:
            raise self.error(f"gmvq {' '.join(self.arguments)} --help failed with status {status}.")
        return [nodes.literal_block(text=shown.getvalue().rstrip(), language="none")]


def prepare(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keeps docstrings from being taken for what they are not.

    An argument that is described as "s." would begin an enumeration, and what stands before a colon in the docstring of
    an attribute would be its type.
    """
    lines[:] = [re.sub(r"^( *\w+: )(?=[A-Za-z]\.)", r"\1\\", line) for line in lines]
    if what in ("attribute", "data", "property"):
        # napoleon leaves the lines after the first, here an empty comment, as they are
        lines[:] = ["..", "", *GoogleDocstring(lines, app.config, app, "method", name, obj, options).lines()]


def setup(app: Sphinx) -> None:
    """Registers what is above."""
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", prepare, priority=400)  # before napoleon, which has 500

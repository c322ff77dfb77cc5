"""The page that shows the way over runs."""

import json
import re
from pathlib import Path

import pytest
from torch import nn

from gmvq.compat import vector_quantize_pytorch as ours

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-vector-quantize-pytorch.md"
COMPAT = Path(ours.__file__).parent


def test_the_page_runs():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(block, names)
    assert names["indices"].shape == (2, 8, 8)
    assert names["codes"].shape == (2, 100, 4)
    assert names["quantizer"].code_shape == (4,)


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def example_rows():
    """Rows of the table of examples, as the JSON has them."""
    for script, row in json.loads((RESULTS / "drop_in_examples.json").read_text())["rows"].items():
        (error,), (loss, *_) = (
            [f"{row['theirs'][name]:.4f} / {row['ours'][name]:.4f}" for name in row["theirs"] if chosen(name)] or [""]
            for chosen in (lambda name: name == "rec loss", lambda name: "loss" in name and name != "rec loss")
        )
        active = f"{row['theirs']['active %']:.1f} / {row['ours']['active %']:.1f}"
        yield f"| `{script}` | {error} | {loss} | {active} | {row['largest_difference']['rec loss']:.3f} |"


def test_the_page_says_what_was_measured():
    page = PAGE.read_text()
    for row in example_rows():
        assert row in page
    rows = json.loads((RESULTS / "drop_in_tests.json").read_text())["rows"]
    assert (
        f"**{rows['theirs']['passed']} of the package's {sum(rows['theirs'][name] for name in ('passed', 'failed'))}"
        in page
    )
    assert f"<!-- tests -->{rows['ours']['passed']}<!-- /tests -->" in page


VECTOR = {"dim": 8, "codebook_size": 16}
RESIDUAL = {**VECTOR, "num_quantizers": 3}
MAPS = {"encoder": nn.Identity(), "decoder": nn.Identity()}

OPTIONS = {
    "VectorQuantize": VECTOR,
    "ResidualVQ": RESIDUAL,
    "GroupedResidualVQ": RESIDUAL,
    "RandomProjectionQuantizer": {**VECTOR, "codebook_dim": 4},
    "FSQ": {"levels": [5, 5]},
    "FSP": {"levels": [5, 5]},
    "LFQ": {"codebook_size": 16},
    "EvoLFQ": {**MAPS, "dim": 8},
    "ResidualLFQ": RESIDUAL,
    "GroupedResidualLFQ": RESIDUAL,
    "ResidualFSQ": {"levels": [5, 5], "num_quantizers": 3},
    "GroupedResidualFSQ": {"dim": 8, "levels": [5, 5], "num_quantizers": 3},
    "LatentQuantize": {"levels": [5, 5], "dim": 8},
    "SimVQ": VECTOR,
    "ResidualSimVQ": RESIDUAL,
    "BinaryMapper": {"bits": 4},
    "HierarchicalVQ": {**VECTOR, "scales": (1, 2)},
}
"""What makes a module of each class but ``Sequential``, which takes modules."""


def test_all_public_names_are_here():
    theirs = pytest.importorskip("vector_quantize_pytorch")
    public = {name for name, value in vars(theirs).items() if isinstance(value, type)}
    assert public == {*OPTIONS, "Sequential"}
    assert public <= {*ours.__all__}
    assert {name for name in public if f"`{name}`" not in PAGE.read_text()} == set()


def test_the_page_names_what_is_refused():
    """Each argument that a rule of ours, or a contradiction, speaks of is in a table of arguments."""
    source = "".join(path.read_text() for path in COMPAT.glob("*_options.py"))
    source += "".join((COMPAT / f"{name}.py").read_text() for name in ("scalar", "binary"))
    rules = {*re.findall(r"Rule\(\s*\"(\w+)\"", source)}
    assert len(rules) > 20
    tables = PAGE.read_text().partition("### Arguments")[2].partition("No counterpart")[0]
    assert {name for name in rules if f"`{name}" not in tables} == set()


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_page_names_what_is_missing(kind):
    theirs = pytest.importorskip("vector_quantize_pytorch")
    options = OPTIONS[kind]
    module, dropin = getattr(theirs, kind)(**options), getattr(ours, kind)(**options)
    public = {name for name in [*dir(module)] if not name.startswith("_")} - {*dir(nn.Module())}
    settings = getattr(dropin, "options", None)
    missing = {name for name in public if not hasattr(dropin, name) and not hasattr(settings, name)}
    listed = PAGE.read_text().partition("No counterpart")[2].partition("## ")[0]
    assert {name for name in missing if f"`{name}`" not in listed} == set()

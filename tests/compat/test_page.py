"""The page that shows the way over runs."""

import re
from pathlib import Path

import pytest
from torch import nn

from gmvq.compat import vector_quantize_pytorch as ours

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-vector-quantize-pytorch.md"


def test_the_page_runs():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(block, names)
    assert names["indices"].shape == (2, 8, 8)
    assert names["codes"].shape == (2, 100, 4)
    assert names["quantizer"].code_shape == (4,)


@pytest.mark.parametrize("kind", ours.__all__[:-1])
def test_the_page_names_what_is_missing(kind):
    theirs = pytest.importorskip("vector_quantize_pytorch")
    vector = {"dim": 8, "codebook_size": 16}
    options = {
        "VectorQuantize": vector,
        "SimVQ": vector,
        "FSQ": {"levels": [5, 5]},
        "ResidualFSQ": {"levels": [5, 5], "num_quantizers": 3},
        "LFQ": {"codebook_size": 16},
    }.get(kind, {**vector, "num_quantizers": 3})
    module, dropin = getattr(theirs, kind)(**options), getattr(ours, kind)(**options)
    public = {name for name in [*dir(module)] if not name.startswith("_")} - {*dir(nn.Module())}
    missing = {name for name in public if not hasattr(dropin, name) and not hasattr(dropin.options, name)}
    listed = PAGE.read_text().partition("No counterpart")[2].partition("## ")[0]
    assert {name for name in missing if f"`{name}`" not in listed} == set()

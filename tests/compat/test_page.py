"""The page that shows the way over runs."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-vector-quantize-pytorch.md"


def test_the_page_runs():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(block, names)
    assert names["indices"].shape == (2, 8, 8)
    assert names["codes"].shape == (2, 100, 4)
    assert names["quantizer"].code_shape == (4,)

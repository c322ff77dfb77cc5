"""The pages say what the JSON says."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_no_figure_is_typed_by_hand():
    command = [sys.executable, str(ROOT / "benchmarks/tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tables_have_as_many_cells_in_each_row():
    for page in ("docs/gm-vq.md", "docs/results.md", "docs/which-quantizer.md", "README.md"):
        lines = (ROOT / page).read_text().splitlines()
        assert any(line.startswith("|") for line in lines)
        for line, after in pairwise(lines):
            if line.startswith("|") and after.startswith("|"):
                assert line.count("|") == after.count("|"), f"{page}: {after}"

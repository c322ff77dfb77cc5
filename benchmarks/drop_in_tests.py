"""Counts how many tests of vector-quantize-pytorch pass on the package itself, and on gmvq's classes in its place.

Each library gets a fresh process. For ours every import of ``vector_quantize_pytorch`` and of its submodules is that of
``gmvq.compat.vector_quantize_pytorch``. The tests are read from a checkout of the package's repository, which is not
changed; none of them is in this repository.

    git clone https://github.com/lucidrains/vector-quantize-pytorch CHECKOUT
    python benchmarks/drop_in_tests.py CHECKOUT --out benchmarks/results/drop_in_tests.json
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gmvq.data.writing import write_json
from gmvq.training.provenance import commit, versions

PEER = "vector_quantize_pytorch"


def take_the_place_of_the_peer(checkout: Path) -> None:
    """Makes our classes what an import of the peer, or of one of its submodules, finds."""
    ours = importlib.import_module(f"gmvq.compat.{PEER}")
    sys.modules[PEER] = ours
    for path in (checkout / PEER).glob("*.py"):
        sys.modules[f"{PEER}.{path.stem}"] = ours


class Outcomes:
    """Collects the outcome of each test and the reason of each failure."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes note of a test."""
        if report.failed:
            self.failed[report.nodeid] = _reason(report)
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Takes note of a file that cannot be imported."""
        if report.failed:
            self.failed[report.nodeid] = _reason(report)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    lines = [line.removeprefix("E").strip() for line in text.splitlines() if line.strip()]
    return lines[0] if crash is not None else lines[-1]


def run_here(checkout: Path, library: str, out: Path) -> None:
    """Runs the tests in this process and writes their outcomes."""
    if library == "ours":
        take_the_place_of_the_peer(checkout)
    outcomes = Outcomes()
    # without the checkout's own configuration, and without a trace in it
    options = ["-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", "-c", os.devnull]
    pytest.main([*options, str(checkout / "tests")], plugins=[outcomes])
    out.write_text(json.dumps({"passed": outcomes.passed, "failed": outcomes.failed}))


def run_apart(checkout: Path, library: str) -> dict[str, Any]:
    """Runs the tests in a fresh process: outcomes by the tests' names."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcomes.json"
        command = [sys.executable, __file__, str(checkout), "--library", library, "--out", str(out)]
        subprocess.run(command, check=True, cwd=folder, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        return json.loads(out.read_text())


def main() -> None:
    """Runs the tests on both, prints and writes the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of the peer's repository")
    parser.add_argument("--library", choices=["theirs", "ours"], help="run on one alone, in this process")
    parser.add_argument("--out", type=Path, default=Path("runs/drop_in_tests.json"))
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    if not (checkout / "tests").is_dir():
        parser.error(f"'checkout' must be a folder with the folder 'tests', got {checkout}. Clone the repository.")
    if arguments.library is not None:
        run_here(checkout, arguments.library, arguments.out.resolve())
        return
    rows = {}
    for library in ("theirs", "ours"):
        outcomes = run_apart(checkout, library)
        # names from the file on: a checkout may lie anywhere
        failed = {name.rpartition("tests/")[2]: reason for name, reason in outcomes["failed"].items()}
        rows[library] = {"passed": len(outcomes["passed"]), "failed": len(failed), "failures": failed}
        print(library, rows[library])
    where = {
        "peer": importlib.metadata.version(PEER.replace("_", "-")),
        "tests_of": _revision(checkout),
        "versions": versions(),
        "commit": commit(),
    }
    write_json(arguments.out, {"protocol": (__doc__ or "").strip(), **where, "rows": rows})


def _revision(checkout: Path) -> str | None:
    found = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or None


if __name__ == "__main__":
    main()

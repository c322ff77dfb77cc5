"""Writes the tables of README.md and docs/results.md from benchmarks/results, so that none is typed by hand.

    python benchmarks/tables.py [--check]

With --check nothing is written; the exit status says whether the pages hold what the JSON says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gmvq.comparison import footnote, markdown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
BEGIN, END = "<!-- results: written by benchmarks/tables.py -->", "<!-- /results -->"
NAMES = {
    "gaussian-mixture": "**GM-VQ**",
    "vector": "VQ-VAE as published",
    "vector-kmeans": "VQ-VAE, k-means start",
    "vector-ema": "VQ-VAE, moving averages, revival",
    "vector-affine": "VQ-VAE, affine codes, steps in place, length 1, revival",
    "finite-scalar": "FSQ",
    "lookup-free": "LFQ",
    "binary-spherical": "BSQ",
    "simvq": "SimVQ",
    "index-backpropagation": "IBQ",
    "stochastic": "SQ-VAE",
    "optimal-transport": "OptVQ",
    "gaussian-codes": "Gaussian Quant",
}


def short_table(result: dict[str, Any], link: str = "[Protocol and all figures](docs/results.md).") -> str:
    """PSNR and usage of each quantizer on each recipe, with a link to more."""
    recipes = list(result["recipes"])
    lines = [
        f"| PSNR in dB / share of the codebook in use | {' | '.join(recipes)} |",
        f"| --- | {' | '.join(['---'] * len(recipes))} |",
    ]
    for quantizer in result["protocol"]["quantizers"]:
        cells = []
        for recipe in recipes:
            entry = next(e for e in result["table"] if (e["recipe"], e["quantizer"]) == (recipe, quantizer))
            psnr, usage = entry["psnr"], entry["usage"]
            spread = "" if psnr["std"] is None else f" ± {psnr['std']:.2f}"
            cells.append(f"{psnr['mean']:.2f}{spread} / {100 * usage['mean']:.0f} %")
        lines.append(f"| {NAMES[quantizer]} | {' | '.join(cells)} |")
    shared = next(iter(result["recipes"].values()))
    lines += [
        "",
        f"K = {shared['codebook_size']}, the same network, likelihood, data and {shared['steps']:,} steps of "
        f"{shared['batch_size']} images for all. {footnote(result['protocol'])} "
        f"{link}",
    ]
    return "\n".join(lines)


def drop_in_table(result: dict[str, Any]) -> str:
    """Usage of each layer in somebody else's network."""
    lines = [
        "| Layer | dim | Usage | Usage, held out | Perplexity | PSNR (dB) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        usage = f"{100 * row['usage']:.1f} % | {100 * row['usage_held_out']:.1f} %"
        figures = f"{usage} | {row['perplexity']:.0f} | {row['psnr']:.2f}"
        lines.append(f"| `{row['layer']}` | {row['dim']} | {figures} |")
    return "\n".join(lines)


def trials_table(trials: dict[str, Any]) -> str:
    """The trials that led to the defaults."""
    data = {"fashion": "Fashion-MNIST", "cifar": "CIFAR-10", "photos": "photographs"}
    lines = [f"| PSNR (dB) / codes used / perplexity | {' | '.join(data.values())} |", "| --- | --- | --- | --- |"]
    for row in trials["rows"]:
        cells = [f"{x['psnr']:.2f} / {x['used']} / {x['perplexity']}" if (x := row.get(name)) else "-" for name in data]
        lines.append(f"| {row['what']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", trials["protocol"]])


def between_marks(page: str, text: str) -> str:
    """A page with a text between its marks."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def pages() -> dict[Path, str]:
    """Each page with what it should hold."""
    compared = json.loads((RESULTS / "compare.json").read_text())
    dropped = json.loads((RESULTS / "drop_in.json").read_text())
    trials = json.loads((RESULTS / "trials.json").read_text())
    everyone = json.loads((RESULTS / "quantizers.json").read_text())
    readme, defaults, guide = (
        (ROOT / page).read_text() for page in ("README.md", "docs/gm-vq.md", "docs/which-quantizer.md")
    )
    results = [
        "# Figures",
        "Written by `python benchmarks/tables.py` from `benchmarks/results/*.json`.",
        "## Quantizers in one network",
        f"`{compared['protocol']['command']}`",
        "The quantizers are "
        + "; ".join(f"`{key}`: {NAMES[key].strip('*')}" for key in compared["protocol"]["quantizers"])
        + ".",
        markdown(compared).strip(),
        "## Every quantizer in one network",
        f"`{everyone['protocol']['command']}`",
        "; ".join(f"`{key}`: {NAMES[key].strip('*')}" for key in everyone["protocol"]["quantizers"]) + ".",
        markdown(everyone).strip(),
        "The runs are of commit a8ca758, those of BSQ and IBQ of 6e2f40f; nothing changed between them that moves the "
        "others.",
        "## The layer in somebody else's network",
        " ".join(dropped["protocol"].split("\n\n")[1].split()),
        drop_in_table(dropped),
        f"{dropped['rows'][0]['steps']:,} steps of 32 crops, K = {dropped['rows'][0]['codebook_size']}, one seed. "
        f"{dropped['hardware']}; torch {dropped['versions']['torch']}.",
    ]
    return {
        ROOT / "README.md": between_marks(readme, short_table(compared)),
        ROOT / "docs/which-quantizer.md": between_marks(guide, short_table(everyone, "[All figures](results.md).")),
        ROOT / "docs/gm-vq.md": between_marks(defaults, trials_table(trials)),
        ROOT / "docs/results.md": "\n\n".join(results) + "\n",
    }


def main() -> int:
    """Writes or checks the pages."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        print(*[f"{path.relative_to(ROOT)} is not what the JSON says" for path in stale], sep="\n")
        return bool(stale)
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

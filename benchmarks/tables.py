"""Writes the tables of docs from benchmarks/results, so that no number is typed by hand.

    python benchmarks/tables.py [--check]

With --check nothing is written; the exit status says whether the pages agree with the JSON. docs/kernels.md shows
bench.json (`make bench` writes runs/bench/bench.json) and profile.json (`make profile` writes
runs/profile.json).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gmvq.experiments import Table, read_table, speed
from gmvq.experiments.printing import COLUMNS, footnote, made_by, markdown, markdown_table
from gmvq.modalities import MODALITIES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
BESIDE = ("si_sdr", "character_error_rate", "r2")
"""Metrics shown beside the headline metric of a modality."""
PLOT = ROOT / "docs/images/kernels.png"
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


def short_table(table: Table) -> str:
    """Formats PSNR and usage of each quantizer on each recipe, with a link to all metrics."""
    rows: dict[str, list[str]] = {}
    for recipe in table.protocols:
        for entry in table.entries(recipe):
            psnr, usage = COLUMNS["psnr"].written(entry.spread("psnr")), entry.mean("usage")
            rows.setdefault(entry.contender, []).append(f"{psnr} / {100 * (usage or 0.0):.0f} %")
    header = ["PSNR in dB / share of the codebook in use", *table.protocols]
    shared = next(iter(table.protocols.values()))
    training = shared["run"]["training"]
    note = (
        f"K = {shared['codebook_size']}, the same network, likelihood, data and {training['steps']:,} steps of "
        f"{training['batch_size']} images for all. {footnote(table)} [All figures](results.md)."
    )
    return f"{markdown_table(header, [[NAMES[name], *cells] for name, cells in rows.items()])}\n\n{note}"


def named(table: Table) -> str:
    """Describes the quantizers of a table."""
    names = dict.fromkeys(row.contender for row in table.rows.values())
    return "; ".join(f"`{name}`: {NAMES[name].strip('*')}" for name in names)


def drop_in_table(result: dict[str, Any]) -> str:
    """Formats the usage of each layer in an unrelated network."""
    rows = [
        [f"`{row['layer']}`", str(row["dim"]), f"{100 * row['usage']:.1f} %", f"{100 * row['usage_held_out']:.1f} %",
         f"{row['perplexity']:.0f}", f"{row['psnr']:.2f}"]
        for row in result["rows"]
    ]  # fmt: skip
    return markdown_table(["Layer", "dim", "Usage", "Usage, held out", "Perplexity", "PSNR (dB)"], rows)


def trials_table(trials: dict[str, Any]) -> str:
    """Formats the trials that led to the defaults."""
    data = {"fashion": "Fashion-MNIST", "cifar": "CIFAR-10", "photos": "photographs"}

    def cell(found: dict[str, Any] | None) -> str:
        return f"{found['psnr']:.2f} / {found['used']} / {found['perplexity']}" if found else "-"

    rows = [[row["what"], *(cell(row.get(name)) for name in data)] for row in trials["rows"]]
    return f"{markdown_table(['PSNR (dB) / codes used / perplexity', *data.values()], rows)}\n\n{trials['protocol']}"


def search_table(search: dict[str, Any]) -> str:
    """Formats the variants that were tried on the networks of the leaderboard."""
    names = {"cifar": "CIFAR-10", "fashion": "Fashion-MNIST", "celeba": "CelebA 64x64"}
    data = {key: name for key, name in names.items() if any(key in row for row in search["rows"])}

    def figure(run: dict[str, Any]) -> str:
        seed = f" (seed {run['seed']})" if run["seed"] else ""
        return f"{run['mse']:.2f} / {run['perplexity'] or '-'}{seed}"

    rows = [[row["what"], *("; ".join(map(figure, row.get(name, []))) or "-" for name in data)]
            for row in search["rows"]]  # fmt: skip
    return f"{markdown_table(['MSE (1e-3) / perplexity', *data.values()], rows)}\n\n{search['protocol']}"


def long_table(long: dict[str, Any]) -> str:
    """Formats the variants that were tried on the first steps of long training."""
    heads = ["", "Seed", "Share of the weakest direction", "Steps", "Training MSE (1e-3)", "MSE (1e-3) / perplexity"]
    rows = [
        [row["what"], str(row["seed"]), f"{row['shares'][-1]:.2f} ({row['errors'][-1]:.2f})", f"{row['steps']:,}",
         f"{row['training_mse']:.2f}", f"{row['mse']:.2f} / {row['perplexity']:.0f}" if row["mse"] else "-"]
        for row in long["rows"]
    ]  # fmt: skip
    return f"{markdown_table(heads, rows)}\n\n{long['protocol']}"


def sizes_table(result: dict[str, Any]) -> str:
    """Formats bits by the number of codes, and what auto finds."""
    sizes = sorted({row["asked"] for row in result["rows"]} - {"auto"}, key=int)
    rows = []
    for recipe in dict.fromkeys(row["recipe"] for row in result["rows"]):
        runs = {row["asked"]: row for row in result["rows"] if row["recipe"] == recipe}
        bits = {size: runs[size]["bits"] for size in sizes if size in runs}
        best, found = min(bits, key=bits.__getitem__), runs["auto"]
        cells = [f"**{bits[size]:.3f}**" if size == best else f"{bits[size]:.3f}" for size in sizes]
        rows.append([f"`{recipe}`", *cells, f"{found['codes']:,}", f"{found['bits'] - bits[best]:+.3f}"])
    header = ["Bits per dimension", *(f"K = {size:,}" for size in sizes), "auto finds", "above the least"]
    note = (
        "Held-out items and their codes together, after each recipe's whole training on its bundled data, one seed. "
        f"{made_by([result])}. `python benchmarks/codebook_size.py`"
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def codec_text(result: dict[str, Any]) -> str:
    """Formats what files of codes take and keep, and how fast they are made."""
    bits, speeds, static = result["bits_per_code"], result["codes_per_second"], result.get("constriction")
    sizes = [
        ["packed", f"{bits['packed']:.2f}"],
        ["lzma, level 9, of 16-bit integers", f"{bits['lzma']:.2f}"],
        *([["a range coder with the frequencies of these codes", f"{static['bits_per_code']:.2f}"]] if static else []),
        ["`gmvq compress`, learning from nothing", f"{bits['not_fitted']:.2f}"],
        ["`gmvq compress` after `fit-codec`", f"**{bits['fitted']:.2f}**"],
        ["estimated by its probabilities, without headers", f"{bits['estimated']:.2f}"],
    ]
    formats = [
        [name, f"{row['bits_per_pixel']:.3f}", f"{row['psnr']:.2f}", f"{row['ms_ssim']:.3f}"]
        for name, row in result["formats"].items()
    ]
    protocol = [
        f"The {result['images']} first images of Kodak, {bits['codes']:,} codes of the tokenizer of `make demo`, which "
        "has seen none of them; bytes of files, their headers included. Other formats by Pillow, each image at the "
        "highest quality that is not larger than ours, means over images.",
        f"C++ writes {speeds['cpp_written'] / 1e6:.1f} and reads {speeds['cpp_read'] / 1e6:.1f} million codes a second "
        f"on one core, the definition in Python {speeds['python_written'] / 1e3:.0f} and "
        f"{speeds['python_read'] / 1e3:.0f} thousand.",
        f"The range coder is that of constriction; it writes {static['written'] / 1e6:.0f} and reads "
        f"{static['read'] / 1e6:.0f} million codes a second."
        if static
        else "",
        f"{made_by([result])}. `python benchmarks/codec.py`",
    ]
    return "\n\n".join(
        (
            markdown_table(["Bits of a code", "in files"], sizes),
            markdown_table(["At our size", "Bits per pixel", "PSNR (dB)", "MS-SSIM"], formats),
            " ".join(filter(None, protocol)),
        )
    )


def read(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Reads a result; returns None if it does not exist yet."""
    path = folder / name
    return json.loads(path.read_text()) if path.exists() else None


def bench_texts(result: dict[str, Any] | None) -> dict[str, str]:
    """Returns the texts between the marks of docs/kernels.md, by name."""
    marks = {"nearest": ("nearest",), "steps": ("vector-step", "mixture-step"), "k-means": ("k-means",),
             "memory": ("memory",), "growth": ("growth",)}  # fmt: skip
    if result is None:
        return dict.fromkeys([*marks, "bench"], "Not measured yet: `make bench`.")
    grids = speed.grids(result)
    texts = {
        name: "\n\n".join(speed.markdown_grid(grid) for grid in grids if grid.section in sections)
        for name, sections in marks.items()
    }
    if result["sections"].get("growth"):
        texts["growth"] += (
            "\n\n![Time over that of the bare product, and peak memory, against the number of codes]"
            f"({PLOT.relative_to(ROOT / 'docs')})"
        )
    texts["bench"] = f"{speed.footnote(result['protocol'])} `{result['protocol']['command']}`"
    return texts


def profile_text(result: dict[str, Any] | None) -> str:
    """Formats the shares of a whole training step's time."""
    if result is None:
        return "Not measured yet: `make profile`."
    parts = {"loader": "Waiting for the loader", "encoder": "Encoder", "quantizer": "Quantizer",
             "decoder": "Decoder, loss", "optimizer": "Optimizer, averages"}  # fmt: skip
    names = {**NAMES, "vector-quantize-pytorch": "vector-quantize-pytorch"}
    header = ["", *parts.values(), "Step (ms)", "Images a second", "over vector-quantize-pytorch's"]
    rows = [
        [names[name], *(f"{100 * metrics['shares'][part]:.1f} %" for part in parts),
         f"{metrics['step_milliseconds']:.0f}", f"{metrics['items_per_second']:.0f}",
         f"{result['ratio'][name]:.2f}" if name in result["ratio"] else "-"]
        for name, metrics in result["subjects"].items()
    ]  # fmt: skip
    batch = (
        f"Batches of {result['batch_size']} images, K = {result['codebook_size']}; medians of {result['rounds']} "
        f"rounds of {result['steps']} steps. The loader makes a batch in {result['batch_milliseconds']:.1f} ms, ahead "
        f"of the step. {made_by([result])}."
    )
    return "\n\n".join([result["protocol"], markdown_table(header, rows), batch])


def modality_table(result: dict[str, Any]) -> str:
    """Returns how well the recipes of all modalities do on real data."""
    header = [
        "Data", "Items: training, held out", "K", "Held out", "Codes in use (%): training, held out", "Bits",
        "Bits of a code: prior, frequencies", "Class recognized (%): drawn, real", "Steps of the prior",
        "Seconds: tokenizer, prior",
    ]  # fmt: skip
    rows = []
    for row in result["rows"]:
        kind = MODALITIES[row["modality"]]
        shown = [
            f"{each.name} {each.shown(row['metrics'][each.key])}{each.unit and ' '}{each.unit}"
            for each in kind.measures
            if each.key in (row["headline"], *BESIDE) and each.key in row["metrics"]
        ]
        seen = ", ".join(f"{100 * row[key]:.1f}" for key in ("agreement", "real_accuracy") if key in row)
        codes = (row["bits_per_code"], row["frequencies_bits_per_code"])
        rows.append([
            row["title"], f"{row['items'][0]:,}, {row['items'][1]:,}", f"{row['codebook_size']:,}", "; ".join(shown),
            f"{100 * row['training_usage']:.1f}, {100 * row['usage']:.1f}",
            f"{row[f'bits_per_{kind.sample}']:.3g} a {kind.sample}", "{:.2f}, {:.2f}".format(*codes), seen or "-",
            f"{row['prior_steps']:,}", f"{row['seconds']:.0f}, {row['prior_seconds']:.0f}",
        ])  # fmt: skip
    steps, threads = result["steps"], result["threads"] or "all"
    note = (
        f"{result['about']} Bits of a code are of held-out items, the places "
        f"after their ends among them. A class is recognized by a classifier of the real items ({steps['judge']:,} "
        "steps) in those drawn of it with guidance 3, and in real held-out ones. Seconds are those of training on "
        f"{threads} threads. {made_by([result])}."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def between_marks(page: str, text: str, name: str = "results", writer: str = "tables.py") -> str:
    """Returns a page with a text between the marks of a name."""
    begin, end = f"<!-- {name}: written by benchmarks/{writer} -->", f"<!-- /{name} -->"
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def pages() -> dict[Path, str]:
    """Returns the wanted content of each page."""
    compared, everyone = (read_table(RESULTS / f"{name}.json") or Table() for name in ("compare", "quantizers"))
    dropped = json.loads((RESULTS / "drop_in.json").read_text())
    trials = json.loads((RESULTS / "trials.json").read_text())
    search = json.loads((RESULTS / "search.json").read_text())
    sizes = json.loads((RESULTS / "codebook_size.json").read_text())
    defaults, guide = ((ROOT / page).read_text() for page in ("docs/gm-vq.md", "docs/which-quantizer.md"))
    defaults = between_marks(defaults, trials_table(trials))
    defaults = between_marks(defaults, search_table(search), "search")
    defaults = between_marks(defaults, search_table(search["later"]), "later search")
    defaults = between_marks(defaults, long_table(search["long"]), "long search")
    defaults = between_marks(defaults, search_table(search["features"]), "features")
    guide = between_marks(between_marks(guide, short_table(everyone)), sizes_table(sizes), "sizes")
    results = [
        "# Measurements",
        "Written by `python benchmarks/tables.py` from `benchmarks/results/*.json`.",
        "## Quantizers in one network",
        f"`{compared.command}`",
        f"The quantizers are {named(compared)}.",
        markdown(compared).strip(),
        "## Every quantizer in one network",
        f"`{everyone.command}`",
        f"{named(everyone)}.",
        markdown(everyone).strip(),
        "The runs of BSQ and IBQ are of the later commit; nothing changed between the two that moves the others.",
        "## The layer in somebody else's network",
        " ".join(dropped["protocol"].split("\n\n")[1].split()),
        drop_in_table(dropped),
        f"{dropped['rows'][0]['steps']:,} steps of 32 crops, K = {dropped['rows'][0]['codebook_size']}, one seed. "
        f"{dropped['hardware']}; torch {dropped['versions']['torch']}.",
    ]
    modalities, real = (ROOT / "docs/modalities.md").read_text(), read("modalities.json")
    measured = "Not measured yet." if real is None else modality_table(real)
    kernels = (ROOT / "docs/kernels.md").read_text()
    for name, text in {**bench_texts(read("bench.json")), "profile": profile_text(read("profile.json"))}.items():
        kernels = between_marks(kernels, text, name)
    compression = (ROOT / "docs/compression.md").read_text()
    files = codec_text(json.loads((RESULTS / "codec.json").read_text()))
    return {
        ROOT / "docs/compression.md": between_marks(compression, files, "codec"),
        ROOT / "docs/kernels.md": kernels,
        ROOT / "docs/which-quantizer.md": guide,
        ROOT / "docs/gm-vq.md": defaults,
        ROOT / "docs/modalities.md": between_marks(modalities, measured),
        ROOT / "docs/results.md": "\n\n".join(results) + "\n",
    }


def main() -> int:
    """Writes or checks the pages."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    bench = read("bench.json")
    growth = bench["sections"].get("growth") if bench else None
    if growth and (not PLOT.exists() or ROOT / "docs/kernels.md" in stale):  # its bytes depend on matplotlib's version
        stale.append(PLOT)
    if "--check" in sys.argv:
        print(*[f"{path.relative_to(ROOT)} is not what the JSON says" for path in stale], sep="\n")
        return bool(stale)
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if PLOT in stale and growth:
        PLOT.parent.mkdir(exist_ok=True)
        PLOT.write_bytes(speed.plot_growth(growth))
    return 0


if __name__ == "__main__":
    sys.exit(main())

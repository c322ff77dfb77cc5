"""Several quantizers, the same network, data, steps and seeds: one table with means and standard deviations.

::

    recipes x quantizers x seeds --recipes.run--> OUT/RECIPE-QUANTIZER-SEED/ --> Row --> OUT/compare.json, compare.md
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from gmvq import hub, recipes
from gmvq.modalities import Data, fingerprint
from gmvq.models.bottlenecks import QuantizerName
from gmvq.recipes import Run
from gmvq.training import NonFiniteLossError, provenance

QUANTIZERS: tuple[QuantizerName, ...] = ("gaussian-mixture", "vector", "vector-ema")
FORMAT = "gmvq.comparison"
VERSION = 1
TABLE = "compare.json"
MARKDOWN = "compare.md"
DIVERGED = "diverged.json"
MEASURES = ("psnr", "mse", "ssim", "usage", "used_codes", "perplexity", "seconds")
_NARROW = ("psnr", "mse", "usage", "perplexity")
_FORMS = {
    "psnr": ("PSNR (dB)", "{:.2f}", 1.0),
    "mse": ("MSE (1e-3)", "{:.3f}", 1e3),
    "ssim": ("SSIM", "{:.4f}", 1.0),
    "usage": ("Usage (%)", "{:.1f}", 100.0),
    "used_codes": ("Codes used", "{:.1f}", 1.0),
    "perplexity": ("Perplexity", "{:.1f}", 1.0),
    "seconds": ("Training (s)", "{:.0f}", 1.0),
}


class Row(NamedTuple):
    """One run of a comparison.

    Attributes:
        recipe: Name of the recipe.
        quantizer: Name of the quantizer.
        seed: Seed of the run.
        folder: The run's folder.
        metrics: The measures by name; None if the run diverged.
        diverged: Why it stopped on a loss that was not finite, or None.
    """

    recipe: str
    quantizer: QuantizerName
    seed: int
    folder: Path
    metrics: dict[str, float | None] | None
    diverged: str | None = None


def compare(
    runs: Sequence[Run],
    quantizers: Sequence[QuantizerName] = QUANTIZERS,
    seeds: int = 3,
    out: str | Path = "runs/compare",
    *,
    threads: int | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains every quantizer on every recipe with every seed and tabulates held-out figures of hard codes.

    A run that is finished is not trained again, one that was interrupted goes on.

    Args:
        runs: Recipes; only the quantizer and the seed are varied.
        quantizers: Which quantizers.
        seeds: Runs of each, with the seeds 0, 1, ...
        out: Folder of the runs and of the table, ``compare.json`` and ``compare.md``.
        threads: CPU threads during the comparison; None leaves them as they are.
        command: What was typed, for the record.
        console: Where progress goes; by default standard error.

    Returns:
        ``{"protocol": ..., "recipes": ..., "table": ..., "runs": ...}``, also written to ``compare.json``.

    Raises:
        ValueError: If there is nothing to compare, a name comes twice, or a folder holds another run.
    """
    _check(runs, quantizers, seeds)
    out = Path(out)
    console = Console(file=sys.stderr) if console is None else console
    rows: list[Row] = []
    described: dict[str, dict[str, Any]] = {}
    with _threads(threads):
        for recipe in runs:
            data = recipes.load_data(recipe.data)
            recipe = recipes.fitted(recipe, data)
            described[recipe.name] = _describe(recipe, data)
            for quantizer in quantizers:
                for seed in range(seeds):
                    number = f"{len(rows) + 1} of {len(runs) * len(quantizers) * seeds}"
                    rows.append(_row(_variant(recipe, quantizer, seed), data, out, command, console, number))
        result = {
            "format": FORMAT,
            "version": VERSION,
            "protocol": _protocol(quantizers, seeds, command),
            "recipes": described,
            "table": [_entry(r.name, q, [x for x in rows if (x.recipe, x.quantizer) == (r.name, q)]) for r in runs
                      for q in quantizers],
            "runs": [{**row._asdict(), "folder": str(row.folder)} for row in rows],
            "json": str(out / TABLE),
            "markdown": str(out / MARKDOWN),
        }  # fmt: skip
    hub.write_json(out / TABLE, result)
    hub.write_atomically(out / MARKDOWN, markdown(result).encode())
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """The table with its protocol, in Markdown."""
    lines = []
    header = ["Quantizer", *(_FORMS[name][0] for name in MEASURES), "Diverged"]
    for name, described in result["recipes"].items():
        entries = [entry for entry in result["table"] if entry["recipe"] == name]
        lines += [f"### {name}", "", _sentence(described), "", _line(header), _line(["---"] * len(header))]
        lines += [_line([entry["quantizer"], *_cells(entry)]) for entry in entries]
        lines.append("")
    return "\n".join([*lines, footnote(result["protocol"]), ""])


def tables(result: Mapping[str, Any]) -> list[Table]:
    """A table for each recipe, narrow enough for a terminal; ``compare.md`` has all figures."""
    made = []
    for name, described in result["recipes"].items():
        table = Table(title=f"{name}: {_sentence(described)}", box=SIMPLE, title_justify="left", title_style="")
        table.add_column("Quantizer", no_wrap=True)
        for measure in _NARROW:
            table.add_column(_FORMS[measure][0], justify="right", no_wrap=True)
        for entry in result["table"]:
            if entry["recipe"] == name:
                lost = f" ({entry['diverged']} of {entry['runs']} diverged)" if entry["diverged"] else ""
                table.add_row(entry["quantizer"] + lost, *(_cell(entry, measure) for measure in _NARROW))
        made.append(table)
    return made


def _check(runs: Sequence[Run], quantizers: Sequence[str], seeds: int) -> None:
    if seeds < 1:
        raise ValueError(f"'seeds' must be at least 1, got {seeds}. Three show the spread.")
    for name, values in (("recipes", [run.name for run in runs]), ("quantizers", quantizers)):
        if not values or len(set(values)) != len(values):
            raise ValueError(
                f"'{name}' must be at least one, each once, got {', '.join(values) or 'none'}. Name others."
            )
    known = get_args(QuantizerName)
    unknown = sorted(set(quantizers) - set(known))
    if unknown:
        raise ValueError(f"'quantizers' must be of {', '.join(known)}, got {', '.join(unknown)}. Check the spelling.")


def _variant(recipe: Run, quantizer: QuantizerName, seed: int) -> Run:
    model, training = replace(recipe.model, quantizer=quantizer), replace(recipe.training, seed=seed)
    return replace(recipe, model=model, training=training)


def _row(variant: Run, data: Data, out: Path, command: str | None, console: Console, number: str) -> Row:
    """The row of one run, trained unless it is finished."""
    quantizer, seed = variant.model.quantizer, variant.training.seed
    folder = out / f"{variant.name}-{quantizer}-{seed}"
    recipes.check_folder(folder, variant, data)
    metrics, stopped = recipes.read_json(folder / recipes.METRICS), recipes.read_json(folder / DIVERGED)
    done = "finished before" if metrics or stopped else "training"
    console.print(f"{number}: {folder.name}, {done}", highlight=False, markup=False)
    if metrics is None and stopped is None:
        try:
            metrics = recipes.run(
                variant, folder, resume=True, data=data, command=command, report=False, console=console
            )
        except NonFiniteLossError as error:
            stopped = {"reason": str(error)}
            hub.write_json(folder / DIVERGED, stopped)
            console.print(f"diverged: {error}", highlight=False, markup=False)
    if stopped is not None:
        return Row(variant.name, quantizer, seed, folder, None, str(stopped.get("reason")))
    return Row(variant.name, quantizer, seed, folder, {name: (metrics or {}).get(name) for name in MEASURES})


def _describe(recipe: Run, data: Data) -> dict[str, Any]:
    """What all runs of a recipe share, but for quantizer and seed."""
    height, width = data.held_out.sizes[0]
    side = recipe.data.crop
    rows, columns = (-(-(side or length) // recipe.model.downsampling) for length in (height, width))
    shared = asdict(_variant(recipe, "none", 0))
    del shared["model"]["quantizer"], shared["training"]["seed"]
    shared["data"]["source"] = Path(recipe.data.source).name  # where it lies on this machine is nobody's business
    measured = len(data.held_out) if recipe.data.evaluated is None else min(recipe.data.evaluated, len(data.held_out))
    return {
        "run": shared,
        "data": {"name": data.name, "fingerprint": fingerprint(data), "train": len(data.train), "held_out": measured},
        "codebook_size": recipe.model.codebook_size,
        "tokens": [rows, columns],
        "steps": recipe.training.steps,
        "batch_size": recipe.training.batch_size,
    }


def _protocol(quantizers: Sequence[str], seeds: int, command: str | None) -> dict[str, Any]:
    return {
        "metrics": "held-out images, hard codes, means over images; standard deviations over seeds (n - 1)",
        "quantizers": list(quantizers),
        "seeds": list(range(seeds)),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "command": command,
    }


def _entry(recipe: str, quantizer: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and standard deviation of each measure over the runs that did not diverge."""
    finished = [row.metrics for row in rows if row.metrics is not None]
    entry: dict[str, Any] = {"recipe": recipe, "quantizer": quantizer, "runs": len(rows)}
    entry["diverged"] = len(rows) - len(finished)
    for name in MEASURES:
        values = [value for metrics in finished if (value := metrics[name]) is not None]
        entry[name] = {
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
    return entry


def _cells(entry: Mapping[str, Any]) -> list[str]:
    return [*(_cell(entry, name) for name in MEASURES), f"{entry['diverged']} of {entry['runs']}"]


def _cell(entry: Mapping[str, Any], name: str) -> str:
    _, form, scale = _FORMS[name]
    mean, deviation = entry[name]["mean"], entry[name]["std"]
    spread = "" if deviation is None else f" ± {form.format(deviation * scale)}"
    return "-" if mean is None else f"{form.format(mean * scale)}{spread}"


def _sentence(described: Mapping[str, Any]) -> str:
    rows, columns = described["tokens"]
    data = described["data"]
    return (
        f"K = {described['codebook_size']}, {rows}x{columns} tokens, {described['steps']:,} steps of "
        f"{described['batch_size']} images; {data['name']}: {data['train']:,} images for training, "
        f"{data['held_out']:,} measured (fingerprint {data['fingerprint'][:12]})."
    )


def footnote(protocol: Mapping[str, Any]) -> str:
    """How the table was made, in a sentence or two."""
    versions = ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())
    commit = f", commit {protocol['commit'][:12]}" if protocol["commit"] else ""
    seeds = ", ".join(map(str, protocol["seeds"]))
    return (
        f"Mean ± standard deviation over seeds {seeds}, of held-out images with hard codes. "
        f"{protocol['hardware']}; {versions}{commit}."
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if number is not None:
        if number < 1:
            raise ValueError(f"'threads' must be at least 1, got {number}. Leave it out for PyTorch's choice.")
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

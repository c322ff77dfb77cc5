"""Formatting of tables: columns of metrics with their spread, in Markdown and in a terminal, and footnotes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE
from rich.table import Table as Printed

from gmvq.experiments.table import Entry, Spread, Table, best_first, judged_by, modality_of
from gmvq.modalities import Image


class Column(NamedTuple):
    """Format of a metric.

    Attributes:
        header: Name and unit of the metric.
        form: Format of the scaled value.
        scale: Factor of the value.
    """

    header: str
    form: str
    scale: float = 1.0

    def written(self, value: Spread | None, *, spread: bool = True) -> str:
        """Formats mean and standard deviation; empty if there is no value."""
        if value is None:
            return ""
        deviation = f" ± {value.std * self.scale:{self.form}}" if spread and value.std is not None else ""
        return f"{value.mean * self.scale:{self.form}}{deviation}"


COLUMNS = {
    "psnr": Column("PSNR (dB)", ".2f"),
    # errors of values in [0, 1] are a few thousandths
    "mse": Column("MSE (1e-3)", ".3f", 1e3),
    "ssim": Column("SSIM", ".4f"),
    "lpips": Column("LPIPS", ".4f"),
    "usage": Column("Usage (%)", ".1f", 100.0),
    "used_codes": Column("Codes used", ".1f"),
    "perplexity": Column("Perplexity", ".1f"),
    "bits_per_pixel": Column("Bits / pixel", ".3f"),
    "elbo_bits_per_dim": Column("ELBO (bits / dim)", ".3f"),
    "iwae_bits_per_dim": Column("IWAE (bits / dim)", ".3f"),
    "posterior_entropy": Column("Entropy of q (nats)", ".2f"),
    "mse_soft": Column("Soft decoding, MSE (1e-3)", ".3f", 1e3),
    "mse_train": Column("Training batches, MSE (1e-3)", ".3f", 1e3),
    "items_per_second": Column("Training (items / s)", ".0f"),
    "seconds": Column("Training (s)", ".0f"),
}
"""Formats of metrics of images and codes; those of other items follow from their measures."""
_OF_CODES = ("usage", "used_codes", "perplexity", "seconds")
_NARROW_CODES = ("usage", "perplexity")


def columns_of(protocol: Mapping[str, Any]) -> dict[str, Column]:
    """Returns the columns of a table by metric: the distortion metrics of the protocol's modality, and code usage."""
    known = COLUMNS if isinstance(modality_of(protocol), Image) else {}
    distances = {
        one.key: known.get(one.key, Column(f"{one.name} ({one.unit})" if one.unit else one.name, one.form, one.scale))
        for one in judged_by(protocol).measures
    }
    return {**distances, **{key: COLUMNS[key] for key in _OF_CODES}}


def narrow_columns_of(protocol: Mapping[str, Any]) -> dict[str, Column]:
    """Returns the columns that fit a terminal: two distortion metrics, first the one that runs are judged by."""
    columns, judge = columns_of(protocol), judged_by(protocol)
    second = [one.key for one in judge.measures if one.key != judge.headline][:1]
    return {key: columns[key] for key in (judge.headline, *second, *_NARROW_CODES)}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Formats a table in Markdown, and escapes characters that would end a cell or begin a tag.

    Args:
        header: Names of the columns.
        rows: Cells.
        words: Number of text columns, from the left; the others are aligned to the right.
    """
    aligned = ["---" if place < words else "---:" for place in range(len(header))]
    lines = ([cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells] for cells in (header, aligned, *rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def terminal_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str] = ()
) -> Printed:
    """Formats a table for a terminal; the text of its first column may wrap."""
    made = Printed(
        title=title, box=SIMPLE, title_justify="left", title_style="", caption="\n".join(notes) or None,
        caption_justify="left", caption_style="",
    )  # fmt: skip
    for place, name in enumerate(header):
        made.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    for cells in rows:
        made.add_row(*cells)
    return made


def markdown(table: Table) -> str:
    """Formats all rows with their protocols in Markdown."""
    parts = []
    for name, protocol in table.protocols.items():
        entries = table.entries(name)
        columns = columns_of(protocol)
        columns = {key: one for key, one in columns.items() if any(entry.spread(key) for entry in entries)} or columns
        header = ["Quantizer", *(column.header for column in columns.values()), "Diverged"]
        rows = [
            [entry.contender, *_cells(entry, columns), f"{len(entry.diverged)} of {len(entry.rows)}"]
            for entry in entries
        ]
        parts += [f"### {name}", sentence(protocol), markdown_table(header, rows)]
    return "\n\n".join([*parts, footnote(table)]) + "\n"


def tables(table: Table) -> list[Printed]:
    """Creates one table per protocol, the best first, narrow enough for a terminal."""
    made = []
    for name, protocol in table.protocols.items():
        columns, rows = narrow_columns_of(protocol), []
        for entry in best_first(table.entries(name), protocol):
            lost = f" ({len(entry.diverged)} of {len(entry.rows)} diverged)" if entry.diverged else ""
            rows.append([entry.contender + lost, *_cells(entry, columns)])
        header = ["Quantizer", *(column.header for column in columns.values())]
        made.append(terminal_table(f"{protocol['title']}: {sentence(protocol)}", header, rows))
    return made


def summary(table: Table) -> list[dict[str, Any]]:
    """Returns means and standard deviations of the metrics by protocol and contender as JSON types."""
    return [
        {
            "protocol": name,
            "contender": entry.contender,
            "runs": len(entry.rows),
            "diverged": len(entry.diverged),
            **{key: None if (found := entry.spread(key)) is None else found._asdict() for key in columns_of(protocol)},
        }
        for name, protocol in table.protocols.items()
        for entry in table.entries(name)
    ]


def sentence(protocol: Mapping[str, Any]) -> str:
    """Describes the settings that all rows of a protocol share."""
    data, training = protocol["data"], protocol["run"]["training"]
    tokens, modality = "x".join(map(str, protocol["tokens"])), modality_of(protocol)
    steps = f"{training['steps']:,} step{'' if training['steps'] == 1 else 's'}"
    return (
        f"K = {protocol['codebook_size']}, {f'{tokens} tokens' if tokens else '1 token'}, {steps} of "
        f"{modality.counted(training['batch_size'])}; {data['name']}: {modality.counted(data['train'])} for training, "
        f"{data['held_out']:,} measured (fingerprint {data['fingerprint'][:12]})."
    )


def footnote(table: Table) -> str:
    """Describes how the metrics were measured."""
    rows = list(table.rows.values())
    seeds = sorted({row.seed for row in rows})
    kinds = {modality_of(protocol).items for protocol in table.protocols.values()}
    items = kinds.pop() if len(kinds) == 1 else "items"
    over = f", seed {seeds[0]}" if len(seeds) == 1 else f"; mean ± standard deviation over seeds {_listed(seeds)}"
    return f"Hard codes on held-out {items}{over}. {made_by([row.provenance for row in rows])}."


def made_by(provenances: Sequence[Mapping[str, Any]]) -> str:
    """Describes hardware, versions and commits, each with the number of runs if they differ."""
    hardware = [found.get("hardware") or found.get("device") or "hardware not recorded" for found in provenances]
    jobs = sorted({found["jobs"] for found in provenances if found.get("jobs")})
    versions = [versions_of(found.get("versions") or {}) for found in provenances]
    commits = [(found.get("commit") or "not recorded")[:12] for found in provenances]
    at_once = f", {_listed(jobs, ' or ')} at a time" if jobs else ""
    return f"{_counted(hardware)}{at_once}; {_counted(versions)}; commit {_counted(commits)}"


def versions_of(versions: Mapping[str, str]) -> str:
    """Joins names and versions to one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _cells(entry: Entry, columns: Mapping[str, Column]) -> list[str]:
    return [column.written(entry.spread(key)) or "-" for key, column in columns.items()]


def _listed(values: Iterable[object], between: str = ", ") -> str:
    return between.join(map(str, values))


def _counted(values: Sequence[str]) -> str:
    """Returns the value that all share, or each value with its number of runs."""
    counts = Counter(values)
    if len(counts) < 2:
        return "".join(counts)
    return "; ".join(f"{value} ({n} run{'' if n == 1 else 's'})" for value, n in counts.items())

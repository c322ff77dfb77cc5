"""Markdown of the tables: one for each protocol, with the sentence of how it was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from page_rows import OURS, PLAIN, Entry, Experiment

SEEDS = 3
EVERYONE = "all"


class Column(NamedTuple):
    """One figure in a table.

    Attributes:
        key: Its name in the rows.
        header: What stands above it.
        form: How its value is written.
        scale: What it is multiplied by.
        spread: Whether the standard deviation follows.
    """

    key: str
    header: str
    form: str
    scale: float = 1.0
    spread: bool = False


COLUMNS = {
    column.key: column
    for column in (
        Column("mse", "MSE (1e-3)", "{:.3f}", 1e3, spread=True),
        Column("psnr", "PSNR (dB)", "{:.2f}"),
        Column("ssim", "SSIM", "{:.4f}"),
        Column("lpips", "LPIPS", "{:.4f}"),
        Column("usage", "Usage (%)", "{:.1f}", 100.0),
        Column("perplexity", "Perplexity", "{:.0f}", spread=True),
        Column("bits_per_pixel", "Bits / pixel", "{:.3f}"),
        Column("elbo_bits_per_dim", "ELBO (bits / dim)", "{:.3f}"),
        Column("iwae_bits_per_dim", "IWAE (bits / dim)", "{:.3f}"),
        Column("images_per_second", "Training (images / s)", "{:.0f}"),
        Column("mse_soft", "Soft decoding, MSE (1e-3)", "{:.3f}", 1e3),
        Column("posterior_entropy", "Entropy of q (nats)", "{:.2f}"),
        Column("mse_train", "Training batches, MSE (1e-3)", "{:.3f}", 1e3),
    )
}
TABLE = tuple(key for key in COLUMNS if key not in ("posterior_entropy", "mse_train"))
_BOOKKEEPING = {"seed", "evaluate_every", "checkpoint_every", "log_every", "tensorboard", "threads"}
_SAID_ELSEWHERE = {"steps", "batch_size", "codebook_size", "channels", "held_out_fraction", "train_limit"}
_UNUSED = {"gradient_accumulation": 1, "precision": "no"}


def run_command(protocol: str, contenders: str = EVERYONE) -> str:
    """What runs a protocol."""
    return f"gmvq compare --protocol {protocol} --quantizers {contenders} --seeds {SEEDS} --data PATH"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table: the first columns, of words, to the left, figures to the right."""
    aligned = ["---" if place < words else "---:" for place in range(len(header))]
    lines = ([cell.replace("|", "\\|") for cell in cells] for cells in (header, aligned, *rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_spread(entry: Entry, key: str, *, spread: bool = True) -> str:
    """Mean ± standard deviation of a figure in one line, empty where there is none."""
    if key not in entry.figures:
        return ""
    column, figure = COLUMNS[key], entry.figures[key]
    text = column.form.format(figure.mean * column.scale)
    if figure.std is None or not spread:
        return text
    return f"{text}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{column.form.format(figure.std * column.scale)}"


def seeds(entry: Entry) -> str:
    """How many runs there are, and how many of them diverged."""
    return f"{entry.finished}, {len(entry.diverged)} diverged" if entry.diverged else str(entry.finished)


def emphasized(entry: Entry) -> str:
    """The title, bold for GM-VQ at its defaults."""
    return f"**{entry.title}**" if entry.contender == OURS else entry.title


def protocol_section(experiment: Experiment, protocol: str) -> str:
    """Table, what is not in it, and how it was measured."""
    if protocol not in experiment.tables:
        return f"Not run yet. `{run_command(protocol)}`"
    entries = experiment.entries(protocol)
    empty = [key for key in TABLE if not any(key in entry.figures for entry in entries)]
    columns = [COLUMNS[key] for key in TABLE if key not in empty]
    rows = [
        [emphasized(entry), *(with_spread(entry, column.key, spread=column.spread) for column in columns), seeds(entry)]
        for entry in entries
    ]
    lines = [markdown_table(["Contender", *(column.header for column in columns), "Seeds"], rows)] if rows else []
    lines += _remarks(experiment, protocol, entries, [COLUMNS[key].header for key in empty if entries])
    return "\n\n".join(
        [*lines, f"{protocol_sentences(experiment.tables[protocol])}{_speed_note(experiment, protocol)}"]
    )


def _speed_note(experiment: Experiment, protocol: str) -> str:
    """How speeds were measured; empty where there are none."""
    rows, found = experiment.speeds(protocol), experiment.speed
    if found is None or not rows:
        return ""
    said = found["protocol"]
    return (
        f" Speeds are those of whole training steps beside each other, medians of {said['rounds']} rounds of "
        f"{said['steps']} steps on {found['hardware']}."
    )


def _remarks(experiment: Experiment, protocol: str, entries: Sequence[Entry], empty: Sequence[str]) -> list[str]:
    lines = []
    lost = [f"{entry.title}, seed {seed} ({why})" for entry in entries for seed, why in entry.diverged.items()]
    if lost:
        lines.append(f"Diverged: {'; '.join(lost)}. Means are those of the other seeds.")
    absent = experiment.missing(protocol)
    if absent:
        names = ", ".join(f"`{name}`" for name in absent)
        lines.append(f"Not run yet: {names}. `{run_command(protocol, ' '.join(absent))}`")
    unknown = experiment.unknown(protocol)
    if unknown:
        names = ", ".join(f"`{name}`" for name in unknown)
        lines.append(f"Left out, since no contender has these names any more: {names}.")
    if empty:
        lines.append(f"Not measured: {', '.join(empty)}.")
    return lines


def same_for_all(protocol: Mapping[str, Any]) -> str:
    """What no contender of a protocol may choose, in a clause."""
    training = protocol["run"].get("training", {})
    return (
        f"K = {protocol['codebook_size']:,}, the same network, data and {training.get('steps', 0):,} steps of "
        f"{training.get('batch_size', 0):,} images for all"
    )


def protocol_sentences(table: Mapping[str, Any]) -> str:
    """Data, network, training, hardware and versions of a table: no figure stands bare."""
    protocol, rows = table["protocol"], table["rows"]
    data, run = protocol["data"], protocol["run"]
    height, width = protocol["tokens"]
    training, model = run.get("training", {}), dict(run.get("model", {}))
    network = model.pop("network", "convolutional")
    if network == "sq-vae":
        model.pop("normalization", None)  # that network has batch normalization always
    source = Path(str(data["name"])).name  # where the data lie on some machine is nobody's business
    said = [
        f"{source}: {data['train']:,} images for training, {data['held_out']:,} measured (fingerprint "
        f"{data['fingerprint'][:12]}{_more(run.get('data', {}))}); {height}x{width} tokens, "
        f"K = {protocol['codebook_size']:,}.",
        f"Network: {network}{_more(model)}{_parameters(rows)}.",
        f"Training: {training.get('steps', 0):,} steps of {training.get('batch_size', 0):,} images{_more(training)}.",
        "Mean ± standard deviation over seeds; hard codes unless the column says otherwise.",
    ]
    if rows:
        said.append(_where(rows))
    return " ".join(said)


def _more(values: Mapping[str, Any]) -> str:
    """Settings that are no bookkeeping and say something, each after a comma."""
    shown = {
        key: value
        for key, value in values.items()
        if key not in _BOOKKEEPING | _SAID_ELSEWHERE
        and value is not False
        and value not in (None, "", {})
        and value != _UNUSED.get(key)
    }
    return "".join(f", {key.replace('_', ' ')} {_plain(value)}" for key, value in shown.items())


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return " and ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parameters(rows: Iterable[Mapping[str, Any]]) -> str:
    found = sorted({row["parameters"] for row in rows if row.get("parameters")})
    if not found:
        return ""
    return f"; {found[0]:,}{f' to {found[-1]:,}' if len(found) > 1 else ''} parameters"


def _where(rows: Sequence[Mapping[str, Any]]) -> str:
    versions = [", ".join(f"{name} {version}" for name, version in (row["versions"] or {}).items()) for row in rows]
    commits = [(row["commit"] or "not recorded")[:12] for row in rows]
    at_once = " or ".join(map(str, sorted({row["jobs"] for row in rows})))
    hardware = [row["hardware"] or row["device"] for row in rows]
    return f"Runs on {_counted(hardware)}, {at_once} at a time; {_counted(versions)}; commit {_counted(commits)}."


def _counted(values: Sequence[str]) -> str:
    """The value that all share, or each with the number of runs that have it."""
    counts = Counter(values)
    return next(iter(counts)) if len(counts) == 1 else "; ".join(f"{value} ({n} runs)" for value, n in counts.items())


def refinement_section(experiment: Experiment) -> str:
    """What a few steps on the error make of the encoder's codes, and what they cost; empty if it was not measured."""
    found = experiment.refinement
    if found is None:
        return ""
    header = ["Contender", "Steps", "MSE (1e-3)", "against 0 steps", "Perplexity", "ms / image", "Decoder passes"]
    parts = [
        "Semi-amortized inference: the encoder's codes are changed where the decoder's gradient says that the image "
        "gains, and a change stays only if the image has gained. It needs the image and the decoder, and no training; "
        "the tables above do not have it."
    ]
    for protocol in dict.fromkeys(row["protocol"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["protocol"] == protocol]
        before = {(row["contender"], row["seed"]): row["mse"] for row in rows if row["steps"] == 0}
        rows.sort(key=lambda row: (before[row["contender"], row["seed"]], row["contender"], row["seed"], row["steps"]))
        lines = []
        for row in rows:
            contender = experiment.contenders.get(row["contender"])
            title = row["contender"] if contender is None else contender.title
            gain = row["mse"] / before[row["contender"], row["seed"]] - 1
            figures = [f"{row['steps']}", f"{row['mse'] * 1e3:.3f}", f"{gain:+.1%}" if row["steps"] else ""]
            cost = [f"{row['milliseconds_per_image']:.1f}", f"{row['decoder_passes']}"]
            lines.append([title, *figures, f"{row['perplexity']:.0f}", *cost])
        note = f"{experiment.title(protocol)}: the first {rows[0]['images']:,} held-out images. {found['hardware']}."
        parts += [note, markdown_table(header, lines)]
    return "\n\n".join(parts)


def guide(experiment: Experiment, shown: Collection[str] | None = None, note: str | None = None) -> str:
    """The table of the decision guide: errors, usage and speed under the short protocols.

    Args:
        experiment: The data.
        shown: The contenders; None for all that were run.
        note: What follows the table; None for how it was measured.
    """
    protocols = [name for name in experiment.named("-short") if name in experiment.tables]
    absent = [name for name in experiment.named("-short") if name not in experiment.tables]
    lines = [f"{experiment.title(name)}: not run yet. `{run_command(name)}`" for name in absent]
    if protocols:
        found = {name: {entry.contender: entry for entry in experiment.entries(name)} for name in protocols}
        header = ["MSE (1e-3)", *map(experiment.data_title, protocols), "Usage (%)", f"Speed, `{PLAIN}` = 1"]
        names = {name for entries in found.values() for name in entries if shown is None or name in shown}
        rows = [_guide_row(found, name) for name in sorted(names, key=lambda name: _order(found, name))]
        lines = [markdown_table(header, rows), note or _GUIDE_NOTE, *lines]
    return "\n\n".join(lines)


def _order(found: Mapping[str, Mapping[str, Entry]], name: str) -> tuple[int, float, str]:
    """Those on most data first, and then by the mean of the logarithms of their errors."""
    errors = [mse for entries in found.values() if name in entries and (mse := entries[name].mean("mse"))]
    return -len(errors), math.fsum(map(math.log, errors)) / max(1, len(errors)), name


def _guide_row(found: Mapping[str, Mapping[str, Entry]], name: str) -> list[str]:
    entries = [mine[name] for mine in found.values() if name in mine]
    errors = [_error(mine[name]) if name in mine else "" for mine in found.values()]
    usage = [100 * value for entry in entries if (value := entry.mean("usage")) is not None]
    # as they are written, so that no range goes from one number to itself
    low, high = (f"{pick(usage):.0f}" for pick in (min, max)) if usage else ("", "")
    return [emphasized(entries[0]), *errors, low if low == high else f"{low} to {high}", _speed(found, name)]


def _error(entry: Entry) -> str:
    return with_spread(entry, "mse") + (f" ({len(entry.diverged)} diverged)" if entry.diverged else "")


def _speed(found: Mapping[str, Mapping[str, Entry]], name: str) -> str:
    """Images a second over those of the plain VQ-VAE beside it: the geometric mean over data."""
    ratios = [ratio for mine in found.values() if name in mine and (ratio := mine[name].mean("relative"))]
    return f"{math.exp(math.fsum(map(math.log, ratios)) / len(ratios)):.2f}" if ratios else ""


_GUIDE_NOTE = (
    "The short protocols: same network, data, steps and seeds for all; errors of hard codes on held-out images, "
    "mean ± standard deviation over seeds, sorted by their geometric mean. Usage is the range over the data; speed "
    "is that of training, in images a second, relative to the VQ-VAE as published in the same minutes on the same "
    "machine, the geometric mean over the data. Protocols, hardware and all figures: [the experiment](experiment.md)."
)

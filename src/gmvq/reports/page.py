"""Common parts of all pages: the record of a run, training curves, the table of metrics, and the protocol.

Missing parts of a run are omitted with a note. Every string of a run is escaped, since file names are not trusted.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import jinja2

from gmvq.data.writing import naming, write_atomically
from gmvq.metrics.base import Measure
from gmvq.modalities import Exhibit, Passage, Picture, Sound
from gmvq.reports import glossary, plots
from gmvq.reports.plots import Curve
from gmvq.training.journal import read_log

CHARTS = 24
"""Largest number of curves that are drawn; the others are only named."""
SMALL = 200
"""Largest width in pixels of pictures that are placed side by side."""


class Record(NamedTuple):
    """Files of a run.

    Attributes:
        run: run.json, empty if it cannot be read.
        metrics: Metrics on held-out data, empty if metrics.json cannot be read.
        protocol: Protocol of the evaluation.
        warnings: Problems of training.
        curves: Each logged quantity over training.
    """

    run: dict[str, Any]
    metrics: dict[str, float]
    protocol: str
    warnings: list[str]
    curves: dict[str, Curve]


class Card(NamedTuple):
    """A headline metric.

    Attributes:
        name: Name of the metric.
        value: The number as text.
        unit: Its unit, empty for pure numbers.
        hint: How to interpret it.
        share: Filled fraction of its meter, between 0 and 1, or None for no meter.
    """

    name: str
    value: str
    unit: str
    hint: str
    share: float | None = None


def read_record(run: Path) -> Record:
    """Reads the files of a run; missing or damaged ones are empty."""
    measured = read_object(run / "metrics.json")
    protocol = measured.get("protocol") or ""
    nested = measured.get("metrics")
    items = (nested if isinstance(nested, dict) else measured).items()
    metrics = {key: value for key, value in items if _is_number(value)}
    record = read_object(run / "run.json")
    said = measured.get("warnings")
    warnings = list(map(str, said)) if isinstance(said, list) else []
    return Record(record, metrics, str(protocol or record.get("protocol") or ""), warnings, _curves_of(read_log(run)))


def read_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file; empty if there is no readable one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: entry for key, entry in value.items() if key != "digest"} if isinstance(value, dict) else {}


def _curves_of(log: list[dict[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for entry in log:
        if not is_finite(entry.get("step")):
            continue
        held_out = entry.get("kind") == "evaluation"
        for key, value in entry.items():
            if key in ("step", "tokens") or not is_finite(value):
                continue
            curve = curves.setdefault(key, Curve([], [], [], []))
            (curve.held_out_steps if held_out else curve.steps).append(entry["step"])
            (curve.held_out_values if held_out else curve.values).append(value)
    return curves


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Returns whether a value from a file is a finite number."""
    return _is_number(value) and -sys.float_info.max <= value <= sys.float_info.max  # JSON has longer integers, too


def training_seconds(record: Record) -> float | None:
    """Returns the training time, None if it is not recorded."""
    seconds = record.metrics.get("seconds")
    if is_finite(seconds):
        return seconds
    curve = record.curves.get("seconds")  # an interrupted run only has its log
    return curve.values[-1] if curve is not None and curve.values else None


def steps_made(record: Record) -> str:
    """Returns the training steps in words."""
    last = max((curve.steps[-1] for curve in record.curves.values() if curve.steps), default=0)
    return f"{last:,.0f} steps" if last else "wall time"


def training_section(
    curves: dict[str, Curve], codebook_size: int | None, distances: Sequence[Measure] = ()
) -> dict[str, Any]:
    """Builds the curves of logged quantities, the most important first; distances are those of the modality."""
    first = ["loss", *(each.key for each in distances), "perplexity", "used_codes"]
    last = ["learning_rate", "items_per_second"]
    hidden = {*first, *last, "seconds"} | ({"usage"} if "used_codes" in curves else set())
    keys = [key for key in curves if key not in hidden]
    keys = [key for key in (*first, *keys, *last) if key in curves]
    drawn = []
    for key in keys[:CHARTS]:
        measure, curve = glossary.measure(key, distances), curves[key]
        latest = (curve.held_out_values or curve.values)[-1]
        number = f"{measure.shown(latest)} {measure.unit}".strip()
        scaled = curve._replace(
            values=[value * measure.scale for value in curve.values],
            held_out_values=[value * measure.scale for value in curve.held_out_values],
        )
        reference = None
        if codebook_size and key in ("perplexity", "used_codes"):
            reference = (codebook_size, f"{codebook_size:,} codes")
        text = f"{measure.name} over training, {number} at the end"
        drawn.append({"name": measure.name, "latest": number, "chart": plots.curve_chart(scaled, text, reference)})
    left_out = ", ".join(glossary.measure(key).name for key in keys[CHARTS:])
    held_out = any(curve.held_out_values for curve in curves.values())
    return {"curves": drawn, "curves_left_out": left_out, "curves_held_out": held_out}


def metric_groups(
    metrics: dict[str, float], codebook_size: int | None, distances: Sequence[Measure] = (), reach: float = 1.0
) -> list[dict[str, Any]]:
    """Builds the table by groups, the modality's distances first, metrics without an explanation last.

    Args:
        metrics: Metrics by key.
        codebook_size: Number of codes of the tokenizer, or None.
        distances: Distortion metrics of the modality with their explanations.
        reach: Largest fraction of the codes that the counted tokens could use.
    """
    groups, explained = [], set()
    for name, measures in (("Reconstruction", distances), *glossary.GROUPS):
        if name == "Codes":  # bits per sample are named after the modality's samples
            unknown = [key for key in metrics if key.startswith("bits_per_") and key not in glossary.MEASURES]
            measures = (*measures, *map(glossary.measure, unknown))
        rows = []
        for measure in measures:
            keys = [measure.key + decoding for decoding in glossary.DECODINGS]
            keys = keys if measures is distances else keys[:1]
            explained.update(keys)
            if any(key in metrics for key in keys):
                rows.append(_row(measure, [metrics.get(key) for key in keys], codebook_size, reach))
        groups.append({"name": name, "rows": rows, "decodings": measures is distances})
    others = [_row(glossary.measure(key), [value], None) for key, value in metrics.items() if key not in explained]
    groups.append({"name": "Others", "rows": others, "decodings": False})
    return [group for group in groups if group["rows"]]


def _row(measure: Measure, values: list[float | None], codebook_size: int | None, reach: float = 1.0) -> dict[str, Any]:
    good = measure.good
    if codebook_size:
        codes = f"{max(1, round(codebook_size * reach)):,}"
        share = "100 %" if reach >= 1 else f"{100 * reach:.3g} %, the most that this number of tokens can use"
        good = good.format(codes=codes, nats=f"{math.log(codebook_size):.2f}", share=share)
    numbers = [None if value is None else measure.shown(value) for value in values]
    return {"name": measure.name, "numbers": numbers, "unit": measure.unit, "meaning": measure.meaning, "good": good}


def making_section(record: Record, model: list[tuple[str, str]], run: Path) -> dict[str, Any]:
    """Builds the section on the protocol: warnings, command and tables of settings, the model's rows first."""
    saved = read_object(run / "config.json")
    command = record.run.get("command") or ""
    tables = [("Model", model)]
    data = dict(part_of(record.run, "data"))
    if isinstance(data.get("skipped"), list):
        data["skipped"] = len(data["skipped"])
    known = ("command", "fingerprint", "format", "version", "protocol")
    others = {key: value for key, value in record.run.items() if key not in known and isinstance(value, str | float)}
    tables += [
        ("Training", flat(part_of(part_of(record.run, "run"), "training"))),
        ("Data", flat(data)),
        ("Made with", flat({**others, **part_of(record.run, "versions")})),
    ]
    return {
        "warnings": record.warnings,
        "protocol": record.protocol,
        "command": shlex.join(map(str, command)) if isinstance(command, list) else str(command),
        "tables": [table for table in tables if table[1]],
        "record": json.dumps(record.run, indent=2, ensure_ascii=False) if record.run else "",
        "version": str(saved.get("gmvq") or ""),
    }


def flat(value: object, name: str = "") -> list[tuple[str, str]]:
    """Returns name and value of every leaf of nested settings as text."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in flat(item, f"{name} {_words(str(key))}".strip())]
    if isinstance(value, list | tuple):
        return [(name, ", ".join(map(str, value)) or "none")]
    if value is None or isinstance(value, bool):
        return [(name, "none" if value is None else "yes" if value else "no")]
    return [(name, str(value))]


def part_of(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns a nested object of a record, empty if it is missing."""
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def _words(key: str) -> str:
    return key.replace("_", " ")


def write_page(path: Path, template: str, **context: Any) -> Path:  # noqa: ANN401 (the template names what it takes)
    """Writes a page atomically; a name that the template uses and the context lacks is an error."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(
            lambda name: resources.files("gmvq.reports").joinpath(name).read_text(encoding="utf-8")
        ),
    )
    environment.tests |= {
        "picture": lambda part: isinstance(part, Picture),
        "sound": lambda part: isinstance(part, Sound),
        "passage": lambda part: isinstance(part, Passage),
    }
    environment.filters["uri"] = _uri
    page = environment.get_template(template).render(**context)
    with naming("The report", "The model and its metrics are valid: make room there and give the same command again."):
        write_atomically(path, page.encode())
    return path


def _uri(part: Picture | Sound) -> str:
    """Converts a picture or a recording to a data URI."""
    kind = "audio/wav" if isinstance(part, Sound) else f"image/{'svg+xml' if part.kind == 'svg' else part.kind}"
    return f"data:{kind};base64,{base64.b64encode(part.data).decode('ascii')}"


def is_wide(exhibits: list[Exhibit]) -> bool:
    """Returns whether exhibits need the width of the page: texts, recordings and large pictures."""
    parts = [part for exhibit in exhibits for part in exhibit.real]
    return any(not isinstance(part, Picture) or part.width > SMALL for part in parts)

"""The page of a run: ``report.html``, one file with the pictures, the curves and the figures.

::

    run.json, metrics.json, log.jsonl --+
    model ------------------------------+--> a picture of each kind, a table --> report_template.html --> report.html
    held-out images --------------------+

What a run does not have is left out with a note. Every string of a run is escaped: names of files are not ours.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import jinja2
import torch
from torch import Tensor

from gmvq.data.images import Images
from gmvq.models.autoencoder import Autoencoder
from gmvq.models.modes import evaluating
from gmvq.training import exhibits, figures, glossary
from gmvq.training.figures import Curve

CHARTS = 24
"""Most curves drawn; the others are named."""
QUANTIZERS = {
    "gaussian-mixture": "GM-VQ, Gaussian-mixture vector quantization,",
    "vector": "VQ-VAE with a gradient-trained codebook",
    "vector-ema": "VQ-VAE with a moving-average codebook",
    "none": "A variational autoencoder (VAE)",
}


class Record(NamedTuple):
    """What a run left on disk.

    Attributes:
        run: run.json, empty if it cannot be read.
        metrics: Figures on held-out data, empty if metrics.json cannot be read.
        protocol: How they were measured.
        curves: Each logged quantity over training.
    """

    run: dict[str, Any]
    metrics: dict[str, float]
    protocol: str
    curves: dict[str, Curve]


class Card(NamedTuple):
    """A headline figure.

    Attributes:
        name: What it is called; until it is shown, its key.
        value: The number; until it is shown, its format.
        unit: Its unit, empty for pure numbers.
        hint: How to read it.
        share: How full its meter is, between 0 and 1, or None for no meter.
    """

    name: str
    value: str
    unit: str
    hint: str
    share: float | None = None


def write_report(
    run: str | Path, model: Autoencoder, images: Images, *, counts: Tensor | None = None, title: str | None = None
) -> Path:
    """Writes ``report.html`` into a run's folder: one self-contained file, light and dark.

    Args:
        run: The run's folder; of ``run.json``, ``metrics.json`` and ``log.jsonl`` it shows what is there.
        model: The trained autoencoder; its mode and weights stay as they are.
        images: Held-out images; a few of them, spread evenly, are shown.
        counts: Held-out tokens of each code ``(K,)``; without them 4 million pixels of ``images`` are encoded.
        title: Heading of the page; by default it says what was learned from what.

    Returns:
        The path of the page.

    Raises:
        ValueError: If ``counts`` does not have one number for each code.
    """
    run = Path(run)
    record = read_record(run)
    size = model.bottleneck.codebook_size
    if counts is not None and tuple(counts.shape) != (size,):
        raise ValueError(
            f"'counts' must have one number for each of the {size} codes, got shape {tuple(counts.shape)}. "
            "Pass the counts of an evaluation of this model, or leave them out."
        )
    with torch.no_grad(), evaluating(model):
        shown = exhibits.show_images(model, images)
        codebook = None
        if model.has_code_maps:
            counts = exhibits.count_codes(model, images) if counts is None else counts
            codebook = exhibits.decode_codebook(model, counts)
    return write_page(
        run / "report.html",
        "report_template.html",
        **_heading(record, model, shown, run.resolve().name, title),
        **exhibits.pairs_section(shown, model.downsampling),
        **exhibits.maps_section(shown, codebook, model.downsampling),
        usage=None if codebook is None else exhibits.codebook_section(codebook),
        **training_section(record.curves, size),
        groups=figure_groups(record.metrics, size),
        **making_section(record, _model_rows(model, record, run), run),
    )


def read_record(run: Path) -> Record:
    """Reads what a run left on disk; what is missing or broken is empty."""
    measured = _read_object(run / "metrics.json")
    protocol = measured.get("protocol") or ""
    nested = measured.get("metrics")
    items = (nested if isinstance(nested, dict) else measured).items()
    metrics = {key: value for key, value in items if _is_number(value)}
    record = _read_object(run / "run.json")
    return Record(record, metrics, str(protocol or record.get("protocol") or ""), _read_curves(run / "log.jsonl"))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_curves(path: Path) -> dict[str, Curve]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    curves: dict[str, Curve] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a killed run is cut
            continue
        if not isinstance(entry, dict) or not _is_finite(entry.get("step")):
            continue
        held_out = entry.get("kind") == "evaluation"
        for key, value in entry.items():
            if key in ("step", "epoch") or not _is_finite(value):
                continue
            curve = curves.setdefault(key, Curve([], [], [], []))
            (curve.held_out_steps if held_out else curve.steps).append(entry["step"])
            (curve.held_out_values if held_out else curve.values).append(value)
    return curves


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: object) -> TypeGuard[float]:
    return _is_number(value) and math.isfinite(value)


def _heading(
    record: Record, model: Autoencoder, shown: list[exhibits.Shown], folder: str, title: str | None
) -> dict[str, Any]:
    size, side = model.bottleneck.codebook_size, model.downsampling
    name = str(_part(record.run, "data").get("name") or _part(record.run, "run").get("name") or folder)
    quantizer = QUANTIZERS.get(getattr(model.config, "quantizer", ""), "A tokenizer")
    channels = shown[0].image.shape[0] if shown else getattr(model.config, "channels", 3)
    raw = 8 * channels * side * side
    if size is None:
        default = f"Continuous latents learned from {name}"
        lede = f"{quantizer} describes each {side} × {side} pixels of an image by {model.bottleneck.dim} real numbers."
    else:
        bits = math.log2(size)
        default = f"{size:,} codes learned from {name}"
        lede = (
            f"{quantizer} describes each {side} × {side} pixels of an image by one of {size:,} codes: {bits:.3g} bits "
            f"where the pixels themselves take {raw:,}."
        )
        if not model.has_code_maps:
            lede = f"{quantizer} describes an image at several scales, each token by one of {size:,} codes."
    return {
        "title": title or default,
        "run_name": folder,
        "lede": f"{lede} Pictures and figures are of held-out images.",
        "cards": _cards(record, size),
        "codebook_size": size,
        "transparent": channels == 4,
    }


def _cards(record: Record, codebook_size: int | None) -> list[Card]:
    metrics, cards = record.metrics, []
    chosen = [
        Card("psnr", ".2f", "dB", "higher is better"),
        Card("ssim", ".3f", "", "1 is identical"),
    ]
    if codebook_size:
        share = metrics.get("perplexity", 0) / codebook_size
        chosen += [
            Card("usage", ".1%", "", f"of {codebook_size:,} codes, on held-out images", metrics.get("usage", 0)),
            Card("perplexity", ",.1f", "", f"of at most {codebook_size:,}", share),
            Card("bits_per_pixel", ".3g", "", "at a fixed length for each code"),
        ]
    else:
        bounds = ("elbo_bits_per_dim", "iwae_bits_per_dim")
        chosen += [Card(key, ".3f", "", "bits per dimension, lower is better") for key in bounds]
    for card in chosen:
        if math.isfinite(metrics.get(card.name, math.nan)):
            name, value = glossary.measure(card.name).name, format(metrics[card.name], card.value)
            cards.append(card._replace(name=name, value=value))
    seconds = training_seconds(record)
    if seconds is not None:
        cards.append(Card("Training time", *glossary.duration(seconds), steps_made(record)))
    return cards


def training_seconds(record: Record) -> float | None:
    """Time of training, None where nothing says."""
    seconds = record.metrics.get("seconds")
    if _is_finite(seconds):
        return seconds
    curve = record.curves.get("seconds")  # an interrupted run has its log alone
    return curve.values[-1] if curve is not None and curve.values else None


def steps_made(record: Record) -> str:
    """Steps of training, in words."""
    last = max((curve.steps[-1] for curve in record.curves.values() if curve.steps), default=0)
    return f"{last:,.0f} steps" if last else "wall time"


def training_section(curves: dict[str, Curve], codebook_size: int | None) -> dict[str, Any]:
    """Curves of what was logged, the most telling ones first."""
    first = ["loss", "psnr", "perplexity", "used_codes", "ssim"]
    last = ["learning_rate", "images_per_second"]
    hidden = {*first, *last, "seconds"} | ({"usage"} if "used_codes" in curves else set())
    keys = [key for key in curves if key not in hidden]
    keys = [key for key in (*first, *keys, *last) if key in curves]
    drawn = []
    for key in keys[:CHARTS]:
        measure, curve = glossary.measure(key), curves[key]
        latest = (curve.held_out_values or curve.values)[-1]
        number = f"{glossary.shown(measure, latest)} {measure.unit}".strip()
        scaled = curve._replace(
            values=[value * measure.scale for value in curve.values],
            held_out_values=[value * measure.scale for value in curve.held_out_values],
        )
        reference = None
        if codebook_size and key in ("perplexity", "used_codes"):
            reference = (codebook_size, f"{codebook_size:,} codes")
        text = f"{measure.name} over training, {number} at the end"
        drawn.append({"name": measure.name, "latest": number, "chart": figures.curve_chart(scaled, text, reference)})
    left_out = ", ".join(glossary.measure(key).name for key in keys[CHARTS:])
    held_out = any(curve.held_out_values for curve in curves.values())
    return {"curves": drawn, "curves_left_out": left_out, "curves_held_out": held_out}


def figure_groups(metrics: dict[str, float], codebook_size: int | None) -> list[dict[str, Any]]:
    """Rows of the table, group by group; figures without an explanation come last under their own names."""
    groups, explained = [], set()
    for name, measures in glossary.GROUPS:
        rows = []
        for measure in measures:
            keys = [measure.key + decoding for decoding in glossary.DECODINGS]
            keys = keys if measures is glossary.RECONSTRUCTION else keys[:1]
            explained.update(keys)
            if any(key in metrics for key in keys):
                rows.append(_row(measure, [metrics.get(key) for key in keys], codebook_size))
        groups.append({"name": name, "rows": rows, "decodings": measures is glossary.RECONSTRUCTION})
    others = [_row(glossary.measure(key), [value], None) for key, value in metrics.items() if key not in explained]
    groups.append({"name": "Others", "rows": others, "decodings": False})
    return [group for group in groups if group["rows"]]


def _row(measure: glossary.Measure, values: list[float | None], codebook_size: int | None) -> dict[str, Any]:
    good = measure.good
    if codebook_size:
        good = good.format(codes=f"{codebook_size:,}", nats=f"{math.log(codebook_size):.2f}")
    numbers = [None if value is None else glossary.shown(measure, value) for value in values]
    return {"name": measure.name, "numbers": numbers, "unit": measure.unit, "meaning": measure.meaning, "good": good}


def making_section(record: Record, model: list[tuple[str, str]], run: Path) -> dict[str, Any]:
    """How it was made: protocol, command and tables of settings, the rows of the model first."""
    saved = _read_object(run / "config.json")
    command = record.run.get("command") or ""
    tables = [("Model", model)]
    data = dict(_part(record.run, "data"))
    if isinstance(data.get("skipped"), list):
        data["skipped"] = len(data["skipped"])
    known = ("command", "fingerprint", "format", "version", "protocol")
    others = {key: value for key, value in record.run.items() if key not in known and isinstance(value, str | float)}
    tables += [
        ("Training", flat(_part(_part(record.run, "run"), "training"))),
        ("Data", flat(data)),
        ("Made with", flat({**others, **_part(record.run, "versions")})),
    ]
    return {
        "protocol": record.protocol,
        "command": shlex.join(map(str, command)) if isinstance(command, list) else str(command),
        "tables": [table for table in tables if table[1]],
        "record": json.dumps(record.run, indent=2, ensure_ascii=False) if record.run else "",
        "version": str(saved.get("gmvq") or ""),
    }


def _model_rows(model: Autoencoder, record: Record, run: Path) -> list[tuple[str, str]]:
    config = model.config
    rows = flat(dataclasses.asdict(config)) if dataclasses.is_dataclass(config) else []
    rows.append(("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"))
    fingerprint = _read_object(run / "config.json").get("fingerprint") or record.run.get("fingerprint")
    return [*rows, ("fingerprint", str(fingerprint))] if fingerprint else rows


def flat(value: object, name: str = "") -> list[tuple[str, str]]:
    """Name and value of every leaf."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in flat(item, f"{name} {_words(str(key))}".strip())]
    return [(name, str(value))]


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A nested object of a record, empty if there is none."""
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def _words(key: str) -> str:
    return key.replace("_", " ")


def write_page(path: Path, template: str, **context: Any) -> Path:  # noqa: ANN401 (the template names what it takes)
    """Writes a page whole or not at all; a name that the template asks for and is not there is an error."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(
            lambda name: resources.files("gmvq.training").joinpath(name).read_text(encoding="utf-8")
        ),
    )
    page = environment.get_template(template).render(**context)
    temporary = path.with_suffix(".html.partial")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path

"""The ablations, the course of training and the study of gradients: a plot, a table and a text that is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from page_plots import plot_course, plot_gradients, plot_study
from page_rows import OURS, Entry, Experiment
from page_svg import Drawing
from page_tables import COLUMNS, markdown_table, protocol_sentences, run_command, seeds, with_spread

TABLE = "cifar10-8x8-k1024-short"
"""The protocol of most studies, and of the course of training."""
IMAGES = "images/experiment"
_MEASURES = {
    "mse": "mse_of",
    "mse_train": "train_of",
    "psnr": "psnr_of",
    "usage": "usage_of",
    "perplexity": "perplexity_of",
    "posterior_entropy": "entropy_of",
}
"""What the table of a study has, and what its texts call it."""
_DRAWN = ("mse", "mse_train", "perplexity", "usage")
_MOST_LINES = 6
_BIAS = 1e-4
"""Where an estimator has no more than this at any point, it is the exact gradient up to rounding, and is not drawn."""


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        text: Its Markdown.
        drawings: The figures that it shows.
    """

    text: str
    drawings: tuple[Drawing, ...] = ()


class ByLabel(dict[str, str]):
    """Texts by the label of a point: ``{mse[0.5]}`` and ``{mse[4]}`` find theirs, as numbers or as text."""

    def __missing__(self, label: object) -> str:
        if isinstance(label, int):  # str.format takes digits for an index
            return self[str(label)]
        known = ", ".join(self)
        raise ValueError(f"'texts' must name a point of the study, one of {known}, got {label!r}. Correct it.")


def show(drawing: Drawing) -> str:
    """A figure in Markdown."""
    return f"![{drawing.text}]({IMAGES}/{drawing.name}.svg)"


def study_sections(experiment: Experiment, texts: Mapping[str, str]) -> Section:
    """All studies, each under its title.

    Args:
        experiment: The data.
        texts: A text with placeholders by the name of the study; see :func:`placeholders`.
    """
    parts = [study_section(experiment, study, texts.get(study.name)) for study in experiment.studies.values()]
    return Section(
        "\n\n".join(part.text for part in parts), tuple(drawing for part in parts for drawing in part.drawings)
    )


def study_section(experiment: Experiment, study: Any, text: str | None) -> Section:  # noqa: ANN401
    """Paragraph, plot and table of one study, as far as it has been run."""
    found = _points(experiment, study)
    measured = [(label, entry) for label, _, entry in found if entry is not None]
    lines = [f"### {study.title}"]
    absent = [name for _, name, entry in found if entry is None]
    drawings: tuple[Drawing, ...] = ()
    if any("mse" in entry.figures for _, entry in measured):
        drawings = (_study_drawing(study, found),)
        default = next(iter(experiment.entries(study.protocol, [OURS])), None)
        if text:
            lines.append(text.format_map(placeholders(study, found, default)))
        lines += [show(drawings[0]), _study_table(study, measured, default)]
        if study.protocol != TABLE:
            lines.append(protocol_sentences(experiment.tables[study.protocol]))
    if absent:
        names = ", ".join(f"`{name}`" for name in absent)
        lines.append(f"Not run yet: {names}. `{run_command(study.protocol, f'study:{study.name}')}`")
    return Section("\n\n".join(lines), drawings)


def _points(experiment: Experiment, study: Any) -> list[tuple[str | float, str, Entry | None]]:  # noqa: ANN401
    """Label, contender and what was measured of each point."""
    entries = {e.contender: e for e in experiment.entries(study.protocol, [point.contender for point in study.points])}
    return [(point.label, point.contender, entries.get(point.contender)) for point in study.points]


def written(label: str | float) -> str:
    """A label as it is shown."""
    return label if isinstance(label, str) else f"{label:g}"


def placeholders(
    study: Any,  # noqa: ANN401
    found: Sequence[tuple[str | float, str, Entry | None]],
    default: Entry | None,
) -> dict[str, Any]:
    """What the text of a study may name in braces.

    - ``axis``, ``points`` and ``measured``: what is changed, and how many points there are and have been run.
    - ``best``, ``worst``: labels of the points with the lowest and the highest error; ``best_mse``, ``worst_mse``.
    - ``fullest``, ``fullest_perplexity``: the label and the figure of the highest perplexity.
    - ``default``, ``default_mse``: label and error of GM-VQ's default.
    - ``best_against_default``, ``worst_against_default``: phrases with the difference in per cent, and in standard
      deviations over seeds.
    - ``usage``, ``perplexity``: their ranges; ``diverged``: a sentence.
    - ``mse_of[LABEL]``, ``psnr_of[LABEL]``, ``perplexity_of[LABEL]``, ``usage_of[LABEL]``, ``entropy_of[LABEL]``,
      ``train_of[LABEL]`` (MSE of training images) and ``against[LABEL]``: figures of one point.
    """
    known = [(label, entry) for label, _, entry in found if entry is not None and "mse" in entry.figures]
    best, worst = (pick(known, key=lambda point: point[1].figures["mse"].mean) for pick in (min, max))
    fullest = max(known, key=lambda point: point[1].mean("perplexity") or 0.0)
    own = next((written(label) for label, name, _ in found if name == OURS), "the default")
    return {
        "axis": study.axis,
        "points": str(len(found)),
        "measured": str(len(known)),
        "best": written(best[0]),
        "best_mse": with_spread(best[1], "mse"),
        "best_against_default": against(best[1], default),
        "worst": written(worst[0]),
        "worst_mse": with_spread(worst[1], "mse"),
        "worst_against_default": against(worst[1], default),
        "fullest": written(fullest[0]),
        "fullest_perplexity": with_spread(fullest[1], "perplexity"),
        "default": own,
        "default_mse": with_spread(default, "mse") if default else "not run yet",
        "usage": _range([entry for _, entry in known], "usage", " %"),
        "perplexity": _range([entry for _, entry in known], "perplexity"),
        "diverged": _diverged(found),
        **{name: _by_label(found, key) for key, name in _MEASURES.items()},
        "against": ByLabel({written(label): against(entry, default) for label, _, entry in found}),
    }


def _by_label(found: Iterable[tuple[str | float, str, Entry | None]], key: str) -> ByLabel:
    return ByLabel(
        {written(label): (with_spread(entry, key) if entry else "") or "not run yet" for label, _, entry in found}
    )


def against(entry: Entry | None, default: Entry | None) -> str:
    """The difference of an error from the default's, in words: per cent, and standard deviations over seeds."""
    if entry is None or default is None or "mse" not in entry.figures or "mse" not in default.figures:
        return "not run yet"
    if entry.contender == default.contender:
        return "the default itself"
    mine, its = entry.figures["mse"], default.figures["mse"]
    difference = mine.mean - its.mean
    word = "more" if difference > 0 else "less"
    phrase = f"{100 * abs(difference) / its.mean:.1f} % {word} than the default"
    if mine.std is None or its.std is None or not (mine.std or its.std):
        return phrase
    pooled = math.sqrt((mine.std**2 + its.std**2) / 2)
    return f"{phrase}, {abs(difference) / pooled:.1f} standard deviations"


def _range(entries: Sequence[Entry], key: str, unit: str = "") -> str:
    column = COLUMNS[key]
    values = [column.scale * value for entry in entries if (value := entry.mean(key)) is not None]
    if not values:
        return "not measured"
    low, high = (column.form.format(pick(values)) for pick in (min, max))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _diverged(found: Iterable[tuple[str | float, str, Entry | None]]) -> str:
    lost = [f"{written(label)} ({len(e.diverged)} of {len(e.rows)} runs)" for label, _, e in found if e and e.diverged]
    return f"Diverged: {', '.join(lost)}." if lost else "No run diverged."


def _study_drawing(study: Any, found: Sequence[tuple[str | float, str, Entry | None]]) -> Drawing:  # noqa: ANN401
    points = []
    for label, name, entry in found:
        figures = {key: entry.figures.get(key) if entry else None for key in _DRAWN}
        point: dict[str, Any] = {"label": label, "is_default": name == OURS}
        for key, figure in figures.items():
            point |= {key: figure.mean if figure else None, f"{key}_std": figure.std if figure else None}
        points.append(point)
    text = f"{study.title}: error, perplexity and codes in use against {study.axis}"
    data = {"axis": study.axis, "scale": study.scale, "points": points, "has_training": study.protocol != TABLE}
    return Drawing(f"study-{study.name}", text, data, plot_study)


def _study_table(study: Any, measured: Sequence[tuple[str | float, Entry]], default: Entry | None) -> str:  # noqa: ANN401
    keys = [key for key in _MEASURES if any(key in entry.figures for _, entry in measured)]
    header = [study.axis, *(COLUMNS[key].header for key in keys), "MSE against the default", "Seeds"]
    rows = []
    for label, entry in measured:
        shown = f"**{written(label)}**" if entry.contender == OURS else written(label)
        cells = [with_spread(entry, key, spread=COLUMNS[key].spread) for key in keys]
        rows.append([shown, *cells, _change(entry, default), seeds(entry)])
    return markdown_table(header, rows)


def _change(entry: Entry, default: Entry | None) -> str:
    if default is None or entry.contender == OURS or "mse" not in entry.figures or "mse" not in default.figures:
        return ""
    return f"{100 * (entry.figures['mse'].mean / default.figures['mse'].mean - 1):+.1f} %"


def course_section(experiment: Experiment, names: Sequence[str], text: str | None) -> Section:
    """Entropy, perplexity and error through training, of variants of GM-VQ.

    Args:
        experiment: The data.
        names: Which contenders; none for the default and the first others that have such a course.
        text: A paragraph.
    """
    wanted = names or [name for name, one in experiment.contenders.items() if one.quantizer == OURS]
    entries = {entry.contender: entry for entry in experiment.entries(TABLE, wanted)}
    series = [line for name in wanted if name in entries and (line := _course(entries[name])) is not None]
    if not series:
        return Section(f"Not run yet. `{run_command(TABLE, OURS)}`")
    alternative = "Posterior entropy, perplexity and error of variants of GM-VQ through training"
    drawing = Drawing("course", alternative, series[: len(names) or _MOST_LINES], plot_course)
    return Section("\n\n".join([*([text] if text else []), show(drawing)]), (drawing,))


def _course(entry: Entry) -> dict[str, Any] | None:
    """Means over seeds at the steps that all runs have; None where no posterior entropy was logged."""
    courses = [row["course"] for row in entry.rows if row.get("course") and not row["diverged"]]
    courses = [course for course in courses if course.get("posterior_entropy")]
    if not courses:
        return None
    steps = courses[0]["step"]
    courses = [course for course in courses if course["step"] == steps]
    name = "default" if entry.contender == OURS else entry.contender.removeprefix(f"{OURS}:")
    means: dict[str, Any] = {"name": name, "step": steps}
    for key in ("posterior_entropy", "perplexity", "mse"):
        values = zip(*(course.get(key) or [None] * len(steps) for course in courses), strict=True)
        means[key] = [None if None in at else math.fsum(at) / len(at) for at in values]
    return means


def gradient_section(
    gradients: Mapping[str, Any] | None, text: str | None, plots: Sequence[tuple[str, str | None]] = ()
) -> Section:
    """Bias and variance of gradient estimators.

    Args:
        gradients: What gradients.py wrote.
        text: A paragraph.
        plots: What the gradients of a plot are taken with respect to, and by what the model was trained; all if there
            is none of them.
    """
    if gradients is None:
        return Section("Not run yet. `python benchmarks/leaderboard/gradients.py`")
    rows = gradients["rows"]
    looks = {name: look for look, name in enumerate(sorted({row["estimator"] for row in rows if row["bias"] > _BIAS}))}
    drawings = []
    there = dict.fromkeys(map(_kind, rows))
    for kind in [kind for kind in plots if tuple(kind) in there] or there:
        same = [row for row in rows if _kind(row) == tuple(kind) and row["estimator"] in looks]
        trained = f", in a model trained by {kind[1]}" if kind[1] else ""
        shown = f"Bias and variance of gradient estimators with respect to the {kind[0]}{trained}, against temperature"
        name = "-".join(part for part in ("gradients", *kind) if part)
        drawings.append(Drawing(name, shown, _gradient_columns(same, looks), plot_gradients))
    lines = [gradients.get("protocol", {}).get("sentence", ""), text or ""]
    for drawing in drawings:
        lines += [f"{drawing.text}:", show(drawing)]
    lines.append(_gradient_note(gradients))
    return Section("\n\n".join(line for line in lines if line), tuple(drawings))


def _kind(row: Mapping[str, Any]) -> tuple[str, str | None]:
    return row["with_respect_to"], row.get("trained_by")


def _gradient_columns(rows: Sequence[Mapping[str, Any]], looks: Mapping[str, int]) -> list[dict[str, Any]]:
    """Three posteriors from near one-hot to soft, of the largest codebook."""
    largest = max(row["codebook_size"] for row in rows)
    rows = [row for row in rows if row["codebook_size"] == largest]
    entropies = sorted({round(row["posterior_entropy"], 3) for row in rows})
    columns = []
    for entropy in dict.fromkeys((entropies[0], entropies[len(entropies) // 2], entropies[-1])):
        lines: dict[str, dict[str, Any]] = {}
        same = [row for row in rows if round(row["posterior_entropy"], 3) == entropy]
        for row in sorted(same, key=lambda row: row["temperature"] or 0.0):
            name = row["estimator"]
            line = lines.setdefault(name, {"estimator": name, "look": looks[name], "temperature": []})
            if row["temperature"] in line["temperature"]:
                raise ValueError(
                    f"'rows' must differ in what a plot shows, got {name} twice at the temperature "
                    f"{row['temperature']}. Say in page_studies.py what distinguishes them."
                )
            line["temperature"].append(row["temperature"])
            for key in ("bias", "bias_spread", "variance", "variance_spread"):
                line.setdefault(key, []).append(row.get(key))
        columns.append({"title": f"entropy {entropy:.2f} nats", "lines": [lines[name] for name in sorted(lines)]})
    return columns


def _gradient_note(gradients: Mapping[str, Any]) -> str:
    largest = max(row["codebook_size"] for row in gradients["rows"])
    versions = ", ".join(f"{name} {version}" for name, version in (gradients.get("versions") or {}).items())
    where = "; ".join(str(one) for one in (gradients.get("hardware"), versions) if one)
    commit = f"; commit {gradients['commit'][:12]}" if gradients.get("commit") else ""
    return (
        f"K = {largest}. Estimators without a temperature are horizontal lines; those that draw nothing have no "
        f"variance.{_unbiased(gradients['rows'])} {where}{commit}. All rows: "
        "`benchmarks/leaderboard/results/gradients.json`."
    )


def _unbiased(rows: Sequence[Mapping[str, Any]]) -> str:
    """Names the estimators whose bias is that of the noise in their draws, or of rounding."""
    biased = {row["estimator"] for row in rows if row["bias"] > 2 * row["standard_error"] + 1e-6}
    names = sorted({row["estimator"] for row in rows} - biased)
    return f" Within two standard errors of no bias throughout: {', '.join(names)}." if names else ""

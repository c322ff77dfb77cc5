"""Writes docs/experiment.md, its pictures and the tables of README.md and docs/which-quantizer.md from the results.

    python benchmarks/leaderboard/page.py [--check]

With --check nothing is written; the exit status says whether pages and pictures agree with the JSON. Rows come from
`gmvq compare --protocol`, the separate studies from gradients.py, refinement.py and ../speed.py, pictures of
reconstructions from pictures.py. The text is in page.md.j2, where no result is typed by hand.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

sys.path.append(str(Path(__file__).resolve().parent.parent))

from plots import plot_contenders, plot_course, plot_gradients, plot_study
from svg import Drawing
from tables import between_marks

from gmvq.experiments import CONTENDERS, GROUPS, PROTOCOLS, STUDIES, Entry, Study, Table, grid, printing, read_table

ROOT, SCRIPTS = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
PAGE, GUIDE, README, IMAGES = "docs/experiment.md", "docs/which-quantizer.md", "README.md", "images/experiment"
MARKED = "short protocols", "leaderboard/page.py"
"""Name and writer in the marks around the tables of README and guide."""
FIELD = GROUPS["all"]
"""The ranked contenders; the other contenders are points of studies."""
KINDS = ("short", "medium", "full")
"""Kinds of protocols by the length of training, which their names end in."""
OURS = "gaussian-mixture"
"""GM-VQ with its defaults: the page gives its rank, and studies compare with it."""
STUDIED = "cifar10-8x8-k1024-short"
"""The protocol of most studies, and of the plot over training."""
LEAST_USAGE = 0.95
"""Smallest average fraction of the codebook in use, over seeds, for a contender to be ranked."""
BIAS = 1e-4
"""An estimator whose bias never exceeds this is the exact gradient up to rounding, and is not drawn."""
SHOWN = {**printing.COLUMNS, "perplexity": printing.COLUMNS["perplexity"]._replace(form=".0f")}
OF_PROTOCOLS = ("mse", "psnr", "ssim", "lpips", "usage", "perplexity", "bits_per_pixel", "elbo_bits_per_dim",
                "iwae_bits_per_dim", "items_per_second", "mse_soft")  # fmt: skip
OF_STUDIES = ("mse", "mse_train", "psnr", "usage", "perplexity", "posterior_entropy")


def by_error(entries: Iterable[Entry]) -> list[Entry]:
    """Sorts entries by error, those without one last."""
    return sorted(entries, key=lambda entry: (math.inf if (mse := entry.mean("mse")) is None else mse, entry.contender))


class Experiment(NamedTuple):
    """All results: tables by protocol, and the separate studies if available."""

    tables: Mapping[str, Table]
    gradients: Mapping[str, Any] | None = None
    refinement: Mapping[str, Any] | None = None
    speed: Mapping[str, Any] | None = None

    def entries(self, protocol: str, names: Iterable[str] = FIELD) -> list[Entry]:
        """Returns the contenders of a protocol by error, with the speeds that were measured in turns on one machine."""
        if protocol not in self.tables:
            return []
        speeds = {row["contender"]: row for row in (self.speed or {"rows": []})["rows"] if row["protocol"] == protocol}
        found = []
        for entry in by_error(self.tables[protocol].entries(protocol, names)):
            own = {key: speeds.get(entry.contender, {}).get(key) for key in ("items_per_second", "relative")}
            rows = (row._replace(metrics=row.metrics and {**row.metrics, **own}) for row in entry.rows)
            found.append(entry._replace(rows=tuple(rows)))
        return found


def read(folder: Path = SCRIPTS / "results") -> Experiment:
    """Reads all results.

    Raises:
        ValueError: If a file has another format, or contains a run twice.
    """
    tables = {name: table for name in PROTOCOLS if (table := read_table(folder / f"{name}.json")) is not None}
    paths = [path for name in Experiment._fields[1:] if (path := folder / f"{name}.json").is_file()]
    studies = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    for name, found in studies.items():
        if found.get("format") != f"gmvq.{name}":
            raise ValueError(f"{name}.json must be of format 'gmvq.{name}', got {found.get('format')!r}. Renew it.")
    return Experiment(tables, **studies)


def figure(entry: Entry | None, key: str, spread: bool = True) -> str:
    """Formats mean ± standard deviation of a metric in one line, empty if there is no value."""
    text = "" if entry is None else SHOWN[key].written(entry.spread(key), spread=spread)
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def title(entry: Entry, bold: bool = False) -> str:
    """Returns the name of a contender; if requested GM-VQ with its defaults is bold."""
    name = CONTENDERS[entry.contender].title
    return f"**{name}**" if bold and entry.contender == OURS else name


def measured(keys: Iterable[str], entries: Sequence[Entry]) -> list[str]:
    """Returns the metrics that at least one entry has."""
    return [key for key in keys if any(entry.spread(key) is not None for entry in entries)]


def table(head: Sequence[str], labels: Iterable[Sequence[str]], entries: Iterable[Entry], keys: Iterable[str]) -> str:
    """Formats a table of entries: first label, metrics, other labels and the number of runs."""
    rows = []
    for (label, *more), entry in zip(labels, entries, strict=True):
        numbers = [figure(entry, key, spread=key in ("mse", "perplexity")) for key in keys]
        lost = f", {len(entry.diverged)} diverged" if entry.diverged else ""
        rows.append([label, *numbers, *more, f"{len(entry.rows) - len(entry.diverged)}{lost}"])
    return printing.markdown_table([head[0], *(SHOWN[key].header for key in keys), *head[1:], "Seeds"], rows)


def span(values: Iterable[float | None], form: str, scale: int = 1) -> str:
    """Formats the smallest and largest value as a range, or as one number if they are written the same."""
    ordered = sorted(scale * value for value in values if value is not None)
    low, high = (f"{ordered[place]:{form}}" for place in (0, -1)) if ordered else ("", "")
    return low if low == high else f"{low} to {high}"


def python(value: object) -> str:
    """Formats a value as Python code: JSON stores objects as mappings with a kind."""
    if not isinstance(value, Mapping):
        return repr(value)
    return f"{value['kind']}({', '.join(f'{key}={python(one)}' for key, one in value.items() if key != 'kind')})"


class Standing(NamedTuple):
    """Rank of GM-VQ under one protocol."""

    data: str
    ours: Entry | None
    ranked: list[Entry]  # by error
    left_out: list[tuple[Entry, str]]  # with the reason
    place: int | None  # GM-VQ's, from 1; None if it is not ranked
    rival: Entry | None  # the best, or the second if GM-VQ is the best; None without both
    gap: tuple[float, float] | None  # GM-VQ's error minus its rival's, and that relative to its rival's
    deviation: float | None  # standard deviation of the best, over seeds
    within: bool  # GM-VQ is the best, or its gap is at most that deviation
    is_narrow: bool  # GM-VQ is the best by at most that deviation


def standing(experiment: Experiment, protocol: str) -> Standing:
    """Ranks the contenders of a protocol, without those that leave codes unused or diverge."""
    entries, ranked, left_out = experiment.entries(protocol), [], []
    for entry in entries:
        usage = entry.mean("usage")
        if entry.diverged:
            left_out.append((entry, f"{len(entry.diverged)} of {len(entry.rows)} runs diverged"))
        elif usage is None or entry.mean("mse") is None:
            left_out.append((entry, "no codes to count" if usage is None else "no error measured"))
        elif usage < LEAST_USAGE:
            left_out.append((entry, f"{100 * usage:.1f} % in use"))
        else:
            ranked.append(entry)
    ours = next((entry for entry in entries if entry.contender == OURS), None)
    place = ranked.index(ours) + 1 if ours in ranked else None
    rival = ranked[place == 1] if place and len(ranked) > 1 else None
    mine, its = (math.nan if one is None else one.mean("mse") or math.nan for one in (ours, rival))
    best = ranked[0].spread("mse") if ranked else None
    deviation = None if best is None else best.std
    near = deviation is not None and abs(mine - its) <= deviation
    gap = None if rival is None else (mine - its, (mine - its) / its)
    data = PROTOCOLS[protocol].title.split(",")[0]
    return Standing(data, ours, ranked, left_out, place, rival, gap, deviation, place == 1 or near, place == 1 and near)


def guide_rows(experiment: Experiment, protocols: Sequence[str], shown: Sequence[str]) -> list[tuple[Entry, list[str]]]:
    """Returns errors, usage and speed of contenders, those with most data first, then by their mean log error."""
    tables, lines = [{entry.contender: entry for entry in experiment.entries(name, shown)} for name in protocols], []
    for name in {name for table in tables for name in table}:
        there = [table[name] for table in tables if name in table]
        errors = [math.log(mse) for entry in there if (mse := entry.mean("mse"))]
        ratios = [math.log(ratio) for entry in there if (ratio := entry.mean("relative"))]
        found = [
            figure(entry, "mse") + (f" ({len(entry.diverged)} diverged)" if entry and entry.diverged else "")
            for entry in (table.get(name) for table in tables)
        ]
        speed = f"{math.exp(math.fsum(ratios) / len(ratios)):.2f}" if ratios else ""
        line = [*found, span((entry.mean("usage") for entry in there), ".0f", 100), speed]
        lines.append(((-len(errors), math.fsum(errors) / max(1, len(errors)), name), there[0], line))
    return [(entry, line) for _, entry, line in sorted(lines, key=lambda line: line[0])]


class Ablation(NamedTuple):
    """Results of a study."""

    entries: list[Entry]  # of the finished points
    labels: list[tuple[str, str]]  # of the entries, bold for the default, and their errors relative to the default's
    of: dict[str, dict[str, str]]  # metrics by label, and "against", the difference from the default in words
    absent: list[str]  # contenders without runs
    lost: list[str]  # labels of the points with diverged runs, and the number of these
    usage: str  # range of the codes in use, in percent
    drawing: Drawing | None  # None if no error was measured


def ablation(experiment: Experiment, study: Study) -> Ablation:
    """Compares the points of a study with the default."""
    runs = {entry.contender: entry for entry in experiment.entries(study.protocol, [p.contender for p in study.points])}
    default = next((entry.mean("mse") for entry in experiment.entries(study.protocol, [OURS])), None)
    found, points = Ablation([], [], {}, [], [], "", None), []
    for point in study.points:
        entry, is_default = runs.get(point.contender), point.contender == OURS
        label = f"{point.label}".removesuffix(".0")
        spreads = {key: entry and entry.spread(key) for key in ("mse", "mse_train", "perplexity", "usage")}
        points.append({"label": point.label, "is_default": is_default, **spreads})
        change = 100 * (spreads["mse"].mean / default - 1) if spreads["mse"] and default else None
        found.of[label] = {key: figure(entry, key) or "not run yet" for key in OF_STUDIES} | {"against": "not run yet"}
        found.of[label]["entropy"] = found.of[label].pop("posterior_entropy")
        if change is not None:
            found.of[label]["against"] = f"{abs(change):.1f} % {'more' if change > 0 else 'less'} than the default"
        if entry is None:
            found.absent.append(point.contender)
            continue
        found.entries.append(entry)
        difference = "" if change is None or is_default else f"{change:+.1f} %"
        found.labels.append((f"**{label}**" if is_default else label, difference))
        found.lost.extend([f"{label} ({len(entry.diverged)} of {len(entry.rows)} runs)"] if entry.diverged else [])
    text = f"{study.title}: error, perplexity and codes in use against {study.axis}"
    data = {"axis": study.axis, "scale": study.scale, "points": points, "has_training": study.protocol != STUDIED}
    drawing = Drawing(f"study-{study.name}", text, data, plot_study) if any(one["mse"] for one in points) else None
    return found._replace(usage=span((entry.mean("usage") for entry in found.entries), ".1f", 100), drawing=drawing)


class Robustness(NamedTuple):
    """What a contender has over the grid of settings; the best of a setting is the lowest error of all contenders."""

    contender: str
    mean: float  # geometric mean of its error over the best, at each setting of each data set
    worst: float  # largest of these quotients; infinite if a run diverged
    where: str  # data and setting of the worst
    errors: list[float | None]  # its largest error on each data set
    usage: float  # least share of the codes in use
    count: int  # runs


def robustness(experiment: Experiment) -> tuple[list[str], list[Robustness], int]:
    """Returns the data sets of the grid, its contenders by their worst case, and the number of missing runs."""
    protocols = [name for name in PROTOCOLS if name.endswith("-grid")]
    errors: dict[tuple[str, str], dict[str, float]] = {}
    found: dict[str, list[tuple[str, str, Entry]]] = {}
    missing = 0
    for protocol in protocols:
        entries = {one.contender: one for one in experiment.entries(protocol, GROUPS["grid"])}
        missing += sum(name not in entries for name in GROUPS["grid"])
        for base in grid.FIELD:
            for place in grid.settings(base):
                if (entry := entries.get(place.name(base))) is not None:
                    mse = math.inf if entry.diverged else entry.mean("mse") or math.inf
                    errors.setdefault((protocol, place.label), {})[base] = mse
                    found.setdefault(base, []).append((protocol, place.label, entry))
    lines = []
    for base, there in found.items():
        ratios, highest = [], dict.fromkeys(protocols, 0.0)
        for protocol, label, _ in there:
            at = errors[protocol, label]
            least = min(at.values())
            # where all diverge, each is as good as the best
            ratio = at[base] / least if math.isfinite(least) else 1.0
            ratios.append((ratio, f"{PROTOCOLS[protocol].title.split(',')[0]}, {label}"))
            highest[protocol] = max(highest[protocol], at[base])
        mean = math.exp(math.fsum(math.log(ratio) for ratio, _ in ratios) / len(ratios))
        usage = min(entry.mean("usage") or 0.0 for _, _, entry in there)
        own = [highest[name] or None for name in protocols]
        runs = {row.key for _, _, entry in there for row in entry.rows}
        lines.append(Robustness(base, mean, *max(ratios), own, usage, len(runs)))
    titles = [PROTOCOLS[name].title.split(",")[0] for name in protocols]
    return titles, sorted(lines, key=lambda line: (line.worst, line.mean)), missing


def robustness_table(titles: Sequence[str], lines: Iterable[Robustness]) -> str:
    """Formats the table of the grid."""
    rows = []
    for one in lines:
        highest = ["" if error is None else f"{1e3 * error:.2f}" for error in one.errors]
        figures = [f"{one.mean:.3f}", f"{one.worst:.2f}", *highest, f"{100 * one.usage:.0f}", f"{one.count}"]
        rows.append([title(Entry(one.contender, ()), bold=True), one.where, *figures])
    header = ["Contender", "Worst at", "Mean", "Worst", *(f"Highest MSE (1e-3), {name}" for name in titles)]
    return printing.markdown_table([*header, "Least usage (%)", "Runs"], rows, 2)


def contenders_drawing(experiment: Experiment, kind: str) -> Drawing:
    """Draws error against perplexity for all finished protocols of a kind."""
    panels = []
    for protocol in (name for name in experiment.tables if name.endswith(f"-{kind}")):
        points = []
        for entry in experiment.entries(protocol):
            spreads = {key: entry.spread(key) for key in ("mse", "perplexity")}
            if None not in spreads.values():
                is_used, is_ours = (entry.mean("usage") or 0.0) >= LEAST_USAGE, entry.contender == OURS
                points.append({"name": entry.contender, **spreads, "is_used": is_used, "is_ours": is_ours})
        size = experiment.tables[protocol].protocols[protocol]["codebook_size"]
        panels += [{"title": PROTOCOLS[protocol].title, "codebook_size": size, "points": points}] if points else []
    text = f"Error against perplexity of all contenders, {kind} protocols, a panel for each data set"
    return Drawing(f"contenders-{kind}", text, panels, plot_contenders)


def course_drawing(experiment: Experiment) -> Drawing:
    """Draws means over seeds at common steps, for variants of GM-VQ whose posterior entropy was logged."""
    names = [name for name, one in CONTENDERS.items() if one.quantizer == OURS]
    series = []
    for entry in sorted(experiment.entries(STUDIED, names), key=lambda entry: names.index(entry.contender)):
        courses = [row.course for row in entry.rows if row.course.get("posterior_entropy") and row.diverged is None]
        courses = [course for course in courses if course["step"] == courses[0]["step"]]
        if courses:
            name = "default" if entry.contender == OURS else entry.contender.removeprefix(f"{OURS}:")
            series.append({"name": name, "step": courses[0]["step"]})
            for key in ("posterior_entropy", "perplexity", "mse"):
                values = zip(*(course.get(key) or [None] * len(course["step"]) for course in courses), strict=True)
                series[-1][key] = [None if None in at else math.fsum(at) / len(at) for at in values]
    text = "Posterior entropy, perplexity and error of variants of GM-VQ through training"
    return Drawing("course", text, series[:6], plot_course)


def gradient_drawings(rows: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """Draws bias and variance of estimators in a model trained by the defaults, for the largest codebook."""
    largest, drawings = max((row["codebook_size"] for row in rows), default=0), []
    names = sorted({row["estimator"] for row in rows if row["bias"] > BIAS})
    rows = [row for row in rows if row["codebook_size"] == largest and row["trained_by"] == "straight-through"]
    for kind in ("encoder", "codebook") if rows else ():
        text = f"Bias and variance of gradient estimators with respect to the {kind}, in a model trained by "
        data = {"names": names, "rows": [row for row in rows if row["with_respect_to"] == kind]}
        name = f"gradients-{kind}-straight-through"
        drawings.append(Drawing(name, f"{text}straight-through, against temperature", data, plot_gradients))
    return drawings


def unbiased(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the estimators whose bias is explained by the noise of their draws, or by rounding."""
    biased = {row["estimator"] for row in rows if row["bias"] > 2 * row["standard_error"] + 1e-6}
    return sorted({row["estimator"] for row in rows} - biased)


def refined(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns a row for each number of steps, sorted by the error of the encoder's codes."""
    before = {(row["contender"], row["seed"]): row["mse"] for row in rows if row["steps"] == 0}
    lines = []
    for row in rows:
        key = row["contender"], row["seed"]
        change = f"{row['mse'] / before[key] - 1:+.1%}" if row["steps"] else ""
        numbers = [f"{row['steps']}", f"{row['mse'] * 1e3:.3f}", change, f"{row['perplexity']:.0f}"]
        costs = [f"{row['milliseconds_per_image']:.1f}", f"{row['decoder_passes']}"]
        lines.append(((before[key], *key, row["steps"]), [CONTENDERS[key[0]].title, *numbers, *costs]))
    return [line for _, line in sorted(lines)]


def files(experiment: Experiment, root: Path = ROOT) -> dict[Path, str | Drawing | None]:
    """Returns pages and pictures to write by path, and None for pictures that no page shows."""
    standings = {name: standing(experiment, name) for name in experiment.tables}
    ablations = {name: ablation(experiment, study) for name, study in STUDIES.items()}
    made = [contenders_drawing(experiment, kind) for kind in KINDS]
    made += [one.drawing for one in ablations.values() if one.drawing is not None]
    made += [course_drawing(experiment), *gradient_drawings((experiment.gradients or {"rows": []})["rows"])]
    drawings, folder = {drawing.name: drawing for drawing in made if drawing.data}, root / "docs" / IMAGES
    variables = {
        **{kind: [name for name in PROTOCOLS if name.endswith(f"-{kind}")] for kind in KINDS},
        "standings_of": lambda names: [standings[name] for name in names if name in standings],
        "pictured": [name for name in PROTOCOLS if (folder / f"reconstructions-{name}.jpg").is_file()],
        "robustness": robustness(experiment),
        "experiment": experiment, "drawings": drawings, "standings": standings, "ablations": ablations,
    }  # fmt: skip
    pictures = {folder / f"{name}.svg": drawing for name, drawing in drawings.items()}
    return {**dict.fromkeys(folder.glob("*.svg")), **pictures, **pages(variables, root)}


def pages(variables: Mapping[str, Any], root: Path) -> dict[Path, str]:
    """Renders the texts by path, from variables of the template and the names of this module."""
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(SCRIPTS), extensions=["jinja2.ext.do"], **options)
    environment.filters["n"] = "{:,}".format
    template: Any = environment.get_template("page.md.j2").make_module({**globals(), **variables})
    texts = {PAGE: f"{template}", GUIDE: template.guide(), README: template.excerpt()}
    made = {root / name: re.sub(r"\n{3,}", "\n\n", text.strip()) for name, text in texts.items()}
    for path in (root / GUIDE, root / README):
        made[path] = between_marks(path.read_text("utf-8"), made[path], *MARKED)
    return {**made, root / PAGE: made[root / PAGE] + "\n"}


def update(wanted: Mapping[Path, str | Drawing | None], check: bool = False) -> list[Path]:
    """Updates files that differ from the wanted content, or only checks them, and returns them."""
    stale = []
    for path, what in wanted.items():
        if what.is_in(path) if isinstance(what, Drawing) else path.is_file() and path.read_text("utf-8") == what:
            continue
        stale.append(path)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if what is not None:
                path.write_text(what.svg() if isinstance(what, Drawing) else what, encoding="utf-8")
    return stale


def main() -> int:
    """Writes or checks pages and pictures."""
    check = "--check" in sys.argv[1:]
    stale = update(files(read()), check)
    print(*(f"{path.relative_to(ROOT)} is not what the JSON says" for path in stale if check), sep="\n")
    return check and bool(stale)


if __name__ == "__main__":
    sys.exit(main())

"""Writes docs/experiment.md, its figures and the tables of README.md and docs/which-quantizer.md from the results.

    python benchmarks/leaderboard/page.py [--check]

With --check nothing is written; the exit status says whether pages and figures hold what the JSON says. Rows come from
`gmvq compare --protocol`, the study of gradients from gradients.py, conclusions from texts.py, and the pictures of
reconstructions from page_pictures.reconstructions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent))

import texts
from page_paper import paper_section
from page_plots import plot_contenders
from page_rows import OURS, Experiment, read_gradients, read_refinement, read_speed, read_tables
from page_studies import IMAGES, TABLE, Section, course_section, gradient_section, show, study_sections
from page_svg import Drawing
from page_tables import guide, markdown_table, protocol_section, refinement_section, run_command, same_for_all
from page_verdict import LEAST_USAGE, outcome, verdict
from tables import between_marks

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PAGE = "docs/experiment.md"
GUIDE = "docs/which-quantizer.md"
README = "README.md"
SHOWN = (
    OURS, "vector-ema-4-light", "vector-affine", "vector-cosine", "vector-ema", "vector", "finite-scalar", "latent",
    "lookup-free", "binary-spherical", "simvq", "gaussian-codes",
)  # fmt: skip
"""The contenders in the README: GM-VQ, the strongest recipes of VQ-VAE, and what libraries have beside them."""
MARKED = "short protocols", "leaderboard/page.py"
"""Name and writer in the marks around the tables of README and guide."""


class Files(NamedTuple):
    """What should be written.

    Attributes:
        texts: Pages by path.
        drawings: Figures by path.
    """

    texts: dict[Path, str]
    drawings: dict[Path, Drawing]

    def stale(self) -> list[Path]:
        """The files that do not hold what they should."""
        pages = [path for path, text in self.texts.items() if not path.is_file() or path.read_text("utf-8") != text]
        folders = {path.parent for path in self.drawings}
        unknown = [path for folder in folders for path in folder.glob("*.svg") if path not in self.drawings]
        return [*pages, *(path for path, drawing in self.drawings.items() if not drawing.is_in(path)), *sorted(unknown)]

    def write(self) -> None:
        """Writes what is stale, and removes figures of no page."""
        for path in self.stale():
            if path not in self.texts and path not in self.drawings:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            text = self.texts[path] if path in self.texts else self.drawings[path].svg()
            path.write_text(text, encoding="utf-8")


def from_repository(results: Path = RESULTS) -> Experiment:
    """What gmvq.experiments says and what has been run."""
    from gmvq.experiments import CONTENDERS, GROUPS, PROTOCOLS, STUDIES

    tables = read_tables(results, PROTOCOLS)
    measured = read_gradients(results), GROUPS["all"], read_refinement(results), read_speed(results)
    return Experiment(CONTENDERS, STUDIES, PROTOCOLS, tables, *measured)


def files(experiment: Experiment, root: Path = ROOT, said: Any = texts) -> Files:  # noqa: ANN401
    """The pages and figures of an experiment.

    Args:
        experiment: The data.
        root: The repository; its README, its decision guide and its pictures are read.
        said: Module of the texts.
    """
    page = experiment_page(experiment, root, said)
    drawings = {root / "docs" / IMAGES / f"{drawing.name}.svg": drawing for drawing in page.drawings}
    marked = {README: _excerpt(experiment), GUIDE: guide(experiment)}
    pages = {
        root / name: between_marks((root / name).read_text("utf-8"), text, *MARKED) for name, text in marked.items()
    }
    return Files({root / PAGE: page.text, **pages}, drawings)


def _excerpt(experiment: Experiment) -> str:
    """What the README shows: who leads, and the rows of the guide that most readers look for."""
    tables = [experiment.tables[name]["protocol"] for name in experiment.named("-short") if name in experiment.tables]
    shared = dict.fromkeys(f"{same_for_all(protocol)}." for protocol in tables)
    note = [
        "Squared error of hard codes on held-out images, mean ± standard deviation over seeds, or one seed.",
        *shared,
        "Usage is the range over the data, speed that of training beside `vector`, the VQ-VAE as published.",
        "[Protocols, hardware, ablations and the other contenders](docs/experiment.md).",
    ]
    return f"{outcome(experiment)}\n\n{guide(experiment, SHOWN, ' '.join(note))}"


def experiment_page(experiment: Experiment, root: Path, said: Any) -> Section:  # noqa: ANN401
    """The page in the order of reading."""
    ablations = study_sections(experiment, said.STUDIES)
    course = course_section(experiment, said.COURSES, said.COURSE)
    gradients = gradient_section(experiment.gradients, said.GRADIENTS, said.GRADIENT_PLOTS)
    plots = _contender_section(experiment)
    parts = {
        "Short protocols": _protocols(experiment, "-short"),
        "Full protocols": _protocols(experiment, "-full"),
        "Error and use of the codebook": plots.text,
        "Reconstructions": _pictures(experiment, root),
        "Ablations": ablations.text,
        "The course of training": course.text,
        "Codes refined at encoding": refinement_section(experiment),
        "Gradients": gradients.text,
        "What the papers claim, and what we find": paper_section(experiment),
        "How to reproduce": _commands(experiment),
    }
    head = [
        "# The experiment",
        "Every quantizer under one frozen protocol: the same data, network, training and seeds. Written by `python "
        "benchmarks/leaderboard/page.py` from `benchmarks/leaderboard/results/*.json`; no figure is typed by hand.",
        verdict(experiment),
    ]
    body = [f"## {title}\n\n{text}" for title, text in parts.items() if text]
    drawings = (*plots.drawings, *ablations.drawings, *course.drawings, *gradients.drawings)
    return Section("\n\n".join([*head, *body]) + "\n", drawings)


def _protocols(experiment: Experiment, ending: str) -> str:
    kind = ending.strip("-")
    return "\n\n".join(
        f"### {experiment.title(name)}, {kind} training\n\n{protocol_section(experiment, name)}"
        for name in experiment.named(ending)
    )


def _contender_section(experiment: Experiment) -> Section:
    """The plot over contenders, for the protocols of each kind that have been run."""
    drawings = []
    for kind in ("short", "full"):
        panels = [panel for name in experiment.named(f"-{kind}") if (panel := _panel(experiment, name))["points"]]
        if panels:
            text = f"Error against perplexity of all contenders, {kind} protocols, a panel for each data set"
            drawings.append(Drawing(f"contenders-{kind}", text, panels, plot_contenders))
    if not drawings:
        return Section("")
    note = (
        "Low and to the right is good. GM-VQ at its defaults is the diamond; hollow points use less than "
        f"{100 * LEAST_USAGE:.0f} % of the codebook. Bars are standard deviations over seeds; the error is drawn "
        "logarithmically. Triangles at the upper edge lie above it; their error (1e-3) is beside the name. Names are "
        "those of the command line, see [contenders](#contenders)."
    )
    return Section("\n\n".join([note, *map(show, drawings)]), tuple(drawings))


def _panel(experiment: Experiment, protocol: str) -> dict[str, Any]:
    points = [
        {
            "name": entry.contender,
            **{key: entry.mean(key) for key in ("mse", "perplexity")},
            **{f"{key}_std": entry.std(key) for key in ("mse", "perplexity")},
            "is_used": (entry.mean("usage") or 0.0) >= LEAST_USAGE,
            "is_ours": entry.contender == OURS,
        }
        for entry in experiment.entries(protocol)
        if entry.mean("mse") is not None and entry.mean("perplexity") is not None
    ]
    size = experiment.tables[protocol]["protocol"]["codebook_size"] if points else 0
    return {"title": experiment.title(protocol), "codebook_size": size, "points": points}


def _pictures(experiment: Experiment, root: Path) -> str:
    """The pictures that are there."""
    lines = []
    for protocol in experiment.protocols:
        name = f"{IMAGES}/reconstructions-{protocol}.jpg"
        if (root / "docs" / name).is_file():
            title = experiment.title(protocol)
            lines += [f"{title}:", f"![Held-out images of {title}, and what each contender makes of them]({name})"]
    if not lines:
        return ""
    note = "Held-out images, and below them what each contender's codes keep. The error is that of the images shown."
    return "\n\n".join([note, *lines])


def _commands(experiment: Experiment) -> str:
    """How the tables, this page and the list of contenders are made."""
    runs = [run_command(name) for ending in ("-short", "-full") for name in experiment.named(ending)]
    of_studies = experiment.studies.values()
    studies = [run_command(TABLE, "studies")] if any(study.protocol == TABLE for study in of_studies) else []
    studies += [run_command(study.protocol, f"study:{study.name}") for study in of_studies if study.protocol != TABLE]
    scripts = [
        "python benchmarks/leaderboard/gradients.py --out benchmarks/leaderboard/results/gradients.json",
        "python benchmarks/speed.py --data FOLDER_OF_ALL_DATA --out benchmarks/leaderboard/results/speed.json",
        "python benchmarks/leaderboard/page.py",
    ]
    block = "\n".join([*runs, *studies, *scripts])
    said = (
        "Each command goes on where it was stopped and leaves rows alone that are there; the last writes this page. "
        "The full protocols need a GPU."
    )
    contenders = [_contender_row(name, experiment.contenders[name]) for name in experiment.field]
    table = markdown_table(["Contender", "Name", "Quantizer", "Options"], contenders, words=4)
    return f"{said}\n\n```sh\n{block}\n```\n\n### Contenders\n\n{table}"


def _contender_row(name: str, contender: Any) -> list[str]:  # noqa: ANN401
    return [contender.title, f"`{name}`", f"`{contender.quantizer}`", _options(contender.options)]


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={_python(value)}`" for key, value in options.items()) or "its defaults"


def _python(value: object) -> str:
    """A value as a constructor takes it: JSON writes objects as mappings with a kind."""
    if not isinstance(value, Mapping):
        return repr(value)
    arguments = ", ".join(f"{key}={_python(one)}" for key, one in value.items() if key != "kind")
    return f"{value['kind']}({arguments})" if "kind" in value else f"{{{arguments}}}"


def main() -> int:
    """Writes or checks."""
    made = files(from_repository())
    if "--check" in sys.argv[1:]:
        stale = made.stale()
        print(*(f"{path.relative_to(ROOT)} is not what the JSON says" for path in stale), sep="\n")
        return bool(stale)
    made.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())

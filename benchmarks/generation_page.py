"""Writes the tables and the figure of docs/generation.md from benchmarks/results, so that no number is typed by hand.

    python benchmarks/generation_page.py [--check]

With --check nothing is written; the exit status says whether the page agrees with the JSON. The JSON is that of
drawing.py, modelling.py, sharpening.py and sampling.py; missing results are noted on the page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from svg import DASHES, SERIES, Drawing, legend, new_figure, style
from tables import between_marks, read

from gmvq.experiments.printing import made_by, markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/generation.md"
FIGURE = ROOT / "docs/images/generation/sharpening.svg"
PRIORS = {
    "autoregressive": "autoregressive",
    "masked": "masked",
    "code-flow": "flow of codes",
    "latent-flow": "flow of latents",
    "n-gram": "n-grams",
    "frequencies": "frequencies",
}
WAYS = {
    "plain": "as it is",
    "pixels": "against a discriminator of pixels",
    "features": "against a discriminator of features",
    "distance": "with a distance of features",
    "both": "against the discriminator of features, with the distance",
    "diffusion decoder": "the same codes, decoded by diffusion",
}


CURVES = {
    "plain": "as it is",
    "pixels": "of pixels",
    "features": "of features",
    "distance": "distance",
    "both": "both",
}
"""Shorter names for the legend of the figure, which is one line."""


def number(value: float | None, form: str) -> str:
    """Formats a number, or a dash for None."""
    return "-" if value is None else format(value, form)


def made_with(result: Mapping[str, Any]) -> str:
    """Describes versions and hardware of a result."""
    versions = {name: result["versions"][name] for name in ("python", "torch", "gmvq") if name in result["versions"]}
    return f"{made_by([{**result, 'versions': versions}])}."


def drawing_text(result: Mapping[str, Any]) -> str:
    """Formats the judge's metrics of each prior."""
    rows = [
        [
            PRIORS[row["prior"]] + ("" if row["guidance"] == 1 else f", guidance {row['guidance']:g}"),
            number(row["bits_per_code"], ".3f"),
            number(row["agreement"], ".1%"),
            number(row["frechet"], ".2f"),
            number(row["precision"], ".2f"),
            number(row["recall"], ".2f"),
        ]
        for row in result["rows"]
    ]
    real = result["rows"][0]
    head = ("Prior", "Bits of a code", "Class that was asked for", "Fréchet distance", "Precision", "Recall")
    return "\n\n".join(
        [
            markdown_table(head, rows),
            f"The judge sees the class of {real['real_accuracy']:.1%} of the held-out images. Reconstructed training "
            f"images have a Fréchet distance of {real['reconstructed_frechet']:.2f}: what a perfect prior would reach. "
            f"{result['number']:,} images drawn by each. {made_with(result)}",
        ]
    )


def modelling_text(result: Mapping[str, Any]) -> str:
    """Formats bits of a token by tokenizer."""
    rows = [
        [
            row["title"],
            f"{row['psnr']:.2f}",
            f"{row['perplexity']:,.0f}",
            f"{row['bits_per_token']:.3f}",
            f"{row['n_gram_bits_per_token']:.3f}",
            f"{row['frequencies_bits_per_token']:.3f}",
            number(row["bits_per_dim"], ".4f"),
        ]
        for row in result["rows"]
    ]
    head = ("Tokenizer", "PSNR (dB)", "Perplexity", "Bits of a token", "by n-grams", "by frequencies", "Bits / dim")
    return "\n\n".join([markdown_table(head, rows), f"{result['about']} {made_with(result)}"])


def sharpening_text(result: Mapping[str, Any]) -> str:
    """Formats quality and cost of sharpening: means over the seeds."""
    forms = {"psnr": ".2f", "ssim": ".4f", "sharpness": ".1%", "frechet": ".2f", "kernel": ".3f", "precision": ".3f",
             "recall": ".3f"}  # fmt: skip
    rows = []
    for name, title in WAYS.items():
        of = [row for row in result["rows"] if row["name"] == name]
        if of:
            means = [format(mean(row[key] for row in of), form) for key, form in forms.items()]
            rows.append([title, str(len(of)), *means])
    head = ("Tokenizer", "Seeds", "PSNR (dB)", "SSIM", "Sharpness", "Fréchet", "Kernel", "Precision", "Recall")
    return "\n\n".join(
        [
            markdown_table(head, rows),
            f"{result['about']} {judge_text(result['judge'])} {made_with(result)}",
            "Held-out photographs, and below them what is made of their codes, in the order of the table:",
            "![Photographs, and the same through tokenizers](images/generation/sharpening.png)",
            "The course of training, where the discriminator of pixels or of features begins and after:",
            f"![Course of training with and without a discriminator]({FIGURE.relative_to(ROOT / 'docs')})",
        ]
    )


def judge_text(sees: Mapping[str, float]) -> str:
    """Describes the judge's distances for degraded real tiles."""
    return (
        f"For tiles that are averaged over 3x3 pixels, the Fréchet distance is {sees['blurred']:.2f}; with noise "
        f"of a standard deviation of 0.02 it is {sees['noisy']:.2f}, and with such a tint of each {sees['tinted']:.2f}."
    )


def sampling_text(result: Mapping[str, Any]) -> str:
    """Formats codes per second with and without the cache, and relative to GPT-2."""
    others = list(result["rows"][0]["cached_over"])
    rows = [
        [
            str(row["batch"]),
            f"{row['codes_per_second']['cached']:,.0f}",
            *(number(row["cached_over"].get(name), ".1f") for name in others),
        ]
        for row in result["rows"]
    ]
    head = ("Images at a time", "Codes a second", *(f"over {name}" for name in others))
    return "\n\n".join([markdown_table(head, rows), f"{result['protocol']} {made_with(result)}"])


def plot_sharpening(curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Figure:
    """Plots PSNR of held-out images with and without a discriminator, its accuracy, and the weight of its loss."""
    figure = new_figure(720, 230)
    handles: dict[str, Any] = {}
    panels = (("psnr", "PSNR (dB), held out", 1), ("discriminator_accuracy", "discriminator's accuracy (%)", 100),
              ("adversarial_weight", "adversarial weight", 1))  # fmt: skip
    for axes, (key, title, scale) in zip(figure.subplots(1, 3), panels, strict=True):
        style(axes, title, "step")
        for place, name in enumerate(curves):
            points = curves[name].get(key)
            if points:
                steps, values = zip(*points, strict=True)
                (handles[CURVES[name]],) = axes.plot(
                    steps, [scale * value for value in values], color=SERIES[place], linestyle=DASHES[place],
                    linewidth=1.5,
                )  # fmt: skip
    legend(figure, handles, len(handles))
    return figure


def drawing_of(result: Mapping[str, Any]) -> Drawing:
    """Creates the figure of the metrics over training."""
    text = "PSNR, accuracy of the discriminator and weight of its loss over training, with and without it"
    return Drawing(FIGURE.stem, text, result["curves"], plot_sharpening)


TEXTS = {
    "drawing": drawing_text,
    "modelling": modelling_text,
    "sharpening": sharpening_text,
    "sampling": sampling_text,
}


def page(text: str) -> str:
    """Returns the page with each result between its marks."""
    for name, write in TEXTS.items():
        result = read(f"{name}.json", RESULTS)
        text = between_marks(text, "Not measured yet." if result is None else write(result), name, Path(__file__).name)
    return text


def main() -> int:
    """Writes or checks the page and its figure."""
    written, sharpened = page(PAGE.read_text()), read("sharpening.json", RESULTS)
    drawing = None if sharpened is None else drawing_of(sharpened)
    stale = [PAGE] if PAGE.read_text() != written else []
    stale += [FIGURE] if drawing is not None and not drawing.is_in(FIGURE) else []
    if "--check" in sys.argv:
        print(*[f"{path.relative_to(ROOT)} is not what the JSON says" for path in stale], sep="\n")
        return bool(stale)
    PAGE.write_text(written)
    if drawing is not None and FIGURE in stale:
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        FIGURE.write_text(drawing.svg(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

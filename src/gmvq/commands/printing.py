"""How the result of each verb reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from gmvq import benchmarking, leaderboard
from gmvq.comparison import footnote, tables

_SHOWN = (
    ("psnr", "PSNR", "{:.2f} dB"),
    ("ssim", "SSIM", "{:.4f}"),
    ("mse", "mean squared error", "{:.3g}"),
    ("usage", "codes in use", "{:.1%}"),
    ("perplexity", "perplexity", "{:.1f}"),
    ("bits_per_pixel", "bits per pixel of the codes", "{:.4f}"),
    ("elbo_bits_per_dim", "ELBO", "{:.3f} bits/dim"),
    ("iwae_bits_per_dim", "importance-weighted bound", "{:.3f} bits/dim"),
    ("albo_bits_per_dim", "ALBO", "{:.3f} bits/dim"),
    ("posterior_entropy", "posterior entropy", "{:.3f} nats/token"),
    ("mutual_information", "mutual information", "{:.3f} nats/token"),
    ("images", "held-out images", "{:,}"),
    ("seconds", "training", "{:.1f} s"),
)
_JUDGED = (
    ("agreement", "class seen in drawn images", "{:.1%}"),
    ("real_accuracy", "class seen in held-out images", "{:.1%}"),
    ("frechet", "Fréchet distance", "{:.3f}"),
    ("reconstructed_frechet", "of reconstructed images", "{:.3f}"),
    ("kernel", "kernel distance", "{:.4f}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("fid", "FID", "{:.2f}"),
    ("reconstructed_fid", "of reconstructed images", "{:.2f}"),
    ("kid", "KID", "{:.4f}"),
)
_PRIOR_SHOWN = (
    ("bits_per_code", "bits of a held-out code", "{:.3f}"),
    ("unconditional_bits_per_code", "the same without its class", "{:.3f}"),
    ("n_gram_bits_per_code", "by n-grams", "{:.3f}"),
    ("frequencies_bits_per_code", "by frequencies", "{:.3f}"),
    ("bits_per_dim", "codes and image given them", "{:.3f} bits/dim"),
    ("images", "held-out images", "{:,}"),
    ("seconds", "training", "{:.1f} s"),
)
_DECODER_SHOWN = (
    ("psnr", "PSNR", "{:.2f} dB"),
    ("own_psnr", "of the tokenizer's decoder", "{:.2f} dB"),
    ("ssim", "SSIM", "{:.4f}"),
    ("own_ssim", "of the tokenizer's decoder", "{:.4f}"),
    ("sharpness", "high-frequency energy, originals 1", "{:.2f}"),
    ("own_sharpness", "of the tokenizer's decoder", "{:.2f}"),
    ("images", "held-out images", "{:,}"),
    ("images_per_second", "decoding", "{:.1f} images/s"),
    ("seconds", "training", "{:.1f} s"),
)
_FILES_SHOWN = 20


def train(result: Mapping[str, Any], console: Console) -> None:
    """Figures, and where the report is."""
    console.print(_metrics(result["metrics"]))
    console.print(f"Report: {result['report']}", markup=False, highlight=False, soft_wrap=True)


def evaluate(result: Mapping[str, Any], console: Console) -> None:
    """Figures with their protocol: never a bare number."""
    console.print(_metrics(result["metrics"]))
    _say(console, f"{result['run']} on {result['data']} ({result['part']}). {result['metrics']['protocol']}")


def reconstruct(result: Mapping[str, Any], console: Console) -> None:
    """PSNR of each file, and the mean."""
    for file in result["files"][:_FILES_SHOWN]:
        _say(console, f"{_decibels(file['psnr'])}  {file['file']}")
    _more(console, len(result["files"]))
    _say(console, f"{_decibels(result['psnr'])}  mean of {result['images']} image(s), of the 8-bit files")


def tokenize(result: Mapping[str, Any], console: Console) -> None:
    """How much was written."""
    _say(
        console,
        f"{result['images']:,} image(s) as {result['tokens']:,} codes of {result['codebook_size']:,}: {result['out']}, "
        f"{result['bytes']:,} bytes",
    )


def detokenize(result: Mapping[str, Any], console: Console) -> None:
    """Where the images are."""
    for file in result["files"][:_FILES_SHOWN]:
        _say(console, file)
    _more(console, len(result["files"]))


def info(result: Mapping[str, Any], console: Console) -> None:
    """The model, the run and its figures."""
    rows = Table.grid(padding=(0, 2))
    record = result["record"] or {}
    model = {**result["model"], "parameters": f"{result['parameters']:,}", "fingerprint": result["fingerprint"][:12]}
    data = record.get("data") or {}
    run = {"data": data.get("name"), "hardware": record.get("hardware"), "command": record.get("command")}
    for name, value in (*model.items(), *((name, value) for name, value in run.items() if value)):
        rows.add_row(name.replace("_", " "), str(value))
    console.print(rows, markup=False)
    if result["metrics"]:
        console.print(_metrics(result["metrics"]))


def compare(result: Mapping[str, Any], console: Console) -> None:
    """A table for each recipe or of the protocol, and where all figures are."""
    if "contenders" in result:
        table = leaderboard.Table(result["protocol"])
        for row in result["rows"]:
            table.add(row)
        console.print(leaderboard.printed(table, result["contenders"]))
        _say(console, f"All figures: {result['json']}")
        return
    for table in tables(result):
        console.print(table)
    _say(console, footnote(result["protocol"]))
    _say(console, f"All figures: {result['markdown']}, {result['json']}")


def bench(result: Mapping[str, Any], console: Console) -> None:
    """A table for each section, and where all figures are."""
    for table in benchmarking.tables(result):
        console.print(table)
    _say(console, benchmarking.footnote(result["protocol"]))
    pictures = [result["plot"]] if result["plot"] else []
    _say(console, f"All figures: {', '.join([result['markdown'], result['json'], *pictures])}")


def fit_prior(result: Mapping[str, Any], console: Console) -> None:
    """Bits of held-out codes, and what to do next."""
    console.print(_metrics(result["metrics"], _PRIOR_SHOWN))
    _say(console, f"Prior: {result['prior']}. Draw with: gmvq sample {result['run']} -n 64")
    _say(console, f"Drawn images beside real ones: {result['report']}")


def fit_decoder(result: Mapping[str, Any], console: Console) -> None:
    """Figures beside those of the tokenizer's own decoder, and what to do next."""
    console.print(_metrics(result["metrics"], _DECODER_SHOWN))
    run, decoder = result["run"], result["decoder"]
    _say(console, f"Decoder: {decoder}. Use it with: gmvq reconstruct {run} IN OUT --decoder {decoder}")


def judge(result: Mapping[str, Any], console: Console) -> None:
    """Figures, and what they are of."""
    figures = result["figures"]
    console.print(_metrics(figures, _JUDGED))
    known = "; FID and KID by Inception" if "fid" in figures else " (no FID and KID)"
    _say(
        console,
        f"{figures['drawn']:,} drawn and {figures['real']:,} held-out images, by the features of a classifier of these "
        f"data{known}. Drawn images above the nearest ones of the training: {result['out']}",
    )


def drawn(result: Mapping[str, Any], console: Console) -> None:
    """Where the pictures are."""
    _say(console, f"{result['images']} image(s): {result['out']}")


PRINTERS: dict[str, Callable[[Mapping[str, Any], Console], None]] = {
    "train": train,
    "evaluate": evaluate,
    "reconstruct": reconstruct,
    "tokenize": tokenize,
    "detokenize": detokenize,
    "info": info,
    "fit-prior": fit_prior,
    "fit-decoder": fit_decoder,
    "sample": drawn,
    "complete": drawn,
    "interpolate": drawn,
    "swap": drawn,
    "judge": judge,
    "compare": compare,
    "bench": bench,
}


def _metrics(metrics: Mapping[str, Any], shown: Sequence[tuple[str, str, str]] = _SHOWN) -> Table:
    rows = Table.grid(padding=(0, 2))
    for key, name, form in shown:
        if metrics.get(key) is not None:
            rows.add_row(name, form.format(metrics[key]))
    return rows


def _decibels(figure: float | None) -> str:
    return "   exact" if figure is None else f"{figure:5.2f} dB"


def _more(console: Console, number: int) -> None:
    if number > _FILES_SHOWN:
        _say(console, f"... and {number - _FILES_SHOWN} more")


def _say(console: Console, text: str) -> None:
    # names of files are not markup, and a path that is broken over lines cannot be copied
    console.print(text, markup=False, highlight=False, soft_wrap=True)

import base64
import io
import json
import math
import re
import sys
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from gmvq.data import ArrayItems, ListItems
from gmvq.metrics import CompositeStatistics
from gmvq.modalities import Audio, Image, Series, Text, Vectors
from gmvq.models import Autoencoder, AutoencoderConfig
from gmvq.models.modes import evaluating
from gmvq.quantizers import QUANTIZERS
from gmvq.reports import exhibits, plots, write_report
from gmvq.reports.page import flat, read_record
from gmvq.reports.plots import Curve

METRICS = {
    "psnr": 26.43, "ssim": 0.81, "mse": 0.0024, "psnr_soft": 26.9, "mse_soft": 0.0021, "psnr_sampled": 25.2,
    "usage": 0.75, "perplexity": 11.3, "bits_per_pixel": 0.25, "posterior_entropy": 1.2, "elbo_bits_per_dim": 4.7,
    "iwae_bits_per_dim": 4.6, "albo_bits_per_dim": None, "seconds": 192.4, "some_new_metric": 1.5,
    "protocol": "Hard codes, 3 photographs.",
}  # fmt: skip


class Page(HTMLParser):
    """Pictures, links and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.images, self.identifiers, self.links, self.texts, self.labels = [], [], [], [], [], []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(attributes)
        self.labels.append(attributes.get("aria-label", ""))
        if "id" in attributes:
            self.identifiers.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])

    def handle_data(self, data):
        if self.tags[-1:] != ["style"]:
            self.texts.append(data)


def autoencoder(quantizer="gaussian-mixture", channels=3, modality=None, **changes) -> Autoencoder:
    torch.manual_seed(0)
    sizes = {"codebook_size": 16, "code_dim": 3, "width": 8, "blocks": 1, **changes}
    return Autoencoder(AutoencoderConfig(quantizer=quantizer, modality=modality or Image(channels), **sizes)).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def photographs(channels=3) -> ListItems:
    return ListItems(
        [noise(channels, 100, 131), noise(channels, 97, 70), noise(channels, 40, 120)], 2, ["a.png", "b/c.jpg", "d"]
    )


def write_run(folder, *, metrics=None, steps=60, name="photos"):
    entries = [
        {
            "kind": "train",
            "step": step,
            "loss": 1 / step,
            "psnr": 20 + step / 10,
            "perplexity": 10.0,
            "a_new_term": -step,
        }
        for step in range(1, steps + 1)
    ]
    entries += [{"kind": "evaluation", "step": steps, "psnr": 25.0, "usage": 0.9, "ok": True, "note": "text"}]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, entries)) + '\n[1]\n{"step": "x"}\n{"step": 7')
    (folder / "metrics.json").write_text(json.dumps(METRICS if metrics is None else metrics))
    run = {
        "format": "gmvq.run", "version": 1, "command": "gmvq train photos", "versions": {"torch": "2.13.0"},
        "hardware": "AMD EPYC, 2 cores", "commit": None, "run": {"name": "a", "training": {"steps": steps}},
        "data": {"name": name, "skipped": [{"path": "broken.png", "reason": "truncated"}]},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "config.json").write_text(json.dumps({"gmvq": "0.1.0", "fingerprint": "9f86d0"}))
    return folder


def report(folder, model, images, **options) -> Page:
    path = write_report(folder, model, images, **options)
    assert path == folder / "report.html"
    assert not list(folder.glob("*.partial"))
    return Page(path.read_text(encoding="utf-8"))


def opened(picture) -> np.ndarray:
    return np.asarray(PillowImage.open(io.BytesIO(base64.b64decode(picture["src"].split(",", 1)[1]))))


def counted(size, times) -> CompositeStatistics:
    """Statistics of some number of tokens of each code."""
    statistics = CompositeStatistics((size,))
    statistics.update(torch.arange(len(times)).repeat_interleave(torch.tensor(times))[:, None])
    return statistics


@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "vector", "vector-ema", "hierarchical", "none"])
def test_page_of_photographs(tmp_path, quantizer):
    images = photographs()
    page = report(write_run(tmp_path), autoencoder(quantizer), images)
    continuous = quantizer == "none"
    assert page.text.count("images") > 1
    assert ("codes learned from photos" in page.text) != continuous
    has_maps = quantizer not in ("none", "hierarchical")
    assert ("maps" in page.identifiers) == has_maps
    assert ("codebook" in page.identifiers) == has_maps
    assert ("where the tokenizer is unsure" in page.text) == (quantizer == "gaussian-mixture")
    for shown in (
        "26.43",
        "3:12",
        "A new term",
        "gmvq train photos",
        "skipped 1",
        "broken.png",
        "AMD EPYC, 2 cores",
        "9f86d0",
        "2.13.0",
    ):
        assert shown in page.text
    assert "Hard codes, 3 photographs." in page.text
    assert f"This tokenizer ({QUANTIZERS[quantizer].title}) encodes" in page.text
    for name in images.names:
        assert {name, f"{name}, reconstructed"} <= {picture["alt"] for picture in page.images}


def test_page_is_one_file_for_everyone(tmp_path):
    page = report(write_run(tmp_path), autoencoder(), photographs())
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(picture["src"].startswith("data:image/") and picture["alt"] for picture in page.images)
    assert all(int(picture["width"]) % opened(picture).shape[1] == 0 for picture in page.images)  # whole magnification
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", html)
    assert not re.findall(r"url\((?!#)|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert len(set(page.identifiers)) == len(page.identifiers)
    assert {link[1:] for link in page.links} <= set(page.identifiers)
    assert html.count("<svg") == html.count('role="img" aria-label=')
    assert not set(plots._VARIABLES) & set(re.findall(r"#\w{6}", html))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (2, 8), (3, 8), (4, 8), (5, 8)])
def test_small_images_of_any_channels(tmp_path, channels, size):
    images = ArrayItems(noise(30, channels, size, size), 2)
    page = report(write_run(tmp_path), autoencoder(channels=channels, downsampling=2), images)
    originals = [picture for picture in page.images if picture["alt"] in images.names]
    assert len(originals) == exhibits.SHOWN
    assert all("crisp" in picture["class"] for picture in originals)
    for picture, index in ((originals[0], 0), (originals[-1], 27)):  # spread evenly
        assert picture["alt"] == images.names[index]
        shown = opened(picture).reshape(size, size, -1)
        expected = images[index].movedim(0, -1).numpy()[..., : shown.shape[-1]]
        np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize(
    ("modality", "items"),
    [
        (Series(names=("x", "y")), ListItems([torch.randn(2, 40), torch.randn(2, 25)], 1, ["long", "short"])),
        (Vectors(names=("a", "b", "c")), ArrayItems(torch.randn(20, 3), 0)),
        (
            Audio(rate=8000, channels=1),
            ListItems([torch.randn(1, 4000).clamp(-1, 1) / 3, torch.zeros(1, 900)], 1, ["a.wav", "b.wav"]),
        ),
        (
            Text(vocabulary=("ß",)),
            ListItems([Text(vocabulary=("ß",)).encode(text) for text in ("Fuß &<b>", "and more")], 1, ["1", "2"]),
        ),
    ],
    ids=["series", "vectors", "audio", "text"],
)
@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "residual", "none"])
def test_page_of_other_modalities(tmp_path, modality, items, quantizer):
    model = autoencoder(quantizer, modality=modality, downsampling=modality.downsampling)
    page = report(write_run(tmp_path, metrics={"mse": 0.5}, name="made"), model, items)
    assert f"Held-out {modality.items} and what the" in page.text
    texts = [*(picture["alt"] for picture in page.images), *page.labels]
    for name in (items.names[0], f"{items.names[0]}, reconstructed"):
        assert any(text.startswith(name) for text in texts)
    assert not re.findall("image|pixel|photograph", page.text.replace("Hard codes, 3 photographs.", ""))


@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "none"])
def test_a_run_without_anything_says_so(tmp_path, quantizer):
    page = report(tmp_path, autoencoder(quantizer), photographs().subset([0]))
    for note in ("No metrics", "No curves", "run.json is missing"):
        assert note in page.text
    assert tmp_path.name in page.text  # the folder names the run


def test_without_images(tmp_path):
    page = report(write_run(tmp_path), autoencoder(), ArrayItems(noise(0, 3, 8, 8), 2))
    assert "No held-out images were given" in page.text
    assert "maps" not in page.identifiers
    assert "16 (100.0 %)" not in page.text


@pytest.mark.parametrize("broken", ["", "[1, 2]", "{", "null", '{"psnr": "high", "metrics": "none"}'])
def test_broken_files_are_left_out(tmp_path, broken):
    for name in ("run.json", "metrics.json", "log.jsonl", "config.json"):
        (tmp_path / name).write_text(broken)
    page = report(tmp_path, autoencoder(), photographs().subset([2]))
    assert "No metrics" in page.text
    assert "No curves" in page.text


def test_strings_are_escaped(tmp_path):
    evil = "<script>alert('1')</script>\"&"
    write_run(tmp_path, metrics={**METRICS, "protocol": evil, evil: 2.0}, name=evil)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write("\n" + json.dumps({"kind": "train", "step": 9, evil: 1.0}) + "\n")
    images = ArrayItems(noise(2, 3, 8, 8), 2, names=[evil, "b"])
    page = report(tmp_path, autoencoder(), images, title=evil)
    assert "script" not in page.tags
    assert page.text.count(evil) >= 4
    assert any(evil in picture["alt"] for picture in page.images)


def test_metrics_of_the_table(tmp_path):
    metrics = {
        "psnr": 26.43,
        "psnr_soft": 26.97,
        "mse": math.nan,
        "usage": 0.5,
        "perplexity": math.inf,
        "some_new_metric": 1.5,
    }
    page = report(write_run(tmp_path, metrics={"metrics": metrics}), autoencoder(), photographs().subset([2]))
    table = page.text[page.text.index("All metrics", page.text.index("Codebook")) :]
    assert re.search(r"PSNR 26.43 26.97 – +dB", table)
    assert re.search(r"MSE nan – –", table)
    assert re.search(r"Codes in use 50.0 +%", table)
    assert "Close to 16 means that all codes are used evenly." in table
    assert re.search(r"Some new metric 1.5", table)
    assert "SSIM" not in table


def test_counts_are_those_given_or_counted(tmp_path):
    model, images = autoencoder(), photographs()
    given = counted(16, list(range(16)))
    assert "15 (93.8 %)" in report(write_run(tmp_path), model, images, statistics=given).text
    with torch.no_grad(), evaluating(model):
        own = exhibits.count_codes(model, images).places[0].counts
        expected = torch.cat([model.encode(images[i][None]).flatten() for i in range(3)]).bincount(minlength=16)
    torch.testing.assert_close(own, expected)
    assert f"{int(own.sum()):,} tokens" in report(tmp_path, model, images).text


def test_a_codebook_larger_than_the_tokens_has_not_collapsed(tmp_path):
    model, few = autoencoder(), ArrayItems(noise(1, 3, 8, 8), 2)  # 4 tokens, which cannot have 16 codes
    write_run(tmp_path, metrics={"metrics": {"usage": 0.1875, "perplexity": 2.8}})
    text = report(tmp_path, model, few).text
    assert "Near 25 %, the most that this number of tokens can use; far below it" in text
    assert "Close to 4 means that all codes are used evenly." in text
    assert "Never used by these tokens" in text
    text = report(tmp_path, model, photographs()).text
    assert "Near 100 %; far below it, the codebook has collapsed." in text
    assert "Dead" in text


def test_only_some_samples_are_counted(monkeypatch):
    monkeypatch.setattr(exhibits, "COUNTED_SAMPLES", 8 * 8 * 3)
    model = autoencoder()
    assert exhibits.count_codes(model, ArrayItems(noise(5, 3, 8, 8), 2)).places[0].total == 3 * 4


def test_the_most_used_codes_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(exhibits, "DECODED", 3)
    model = autoencoder()
    page = report(write_run(tmp_path), model, photographs(), statistics=counted(16, [0, 5, 1, 0, 2, 2]))
    assert [alt for alt in (picture["alt"] for picture in page.images) if alt.startswith("Code ")] == [
        "Code 1", "Code 4", "Code 5"
    ]  # fmt: skip
    assert "Code 1 · 50 %" in page.text
    code = next(picture for picture in page.images if picture["alt"] == "Code 4")
    with torch.no_grad():
        made = model.decode(torch.full((1, 3, 3), 4))[0]
    np.testing.assert_array_equal(opened(code), (made * 255).round().byte().movedim(0, -1).numpy())


def test_nothing_else_changes(tmp_path, monkeypatch):
    model = autoencoder()
    model.train()
    model.decoder.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # pyplot would choose a backend for the whole process; so does reading the setting of that name
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    settings = {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}
    state = torch.get_rng_state()
    first = report(write_run(tmp_path), model, photographs()).text
    html = (tmp_path / "report.html").read_bytes()
    assert model.training
    assert not model.decoder.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(mpl.rcParams[name] == value for name, value in settings.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert report(tmp_path, model, photographs()).text == first
    assert (tmp_path / "report.html").read_bytes() == html  # the same run gives the same page


def test_large_images_and_codebooks_stay_small(tmp_path):
    images = ListItems([noise(3, 900, 1100)], 2, ["large"])
    model = autoencoder("vector", codebook_size=4096, downsampling=2)
    page = report(write_run(tmp_path, steps=300), model, images)
    large = next(picture for picture in page.images if picture["alt"] == "large")
    assert opened(large).shape == (512, 512, 3)  # the central part
    assert 0 < sum(picture["alt"].startswith("Code ") for picture in page.images) <= exhibits.DECODED
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_many_logged_terms(tmp_path):
    entry = {"kind": "train", "step": 1, **{f"term_{number}": 1.0 for number in range(30)}}
    (tmp_path / "log.jsonl").write_text(json.dumps(entry))
    page = report(tmp_path, autoencoder(), photographs().subset([2]))
    assert "Logged but not drawn: Term 24, Term 25" in page.text


def test_curves_of_the_log(tmp_path):
    record = read_record(write_run(tmp_path, steps=3))
    assert record.curves["psnr"] == Curve([1, 2, 3], [20.1, 20.2, 20.3], [3], [25.0])
    assert record.curves["usage"] == Curve([], [], [3], [0.9])
    assert set(record.curves) == {"loss", "psnr", "perplexity", "a_new_term", "usage"}
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.0}\n{"step": Infinity, "loss": 1}'
    )
    assert read_record(tmp_path).curves["loss"] == Curve([2], [1.0], [], [])


def test_training_time_comes_from_the_log_if_need_be(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "seconds": 7521.0, "loss": 1.0}')
    assert "2:05 h" in report(tmp_path, autoencoder(), photographs().subset([2])).text


def test_huge_codebooks_show_the_codes_in_use(tmp_path):
    model, images = autoencoder("binary-spherical", codebook_size=2**36), photographs()
    with torch.no_grad(), evaluating(model):
        codes = torch.cat([model.encode(images[i][None]).flatten() for i in range(3)])
    found, times = codes.unique(return_counts=True)
    page = report(write_run(tmp_path), model, images)
    assert f"{len(found):,} (0.0 %)" in page.text
    assert "68,719,476,736" in page.text
    shown = [picture["alt"] for picture in page.images if picture["alt"].startswith("Code ")]
    assert len(shown) == exhibits.DECODED
    assert shown[0] in {f"Code {code:,}" for code in found[times == times.max()].tolist()}


def test_the_page_says_settings_in_words():
    settings = {"a": None, "b": True, "c": {"d": [0.9, 1], "e": []}, "f": 1}
    assert flat(settings) == [("a", "none"), ("b", "yes"), ("c d", "0.9, 1"), ("c e", "none"), ("f", "1")]


def test_what_training_found_wrong_comes_first(tmp_path):
    page = report(write_run(tmp_path, metrics={**METRICS, "warnings": ["<b>Collapsed."]}), autoencoder(), photographs())
    assert page.text.index("Warning. <b>Collapsed.") < page.text.index("PSNR")

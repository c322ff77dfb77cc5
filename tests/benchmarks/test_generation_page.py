"""``docs/generation.md`` says what the JSON says, and what is not measured says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import generation_page

from gmvq.priors import PRIORS

ROOT = Path(__file__).parents[2]
WHERE = {
    "hardware": "a machine",
    "versions": {"python": "3", "torch": "2", "gmvq": "0", "other": "1"},
    "commit": "c" * 40,
}
JUDGED = {"agreement": 0.9, "real_accuracy": 0.96, "frechet": 2.0, "precision": 0.8, "recall": 0.7,
          "reconstructed_frechet": 1.5}  # fmt: skip
RESULTS = {
    "drawing": {
        "number": 1000,
        "rows": [
            {"prior": "autoregressive", "guidance": 1.0, "bits_per_code": 3.9, **JUDGED},
            {"prior": "latent-flow", "guidance": 1.5, "bits_per_code": None, **JUDGED},
        ],
    },
    "modelling": {
        "about": "About.",
        "rows": [
            {"title": "FSQ", "psnr": 24.0, "perplexity": 600.0, "bits_per_token": 6.1, "n_gram_bits_per_token": 7.1,
             "frequencies_bits_per_token": 8.1, "bits_per_dim": 3.25},
        ],
    },
    "sharpening": {
        "about": "About.",
        "judge": {"blurred": 8.0, "noisy": 0.1, "tinted": 0.012},
        "rows": [
            {"name": name, "seed": seed, "psnr": 26.0 + seed, "ssim": 0.8, "sharpness": 0.4, "frechet": 3.0,
             "kernel": 0.01, "precision": 0.9, "recall": 0.8, "seconds": 100.0}
            for seed in range(2)
            for name in ("plain", "both", "diffusion decoder")[: 3 - seed]
        ],
        "curves": {
            "plain": {"psnr": [[1, 20.0], [2, 22.0]]},
            "both": {"psnr": [[1, 20.0], [2, 21.0]], "discriminator_accuracy": [[2, 0.8]],
                     "adversarial_weight": [[2, 0.1]]},
        },
    },
    "sampling": {
        "protocol": "About.",
        "rows": [
            {"batch": 16, "codes_per_second": {"cached": 4000.0}, "cached_over": {"recomputed": 25.0, "GPT-2": 1.7}},
        ],
    },
}  # fmt: skip


def test_the_page_has_a_title_for_each_prior():
    assert list(generation_page.PRIORS) == list(PRIORS)


def test_the_page_says_what_the_json_says():
    command = [sys.executable, str(ROOT / "benchmarks/generation_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "docs/images/generation").mkdir(parents=True)
    page = tmp_path / "docs/generation.md"
    page.write_text((ROOT / "docs/generation.md").read_text())
    monkeypatch.setattr(generation_page, "ROOT", tmp_path)
    monkeypatch.setattr(generation_page, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(generation_page, "PAGE", page)
    monkeypatch.setattr(generation_page, "FIGURE", tmp_path / "docs/images/generation/sharpening.svg")
    monkeypatch.setattr(sys, "argv", ["generation_page.py"])
    return tmp_path


def test_what_is_not_measured_says_so(place):
    assert generation_page.main() == 0
    assert (place / "docs/generation.md").read_text().count("Not measured yet.") == 4


def test_results_become_tables_and_a_figure(place, monkeypatch):
    for name, result in RESULTS.items():
        (place / f"results/{name}.json").write_text(json.dumps({**result, **WHERE}))
    assert generation_page.main() == 0
    page = (place / "docs/generation.md").read_text()
    assert "Not measured yet." not in page
    assert "| autoregressive | 3.900 | 90.0% | 2.00 | 0.80 | 0.70 |" in page
    assert "| flow of latents, guidance 1.5 | - | 90.0% |" in page
    assert "| FSQ | 24.00 | 600 | 6.100 | 7.100 | 8.100 | 3.2500 |" in page
    assert "discriminator of features, with the distance | 2 | 26.50 | 0.8000 | 40.0% | 3.00 | 0.010 | 0.900 |" in page
    assert "the Fréchet distance is 8.00; with noise of a standard deviation of 0.02 it is 0.10, and with such" in page
    assert "| 16 | 4,000 | 25.0 | 1.7 |" in page
    assert page.count("a machine; python 3, torch 2, gmvq 0; commit cccccccccccc.") == 4
    assert "PSNR (dB), held out" in (place / "docs/images/generation/sharpening.svg").read_text()
    monkeypatch.setattr(sys, "argv", ["generation_page.py", "--check"])
    assert generation_page.main() == 0
    (place / "results/sampling.json").write_text(json.dumps({**RESULTS["sampling"], **WHERE, "protocol": "Other."}))
    assert generation_page.main() == 1

"""``benchmarks/leaderboard/page.py``: the page of the experiment says what the tables say, whatever that is."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jinja2
import numpy as np
import pytest

from gmvq.experiments import CONTENDERS, GROUPS, PROTOCOLS, STUDIES, Row, Table

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks/leaderboard"
sys.path.insert(0, str(SCRIPTS))

import page  # noqa: E402
import plots  # noqa: E402

SHORT = ("cifar10-8x8-k1024-short", "fashion-mnist-7x7-k1024-short", "celeba64-16x16-k1024-short")
LONG = {"medium": "cifar10-8x8-k1024-medium", "full": "cifar10-8x8-k1024-full"}
FULL = LONG["full"]
ERRORS = {"gaussian-mixture": 5.0, "vector": 7.0, "vector-ema": 5.5, "finite-scalar": 6.0}
ALL = dict.fromkeys(GROUPS["all"], 9.0) | ERRORS
EMA = CONTENDERS["vector-ema"].title


def row(protocol, name, seed, mse, diverged=None, **changes):
    metrics = {"mse": mse, "mse_soft": mse / 2, "mse_train": 0.9 * mse, "psnr": 20.0, "ssim": 0.5, "lpips": None,
               "usage": 1.0, "perplexity": 400.0, "bits_per_pixel": 0.625, "items_per_second": 100.0,
               "posterior_entropy": 1.3} | changes  # fmt: skip
    course = {"step": [10, 20], "mse": [0.1, mse], "perplexity": [9, 99], "posterior_entropy": [1.5, None]}
    provenance = {"commit": "0123456789abcdef", "versions": {"torch": "2"}, "hardware": "a processor", "jobs": 2}
    return Row(protocol, name, seed, diverged, None if diverged else metrics, {}, 1234, course, provenance)


def table(protocol, errors, seeds=3, spread=0.01, more=(), **changes):
    """Three seeds of each contender, the errors in 1e-3 with a standard deviation of ``spread``."""
    data = {"name": "some-data", "fingerprint": "f" * 64, "train": 40000, "held_out": 10000}
    run = json.loads((SCRIPTS / f"results/{SHORT[0]}.json").read_text())["protocols"][SHORT[0]]["run"]
    made = Table({protocol: {"data": data, "tokens": [8, 8], "codebook_size": 1024, "run": run}})
    for name, seed in itertools.product(errors, range(seeds)):
        made.add(row(protocol, name, seed, 1e-3 * (errors[name] + (seed - 1) * spread), **changes))
    for one in more:
        made.add(one)
    return made


def experiment(errors, **more):
    """An experiment of these errors by protocol."""
    return page.Experiment({name: table(name, found) for name, found in errors.items()}, **more)


def rendered(found, root, name=page.PAGE):
    """A page with spaces that break a line; figures and their spreads stand in one."""
    mark = f"<!-- {page.MARKED[0]}: written by benchmarks/{page.MARKED[1]} -->\nold\n<!-- /{page.MARKED[0]} -->\n"
    (root / "docs").mkdir(exist_ok=True)
    for marked in (page.GUIDE, page.README):
        (root / marked).write_text(f"before\n{mark}")
    return page.files(found, root)[root / name].replace("\N{NO-BREAK SPACE}", " ")


def cells(markdown, first, nth=0):
    """The row of a table whose first cell is this."""
    line = [line for line in markdown.splitlines() if line.startswith(f"| {first} |")][nth]
    return [cell.strip() for cell in line.strip("|").split(" |")]


def drawing(found, root, name):
    return page.files(found, root)[root / f"docs/{page.IMAGES}/{name}.svg"]


def test_the_committed_page_is_what_the_tables_say():
    done = subprocess.run([sys.executable, str(SCRIPTS / "page.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("ours", "leads"),
    [
        ((5.0, 5.0, 5.0), True),
        ((5.0, 5.0, 5.505), True),  # within the best's standard deviation of 0.01
        ((5.0, 5.0, 5.52), False),
        ((5.0, 5.505, 5.505), False),
    ],
)
def test_to_lead_is_two_data_sets_and_near_the_best_on_the_third(tmp_path, ours, leads):
    found = {name: {**ALL, "gaussian-mixture": mse} for name, mse in zip(SHORT, ours, strict=True)}
    said = rendered(experiment(found), tmp_path).split("\n\n")[2]
    assert said.startswith("**GM-VQ at its defaults leads:" if leads else "**GM-VQ at its defaults does not lead:")
    assert f"on {sum(mse < 5.5 for mse in ours)} of 3 data sets" in said
    assert said.strip("*").split(":")[0] in rendered(experiment(found), tmp_path, page.README)


@pytest.mark.parametrize(
    ("errors", "missing"), [({}, 78), ({SHORT[0]: ALL, SHORT[2]: ALL}, 26), (dict.fromkeys(SHORT, ERRORS), 66)]
)
def test_nothing_is_decided_before_all_lines_were_run(tmp_path, errors, missing):
    said = rendered(experiment(errors), tmp_path)
    assert f"**Not decided: {missing} of 78 contenders' lines are not run yet; so far GM-VQ: it has the lowest" in said
    for name in set(SHORT) - set(errors):
        assert f"Not run yet. `gmvq compare --protocol {name} --quantizers all --seeds 3 --data PATH`" in said


@pytest.mark.parametrize(
    ("errors", "seeds", "said"),
    [
        ({"gaussian-mixture": 5.5, "vector": 5.0}, 1, "2 contenders and one seed, GM-VQ's error is 10.0 % above"),
        ({**ERRORS, "gaussian-mixture": 4.4}, 3, "4 contenders and 3 seeds, GM-VQ's error is 20.0 % below"),
        ({"gaussian-mixture": 5.5}, 1, None),
        ({"vector": 5.5, "vector-ema": 5.0}, 1, None),
    ],
)
@pytest.mark.parametrize("kind", LONG)
def test_the_top_says_where_long_training_ends(tmp_path, kind, errors, seeds, said):
    tables = {**experiment(dict.fromkeys(SHORT, ALL)).tables, LONG[kind]: table(LONG[kind], errors, seeds)}
    top = rendered(page.Experiment(tables), tmp_path).split("\n\n")[2]
    assert (f"After {kind} training on" in top) == (said is not None)
    assert said is None or said in top
    assert top.startswith("**GM-VQ at its defaults leads")


def test_a_lead_within_the_spread_or_of_one_seed_is_said_at_the_top(tmp_path):
    for spread, seeds, said in ((0.5, 3, "less than a standard deviation over seeds"), (0.5, 1, "is of one seed")):
        tables = {name: table(name, {**ALL, "vector-ema": 5.1}, seeds, spread) for name in SHORT}
        assert rendered(page.Experiment(tables), tmp_path).split("\n\n")[2].count(said) == 3
    assert "The lead on" not in rendered(experiment(dict.fromkeys(SHORT, ALL)), tmp_path).split("\n\n")[2]


def test_who_leaves_codes_unused_or_diverges_is_not_ranked(tmp_path):
    lost = row(SHORT[0], "vector", 9, 1e-3, diverged="nan at step 7")
    made = table(SHORT[0], ERRORS, more=[lost])
    for key, one in made.rows.items():
        if one.contender == "vector-ema":
            made.rows[key] = one._replace(metrics={**one.metrics, "usage": 0.949})
    found = page.Experiment({SHORT[0]: made})
    standing = page.standing(found, SHORT[0])
    assert [entry.contender for entry in standing.ranked] == ["gaussian-mixture", "finite-scalar"]
    assert [(entry.contender, why) for entry, why in standing.left_out] == [
        ("vector-ema", "94.9 % in use"),
        ("vector", "1 of 4 runs diverged"),
    ]
    said = rendered(found, tmp_path)
    assert f"Not ranked on CIFAR-10: {EMA} (94.9 % in use); VQ-VAE as published (1 of 4 runs diverged)." in said
    assert "Diverged: VQ-VAE as published, seed 9 (nan at step 7). Means are those of the other seeds." in said
    assert cells(said, "VQ-VAE as published")[-1] == "3, 1 diverged"


def test_place_and_gap(tmp_path):
    said = rendered(experiment({SHORT[0]: {**ERRORS, "vector-ema": 4.0}}), tmp_path)
    assert cells(said, "CIFAR-10") == [
        "CIFAR-10", EMA, "4.000 ± 0.010", "2 of 4", "5.000 ± 0.010", "+1.000 (+25.0 %)", "no"
    ]  # fmt: skip
    said = rendered(experiment({SHORT[0]: ERRORS}), tmp_path)
    assert cells(said, "CIFAR-10")[3:] == [
        "1 of 4",
        "5.000 ± 0.010",
        f"-0.500 (-9.1 %) to the second, {EMA}",
        "leads",
    ]


def test_a_table_is_sorted_and_says_what_is_missing(tmp_path):
    speed = {
        "protocol": {"rounds": 7, "steps": 3},
        "hardware": "another processor",
        "rows": [
            {"protocol": protocol, "contender": "gaussian-mixture", "items_per_second": speed, "relative": 0.75}
            for protocol, speed in ((SHORT[0], 75.0), (SHORT[1], 9.0))
        ],
    }
    errors = {"vector-ema": 5.5, "gaussian-mixture": 5.0}
    said = rendered(experiment({SHORT[0]: errors, SHORT[1]: errors}, speed=speed), tmp_path).split("\n### ")[1]
    lines = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| ")]
    assert lines == ["Contender", "---", "**GM-VQ**", EMA]
    assert dict(zip(cells(said, "Contender"), cells(said, EMA), strict=True)) == {
        "Contender": EMA, "MSE (1e-3)": "5.500 ± 0.010", "PSNR (dB)": "20.00", "SSIM": "0.5000", "Usage (%)": "100.0",
        "Perplexity": "400 ± 0", "Bits / pixel": "0.625", "Training (items / s)": "",
        "Soft decoding, MSE (1e-3)": "2.750", "Seeds": "3",
    }  # fmt: skip
    assert cells(said, "**GM-VQ**")[7] == "75"  # of speed.py, and not of the rows
    assert "medians of 7 rounds of 3 steps on another processor." in said
    assert re.search(r"Not run yet: `gaussian-mixture-paper`.* --quantizers gaussian-mixture-paper vector ", said)
    assert "Not measured: LPIPS, ELBO (bits / dim), IWAE (bits / dim)." in said
    for part in (
        "some-data: 40,000 images for training, 10,000 measured (fingerprint ffffffffffff); 8x8 tokens, K = 1,024.",
        "Network: sq-vae, width 64, downsampling 4, blocks 2, likelihood gaussian; 1,234 parameters.",
        "Training: 2,000 steps of 64 images, learning rate 0.001, warmup steps 100,",
        "Runs on a processor, 2 at a time; torch 2; commit 0123456789ab.",
    ):
        assert part in said


def test_the_guide_has_errors_usage_and_relative_speed(tmp_path):
    tables = {
        SHORT[0]: table(SHORT[0], {"vector": 7.0, "gaussian-mixture": 5.0}, usage=0.99),
        SHORT[1]: table(SHORT[1], {"vector": 6.0, "gaussian-mixture": 4.0, "residual": 1.0}),
    }
    rows = [
        {"protocol": protocol, "contender": "gaussian-mixture", "items_per_second": 1.0, "relative": ratio}
        for protocol, ratio in zip(SHORT, (0.8, 0.2), strict=False)
    ]
    found = page.Experiment(tables, speed={"protocol": {"rounds": 1, "steps": 1}, "hardware": "", "rows": rows})
    said = rendered(found, tmp_path, page.GUIDE)
    assert said.startswith("before\n")
    assert "old" not in said
    assert cells(said, "**GM-VQ**")[1:] == ["5.000 ± 0.010", "4.000 ± 0.010", "99 to 100", "0.40"]
    assert cells(said, "VQ-VAE as published")[1:] == ["7.000 ± 0.010", "6.000 ± 0.010", "99 to 100", ""]
    # who was run on less data comes last, however good
    assert said.index("GM-VQ") < said.index("VQ-VAE as published") < said.index("residual, 2 x 32 codes")
    assert "residual, 2 x 32 codes" not in rendered(found, tmp_path, page.README)


def test_a_study_compares_with_the_default(tmp_path):
    errors = {**ERRORS, "gaussian-mixture:noise=1": 5.5}
    found = experiment({SHORT[0]: errors})
    made = page.ablation(found, STUDIES["noise"])
    assert made.of["1"]["against"] == "10.0 % more than the default"
    assert made.of["1"]["mse"].replace("\N{NO-BREAK SPACE}", " ") == "5.500 ± 0.010"
    assert made.of["0.1"]["mse"] == made.of["0.1"]["against"] == "not run yet"
    assert made.labels == [("**none**", ""), ("1", "+10.0 %")]
    assert made.absent[0] == "gaussian-mixture:noise=0.1"
    assert (made.usage, made.lost) == ("100.0", [])
    said = rendered(found, tmp_path).split("\n### Noise")[1].split("\n### ")[0]
    assert cells(said, "1")[-2:] == ["+10.0 %", "3"]
    assert cells(said, "**none**")[-2:] == ["", "3"]
    assert "No run diverged." in said
    assert "Not run yet: `gaussian-mixture:noise=0.1`" in said
    lost = row(SHORT[0], "gaussian-mixture:noise=1", 9, 1e-3, diverged="nan")
    said = rendered(page.Experiment({SHORT[0]: table(SHORT[0], errors, more=[lost])}), tmp_path)
    assert "Diverged: 1 (1 of 4 runs)." in said


def test_a_study_that_was_not_run_has_no_paragraph_and_no_plot(tmp_path):
    said = rendered(experiment({}), tmp_path).split("\n### A large codebook")[1].split("\n## ")[0].strip()
    names = "`gaussian-mixture:codebook_size=64`, `gaussian-mixture`, `gaussian-mixture:codebook_size=16384`"
    assert said.splitlines()[-1].startswith(f"Not run yet: {names}. `gmvq compare --protocol cifar10-8x8-k1024-small ")
    assert len(said.splitlines()) == 3
    assert not [path for path in page.files(experiment({}), tmp_path) if path.suffix == ".svg"]


def test_the_texts_fit_their_studies_and_type_no_figure(tmp_path, monkeypatch):
    template = (SCRIPTS / "page.md.j2").read_text()
    texts = template[template.index("{% macro text(") : template.index("# The experiment")]
    assert re.findall(r'if name == "([^"]+)"', texts) == [*STUDIES]
    spoken = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\(1e-3\)", "", texts)
    assert not re.search(r"\d", spoken)
    errors = {name: {} for name in ("cifar10-8x8-k1024-short", "cifar10-8x8-k1024-small")}
    for study in STUDIES.values():
        errors[study.protocol] |= {point.contender: 5.0 for point in study.points}
    assert (
        "not run yet" not in rendered(experiment(errors), tmp_path).split("## Ablations")[1].split("## The course")[0]
    )
    fewer = replace(STUDIES["noise"], points=STUDIES["noise"].points[:2])
    monkeypatch.setitem(STUDIES, "noise", fewer)
    with pytest.raises(jinja2.UndefinedError, match=r"no attribute '0\.3'"):  # a point that the study has not
        rendered(experiment(errors), tmp_path)


def test_the_course_is_the_mean_over_seeds_of_those_that_have_a_posterior():
    made = table(SHORT[0], {**ERRORS, "gaussian-mixture:noise=1": 6.0}, spread=0.3)
    data = page.course_drawing(page.Experiment({SHORT[0]: made})).data
    assert [line["name"] for line in data] == ["default", "noise=1"]
    assert data[0]["mse"] == pytest.approx([0.1, 0.005])
    assert data[0]["posterior_entropy"] == [1.5, None]
    assert page.course_drawing(experiment({})).data == []


def gradients(ways=("straight-through",)):
    rows = []
    for kind, size, entropy, way in itertools.product(("encoder", "codebook"), (16, 64), (0.1, 1.0, 2.0), ways):
        shared = {"with_respect_to": kind, "codebook_size": size, "posterior_entropy": entropy, "standard_error": 0.05,
                  "trained_by": way}  # fmt: skip
        rows += [
            {**shared, "estimator": "gumbel-softmax", "temperature": t, "bias": t, "variance": 1 / t}
            for t in (1.0, 0.1)
        ]
        rows.append({**shared, "estimator": "straight-through", "temperature": None, "bias": 0.9, "variance": 0.0})
        rows.append({**shared, "estimator": "enumeration", "temperature": None, "bias": 1e-16, "variance": 0.0})
    where = {"hardware": "a machine", "versions": {"torch": "2"}, "commit": "c" * 40}
    return {"format": "gmvq.gradients", "rows": rows, "protocol": {"sentence": "So it was made."}, **where}


def test_gradients_are_drawn_for_the_largest_codebook_of_a_model_that_was_trained_as_by_default(tmp_path):
    made = page.gradient_drawings(gradients(["enumeration", "straight-through"])["rows"])
    assert [one.name for one in made] == ["gradients-encoder-straight-through", "gradients-codebook-straight-through"]
    assert {(row["codebook_size"], row["trained_by"]) for row in made[0].data["rows"]} == {(64, "straight-through")}
    assert made[0].data["names"] == ["gumbel-softmax", "straight-through"]  # enumeration has no bias to draw
    figure = plots.plot_gradients(made[0].data)
    above, below = figure.axes[0], figure.axes[3]
    assert [axes.get_title("left") for axes in figure.axes[:3]] == [
        f"entropy {x} nats" for x in ("0.10", "1.00", "2.00")
    ]
    lines = [tuple(np.ravel(line.get_xydata()).tolist()) for line in above.get_lines()]
    assert (0.1, 0.1, 1.0, 1.0) in lines  # by temperature
    assert (0.1, 10.0, 1.0, 1.0) in [tuple(np.ravel(line.get_xydata()).tolist()) for line in below.get_lines()]
    assert all(axes.get_ylim()[0] > 1e-3 for axes in figure.axes)
    said = rendered(experiment({}, gradients=gradients()), tmp_path).split("## Gradients")[1]
    assert "So it was made." in said
    assert "K = 64." in said
    assert (
        "Within two standard errors of no bias throughout: enumeration. a machine; torch 2; commit cccccccccccc."
        in said
    )
    with pytest.raises(ValueError, match="got gumbel-softmax twice"):
        plots.plot_gradients({**made[0].data, "rows": made[0].data["rows"] * 2})


def test_what_was_published_stands_beside_what_was_measured(tmp_path):
    said = rendered(experiment({FULL: {"vector": 4.0}}), tmp_path).split("## What the papers")[1].split("## How")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| C")]
    assert lines[3][:2] == ["CIFAR-10", "VQ-VAE"]
    assert lines[3][3:] == ["5.65", "14", "`vector`", "4.000 ± 0.010", "400 ± 0"]
    assert lines[0][5:] == ["`stochastic`", "not run", "not run"]
    assert {line[5].strip("`") for line in lines} <= set(CONTENDERS)
    assert said.count("It needs a GPU; `gmvq compare --protocol") == 2


def test_the_least_and_the_most_stand_on_the_plot_of_contenders(tmp_path):
    one = page.contenders_drawing(experiment({SHORT[0]: {**ERRORS, "vector": 70.0}}), "short")
    figure = one.draw(one.data)
    said = {text.get_text() for text in figure.axes[0].texts}
    assert {"gaussian-mixture", "vector-ema", "finite-scalar", "vector, 70.0"} <= said
    low, high = figure.axes[0].get_ylim()
    assert low < 5 < 10 < high < 13  # twice the least error, and no more


def test_pages_and_pictures_are_written_once_and_found_stale(tmp_path):
    errors = {**ERRORS, "gaussian-mixture:noise=1": 6.0}
    found = experiment({SHORT[0]: errors}, gradients=gradients())
    rendered(found, tmp_path)  # README and guide are there
    images = tmp_path / "docs" / page.IMAGES
    images.mkdir(parents=True)
    (images / "study-gone.svg").write_text("<svg/>")
    (images / f"reconstructions-{FULL}.jpg").write_bytes(b"")
    drawn = {"contenders-short", "study-noise", "study-learned", "course", "gradients-encoder-straight-through"}
    stale = {path.name for path in page.update(page.files(found, tmp_path), check=True)}
    assert stale > {"experiment.md", "which-quantizer.md", "README.md", "study-gone.svg", *(f"{x}.svg" for x in drawn)}
    assert not (tmp_path / page.PAGE).exists()
    assert {path.name for path in page.update(page.files(found, tmp_path))} == stale
    assert page.update(page.files(found, tmp_path), check=True) == []
    assert not (images / "study-gone.svg").exists()
    written = (tmp_path / page.PAGE).read_text()
    order = ["**Not decided", "## Short protocols", "## Full protocols", "## Error and use", "## Reconstructions",
             "## Ablations", "## The course", "## Gradients", "## What the papers", "## How to reproduce"]  # fmt: skip
    assert [written.index(part) for part in order] == sorted(written.index(part) for part in order)
    for image in re.findall(r"\]\((images/[^)]+)\)", written):
        assert (tmp_path / "docs" / image).is_file()
    for path in (images / f"{name}.svg" for name in drawn):
        svg = path.read_text()
        assert svg == drawing(found, tmp_path, path.stem).svg()  # the same bytes every time
        assert svg.count("<title>") == 1
        assert "prefers-color-scheme: dark" in svg
        assert set(re.findall(r"#[0-9a-f]{6}", re.sub(r"<style>:root.*?</style>", "", svg))) == set()
        assert "date" not in svg
        assert len(svg) < 120_000
    other = page.files(experiment({SHORT[0]: {**errors, "vector": 7.1}}, gradients=gradients()), tmp_path)
    pages = {"experiment.md", "which-quantizer.md", "README.md"}
    assert {path.name for path in page.update(other, check=True)} == {*pages, "contenders-short.svg",
                                                                      "study-learning-rate.svg"}  # fmt: skip


def test_what_there_is_is_read_and_other_files_are_refused(tmp_path):
    assert page.read(tmp_path) == page.Experiment({})
    table(SHORT[1], ERRORS).write(tmp_path / f"{SHORT[1]}.json")
    (tmp_path / "speed.json").write_text('{"format": "gmvq.speed"}')
    found = page.read(tmp_path)
    assert (list(found.tables), found.gradients, found.speed) == ([SHORT[1]], None, {"format": "gmvq.speed"})
    (tmp_path / "gradients.json").write_text('{"format": "another"}')
    with pytest.raises(ValueError, match=r"must be of format 'gmvq\.gradients'"):
        page.read(tmp_path)
    assert {*page.read().tables} >= {*SHORT, FULL}
    assert all(name in PROTOCOLS for name in page.read().tables)


def test_refined_codes_are_set_against_the_encoders():
    shared = {"seed": 0, "perplexity": 900.0, "milliseconds_per_image": 0.5, "decoder_passes": 2}
    rows = [
        {**shared, "contender": name, "steps": steps, "mse": mse}
        for name, steps, mse in (("vector", 4, 4e-3), ("vector", 0, 5e-3), ("latent", 0, 3e-3))
    ]
    assert [line[:4] for line in page.refined(rows)] == [
        ["latent quantization", "0", "3.000", ""],
        ["VQ-VAE as published", "0", "5.000", ""],
        ["VQ-VAE as published", "4", "4.000", "-20.0%"],
    ]


def test_the_grid_compares_each_error_with_the_best_of_its_setting(tmp_path):
    name, other = "cifar10-8x8-k1024-grid", "celeba64-16x16-k1024-grid"
    hot, few = "lr=0.003,batch=16", "codebook_dim=8"
    errors = {"gaussian-mixture": 4.0, "vector-ema-4": 5.0, f"gaussian-mixture:{hot}": 8.0, f"vector-ema-4:{hot}": 4.0,
              f"gaussian-mixture:{few}": 3.0, f"finite-scalar:{hot}": 9.0}  # fmt: skip
    lost = row(name, "finite-scalar", 0, 1e-3, diverged="nan at step 7")
    tables = {name: table(name, errors, 1, 0, [lost]), other: table(other, {"vector-ema-4": 2.0}, 1, 0, usage=0.25)}
    said = rendered(page.Experiment(tables), tmp_path)
    said = said.split("## Settings that nobody tuned")[1].split("## Ablations")[0]
    ours, ema, fsq = (cells(said, title) for title in ("**GM-VQ**", CONTENDERS["vector-ema-4"].title, "FSQ"))
    # in the middle, with its own 4 features and with 8; twice the best at the hot setting
    assert ours[1:] == ["CIFAR-10, learning rate 0.003, batches of 16", "1.189", "2.00", "8.00", "", "", "100", "3"]
    # 5 / 4 in the middle and with 4 features, the best at the hot setting, alone on the other data
    assert ema[1:] == ["CIFAR-10, the protocol's", "1.093", "1.25", "5.00", "", "2.00", "25", "3"]
    assert fsq[1:5] == ["CIFAR-10, the protocol's", "inf", "inf", "inf"]
    assert f"Not run yet: {3 * len(GROUPS['grid']) - 8} runs." in said
    assert said.index("| VQ-VAE, moving averages, 4 features | CIFAR-10") < said.index("| **GM-VQ** | CIFAR-10")

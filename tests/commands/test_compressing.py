import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gmvq import hub
from gmvq.__main__ import main
from gmvq.codec import Codec, read
from gmvq.entropy import EntropyModel


@pytest.fixture(scope="module")
def fitted(trained_digits, tmp_path_factory):
    """A run with a codec."""
    run = shutil.copytree(trained_digits, tmp_path_factory.mktemp("codec") / "run")
    assert main(["fit-codec", str(run)]) == 0
    return run


@pytest.fixture
def pictures(tmp_path):
    chance = np.random.default_rng(0)
    for name, size in (("a.png", (8, 8)), ("sub/b.png", (13, 30))):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 255, size, np.uint8)).save(path)
    return tmp_path / "in"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_folders_come_back_as_reconstructions_under_their_names(fitted, pictures, tmp_path, capsys):
    small, back, whole = (str(tmp_path / name) for name in ("small", "back", "whole"))
    assert main(["compress", str(fitted), str(pictures), small, "--verify", "--threads", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["files"]] == ["a.png", "sub/b.png"]
    assert found["bytes"] == sum((tmp_path / "small" / name).stat().st_size for name in ("a.gmvq", "sub/b.gmvq"))
    assert main(["decompress", str(fitted), small, back]) == 0
    assert main(["reconstruct", str(fitted), str(pictures), whole]) == 0
    for name in ("a.png", "sub/b.png"):
        assert np.array_equal(pixels(tmp_path / "back" / name), pixels(tmp_path / "whole" / name))
    assert "bytes of 2 item(s)" not in capsys.readouterr().err


def test_a_file_goes_beside_itself_and_can_be_looked_at(fitted, pictures, capsys):
    assert main(["compress", str(fitted), str(pictures / "a.png")]) == 0
    assert "bits per pixel" in capsys.readouterr().out
    (pictures / "a.png").unlink()
    assert main(["info", str(pictures / "a.gmvq")]) == 0
    shown = capsys.readouterr().out
    assert "8 x 8" in shown
    assert main(["info", str(pictures / "a.gmvq"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [8, 8]
    assert main(["decompress", str(fitted), str(pictures / "a.gmvq")]) == 0
    assert pixels(pictures / "a.png").shape == (8, 8)


def test_pipes(fitted, pictures, tmp_path):
    def piped(data, *words):
        command = [sys.executable, "-m", "gmvq", words[0], str(fitted), *words[1:]]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    data = piped((pictures / "a.png").read_bytes(), "compress", "-")
    assert read(data).header.size == (8, 8)
    assert piped(data, "decompress", "-", str(tmp_path / "back.png"))
    assert pixels(tmp_path / "back.png").shape == (8, 8)


def test_files_from_before_a_fit_stay_readable_and_a_fit_is_not_repeated(run, pictures, tmp_path, capsys):
    assert main(["compress", str(run), str(pictures / "a.png"), str(tmp_path / "before.gmvq")]) == 0
    assert main(["fit-codec", str(run)]) == 0
    mark = hub.fingerprint(hub.load(run / "codec", EntropyModel))
    assert main(["decompress", str(run), str(tmp_path / "before.gmvq"), str(tmp_path / "before.png")]) == 0
    assert main(["fit-codec", str(run)]) == 0
    assert "is finished" in " ".join(capsys.readouterr().err.split())
    assert hub.fingerprint(hub.load(run / "codec", EntropyModel)) == mark
    assert main(["evaluate", str(run), "--codec", "--limit", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]["codec"]
    assert 0 < found["estimated_bits_per_code"] < found["bits_per_code"]


def test_training_fits_the_codec_of_its_tokenizer(tmp_path):
    words = ["train", "digits", "--out", str(tmp_path), "--width", "8", "--blocks", "1", "--codebook-size", "16"]
    assert main([*words, "--steps", "3", "--no-fit-codec"]) == 0
    assert not (tmp_path / "codec").exists()
    assert main([*words, "--steps", "3"]) == 0
    first = Codec.load(tmp_path)
    assert first.model.is_fitted
    assert main(["fit-codec", str(tmp_path), "--most", "2000", "--overwrite"]) == 0
    own = Codec.load(tmp_path)
    assert main([*words, "--steps", "3"]) == 0
    assert Codec.load(tmp_path).model_mark == own.model_mark != first.model_mark  # files may need it
    assert main([*words, "--steps", "4", "--overwrite"]) == 0
    assert Codec.load(tmp_path).mark != first.mark
    vae = [*words[:3], str(tmp_path / "vae"), *words[4:-2], "--quantizer", "none"]
    assert main([*vae, "--steps", "3"]) == 0
    assert not (tmp_path / "vae" / "codec").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["compress", "RUN", "IN"], "'OUT' must be given"),
        (["compress", "RUN", "IN", "-"], "folder for 2 items"),
        (["compress", "RUN", "IN/a.png", "OUT", "--levels", "2"], "levels"),
        (["compress", "RUN", "IN/a.png", "OUT", "--levels", "1", "--bpp", "1"], "Leave out others"),
        (["compress", "RUN", "IN/a.png", "OUT", "--kbps", "1"], "no clock"),
        (["compress", "RUN", "IN/a.png", "OUT", "--codec", "nowhere"], "nowhere"),
        (["decompress", "RUN", "IN", "OUT"], "no compressed file"),
        (["decompress", "RUN", "IN/a.png", "OUT"], "no file of compressed codes"),
    ],
)
def test_wrong_use_is_named(fitted, pictures, tmp_path, capsys, words, named):
    places = {"RUN": str(fitted), "IN": str(pictures), "IN/a.png": str(pictures / "a.png"), "OUT": str(tmp_path / "o")}
    assert main([places.get(word, word) for word in words]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_damaged_file_costs_itself(fitted, pictures, tmp_path, capsys):
    small = tmp_path / "small"
    assert main(["compress", str(fitted), str(pictures), str(small)]) == 0
    (small / "a.gmvq").write_bytes((small / "a.gmvq").read_bytes()[:-1])
    assert main(["decompress", str(fitted), str(small), str(tmp_path / "back")]) == 1
    assert "a.gmvq: The compressed file is damaged" in capsys.readouterr().err
    assert pixels(tmp_path / "back/sub/b.png").shape == (13, 30)


def test_a_rate_chooses_the_levels(pictures, tmp_path, capsys):
    run = str(tmp_path / "run")
    small = ["--steps", "2", "--batch-size", "4", "--width", "8", "--codebook-size", "64"]
    options = ["--quantizer", "residual", "--quantizer-options", '{"levels": 3}']
    assert main(["train", "digits", "--out", run, *small, *options]) == 0
    capsys.readouterr()
    sizes = {}
    for rate in ("100", "0.75", "0.01"):
        assert (
            main(["compress", run, str(pictures / "sub/b.png"), str(tmp_path / "o.gmvq"), "--bpp", rate, "--json"]) == 0
        )
        sizes[rate] = (
            json.loads(capsys.readouterr().out)["bytes"],
            read((tmp_path / "o.gmvq").read_bytes()).header.levels,
        )
    assert sizes["100"][1] == 3
    assert sizes["0.01"][1] == 1
    assert sizes["100"][0] > sizes["0.01"][0]

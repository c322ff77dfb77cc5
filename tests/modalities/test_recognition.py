"""Which kind a path is taken for, and what the recipe for any folder says of it."""

import gzip
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
from PIL import Image as Pillow
from pyarrow import parquet

from gmvq.__main__ import main
from gmvq.modalities import Audio
from gmvq.modalities.recognition import recognized

SHARED = Path(__file__).parents[3] / "shared" / "data"


def wav(path, length=800, seed=0):
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, length), 8000)


def image(path):
    Pillow.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)


def days(number=40, step=1):
    return [f"2020-{1 + day * step // 28 % 12:02d}-{1 + day * step % 28:02d}" for day in range(number)]


def rows(header, *columns):
    return header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


NUMBERS = [place * place % 17 / 4 for place in range(40)]
CLASSES = ["ab"[place % 2] for place in range(40)]
TABLES = {
    "dates": (rows("date,load", days(28), NUMBERS[:28]), "series"),
    "dates beside a target": (rows("date,target", days(28), NUMBERS[:28]), "series"),
    "even dates beside classes": (rows("date,load,label", days(28), NUMBERS[:28], CLASSES[:28]), "series"),
    "hours": (
        rows("when,load", [f"2020-01-01 {hour:02d}:00:00" for hour in range(24)], NUMBERS[:24]),
        "series",
    ),
    "dates of shares": (rows("Datum,close", ["2020-01-03", "2020-01-06", "2020-01-07"], NUMBERS[:3]), "series"),
    "seconds": (rows("time,x,y", [place / 50 for place in range(40)], NUMBERS, NUMBERS), "series"),
    "the newest first": (rows("step,x", range(40, 0, -1), NUMBERS), "series"),
    "uneven dates beside classes": (
        rows("date,age,class", ["2020-01-03", "2020-01-06", "2020-01-07"], NUMBERS[:3], CLASSES[:3]),
        "vectors",
    ),
    "no time": (rows("x,y", NUMBERS, NUMBERS), "vectors"),
    "no header": ("".join(f"{value},{value / 3}\n" for value in NUMBERS), "vectors"),
    "classes": (rows("width,height,class", NUMBERS, NUMBERS, CLASSES), "vectors"),
    "numbered rows": (rows("id,x,y", range(40), NUMBERS, NUMBERS), "vectors"),
    "rows of pandas": (rows(",x,y", range(40), NUMBERS, NUMBERS), "vectors"),
    "numbers of parts": (rows("part,x", [f"12-{place:x}a" for place in range(40)], NUMBERS), "vectors"),
    "times out of order": (rows("time,x", NUMBERS, NUMBERS), "vectors"),
    "texts": (rows("text,label", [f"line {place}" for place in range(40)], CLASSES), "text"),
    "dated texts": (rows("date,text", days(28), [f"line {place}" for place in range(28)]), "text"),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_tables_are_told_by_what_they_hold(tmp_path, name, ending):
    text, kind = TABLES[name]
    path = tmp_path / f"data{ending}"
    if ending == ".csv":
        path.write_text(text)
    else:
        path.write_bytes(gzip.compress(text.encode()))
    assert recognized(path).kind == kind
    assert recognized(tmp_path).kind == kind


def test_tables_of_parquet(tmp_path):
    times = pyarrow.array(np.arange(40) * 15_000_000_000, pyarrow.timestamp("ns"))
    parquet.write_table(pyarrow.table({"time": times, "load": NUMBERS}), tmp_path / "a.parquet")
    assert recognized(tmp_path).kind == "series"
    parquet.write_table(pyarrow.table({"x": NUMBERS, "class": CLASSES}), tmp_path / "a.parquet")
    assert recognized(tmp_path).kind == "vectors"


@pytest.mark.parametrize(
    ("shape", "kind", "type_"),
    [
        ((50, 8), "vectors", np.float32),
        ((50, 2, 30), "series", np.float32),
        ((500,), "series", np.float64),
        ((50, 8, 8), "image", np.uint8),
        ((50, 8, 8, 3), "image", np.uint8),
        ((50, 8), "vectors", np.uint8),
    ],
)
def test_arrays_are_told_by_their_shape(tmp_path, shape, kind, type_):
    np.save(tmp_path / "a.npy", np.ones(shape, type_))
    assert recognized(tmp_path / "a.npy").kind == kind
    np.savez(tmp_path / "b.npz", x_train=np.ones(shape, type_))
    assert recognized(tmp_path / "b.npz").kind == "image"  # no other kind has such files


def test_an_archive_counts_for_what_it_holds(tmp_path):
    wav(tmp_path / "a.wav")
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "sounds.tar.xz", "w:xz") as archive:
        for place in range(6):
            archive.add(tmp_path / "a.wav", f"sounds/{'ab'[place % 2]}/{place}.wav")
    (folder / "README.txt").write_text("What these are.\n")
    (folder / "speakers.txt").write_text("a\nb\n")
    assert recognized(folder).kind == recognized(folder / "sounds.tar.xz").kind == "audio"
    data = Audio().load(folder, held_out_fraction=0)
    assert (len(data.train), data.classes, data.name) == (6, ("a", "b"), "data")
    wav(folder / "beside.wav")
    assert len(Audio().load(folder, held_out_fraction=0).train) == 1  # recordings that lie open go first


def test_archives_of_images_are_to_be_unpacked(tmp_path, capsys):
    image(tmp_path / "a.png")
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "images.zip", "w") as archive:
        for place in range(9):
            archive.write(tmp_path / "a.png", f"{place}.png")
    (tmp_path / "data" / "notes.txt").write_text("notes\n")
    assert recognized(tmp_path / "data").kind == "image"
    assert main(["train", "folder", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]) == 1
    assert "It holds images.zip: unpack archives" in capsys.readouterr().err


def test_damaged_archives_and_tables_have_no_say(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    (tmp_path / "b.tar.xz").write_bytes(b"nothing")
    (tmp_path / "c.csv").write_bytes(bytes(range(100)))
    with pytest.raises(ValueError, match="looks like data of any kind"):
        recognized(tmp_path)
    (tmp_path / "d.csv").write_text(TABLES["dates"][0])
    assert recognized(tmp_path).kind == "series"


def test_hidden_files_and_tables_of_labels_have_no_say(tmp_path):
    for place in range(4):
        (tmp_path / f".{place}.txt").write_text("hidden\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.txt").write_text("hidden\n")
    (tmp_path / "labels.csv").write_text("name,label\na.png,b\n")
    (tmp_path / "metadata.csv").write_text("file,label\na.png,b\n")
    image(tmp_path / "a.png")
    assert recognized(tmp_path).kind == "image"


def test_most_files_decide(tmp_path):
    image(tmp_path / "a.png")
    for place in range(3):
        (tmp_path / f"{place}.txt").write_text("words\n")
    assert recognized(tmp_path).kind == "text"
    (tmp_path / "more").mkdir()
    for place in range(4):
        image(tmp_path / "more" / f"{place}.png")
    assert recognized(tmp_path).kind == "image"


@pytest.mark.filterwarnings("ignore:Windows have")
def test_the_recipe_says_what_it_took_the_data_for(tmp_path, capsys):
    (tmp_path / "data.csv").write_text(TABLES["classes"][0])
    words = ["train", "folder", "--data", str(tmp_path / "data.csv"), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main([*words, "--width", "8", "--blocks", "1", "--batch-size", "4", "--codebook-size", "16"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        f"{tmp_path / 'data.csv'} is taken for vectors. For another kind, name photos, speech, sentences or series in "
        "place of folder."
    )
    words[1] = "table"
    assert main([*words, "--overwrite", "--width", "8", "--blocks", "1", "--batch-size", "4"]) == 0
    assert "is taken for" not in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cifar10", "image"),
        ("fashion_mnist", "image"),
        ("fsdd", "audio"),
        ("ljspeech", "audio"),
        ("text/multi30k", "text"),
        ("text/dialogsum", "text"),
        ("timeseries/ETTh1.csv.xz", "series"),
        ("timeseries/ucr", "series"),
    ],
)
def test_real_data(name, kind):
    assert recognized(SHARED / name).kind == kind

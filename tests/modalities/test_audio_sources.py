import tarfile
import zipfile

import numpy as np
import pytest
import torch
from recordings import everything, noise, reasons, write

from gmvq.modalities import Audio

# Sides, labels, archives


def test_folders_of_two_sides(tmp_path):
    for place, name in enumerate(["train/yes/a", "train/no/b", "train/no/c", "test/no/d", "other/e"]):
        write(tmp_path / f"{name}.wav", noise(400, seed=place), 16000 if name.startswith("train") else 8000)
    data = Audio().load(tmp_path)
    assert data.train.names == ["train/no/b.wav", "train/no/c.wav", "train/yes/a.wav"]
    assert (data.held_out.names, data.modality.rate, data.classes) == (["test/no/d.wav"], 16000, ("no", "yes"))
    assert (data.train.labels.tolist(), data.held_out.labels.tolist()) == ([0, 0, 1], [0])


def test_files_that_are_added_move_no_other(good):
    before = Audio().load(good, held_out_fraction=0.5)
    for seed in range(3, 9):
        write(good / f"a{seed}.wav", noise(500, seed=seed))
    after = Audio().load(good, held_out_fraction=0.5)
    assert set(before.held_out.names) <= set(after.held_out.names)
    assert set(before.train.names) <= set(after.train.names)


def test_labels_of_a_table(good):
    (good / "labels.csv").write_text(
        "name,label\n" + "".join(f"good{seed}.wav,{'ab'[seed % 2]}\n" for seed in range(3))
    )
    data = Audio().load(good)
    assert data.classes == ("a", "b")
    assert data.labelled


def test_names_of_spoken_digits_are_labels_and_sides(tmp_path):
    for digit in (3, 7):
        for index in (0, 4, 5, 12):
            write(tmp_path / "recordings" / f"{digit}_theo_{index}.wav", noise(300, seed=10 * digit + index))
    data = Audio().load(tmp_path)
    assert data.held_out.names == [f"recordings/{name}_theo_{i}.wav" for name in (3, 7) for i in (0, 4)]
    assert (data.classes, data.train.labels.tolist()) == (("3", "7"), [0, 0, 1, 1])
    write(tmp_path / "recordings" / "other.wav", noise(300))
    assert not Audio().load(tmp_path).labelled


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz", "set.tar.xz", "set.zip"])
def test_archives_equal_their_folders(tmp_path, name):
    folder = tmp_path / "set"
    for place, each in enumerate(["train/a/1.wav", "train/b/2.flac", "test/a/3.wav", "notes.txt", "train/._1.wav"]):
        write(folder / each, noise(300, seed=place), format="FLAC" if each.endswith("flac") else "WAV")
    (folder / "train" / "empty.wav").touch()
    archive = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(archive, "w") as file:
            for each in sorted(folder.rglob("*")):
                file.write(each, each.relative_to(tmp_path))
    else:
        with tarfile.open(archive, "w:" + {"tar": "", "tgz": "gz"}.get(name[4:], name[-2:])) as file:
            file.add(folder, "set")
    with pytest.warns(UserWarning, match="Skipped 1 file"):
        packed = Audio().load(archive)
    with pytest.warns(UserWarning, match="Skipped 1 file"):
        plain = Audio().load(folder)
    assert (packed.name, packed.modality, packed.classes) == (plain.name, plain.modality, plain.classes)
    assert reasons(packed) == reasons(plain) == {"empty.wav": "it is empty"}
    for side in ("train", "held_out"):
        one, other = getattr(packed, side), getattr(plain, side)
        assert (one.names, one.sizes, one.labels.tolist()) == (other.names, other.sizes, other.labels.tolist())
        assert all(torch.equal(*items) for items in zip(one, other, strict=True))


def test_an_archive_and_its_folder_have_the_same_sides(good, tmp_path):
    for seed in range(3, 20):
        write(good / f"{seed}.wav", noise(200, seed=seed))
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for path in sorted(good.glob("*.wav")):
            file.add(path, path.name)
    assert Audio().load(tmp_path / "x.tar").held_out.names == Audio().load(good).held_out.names


def test_archives_that_cannot_be_read(good, tmp_path):
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(good / "good0.wav", "../../good0.wav")
        file.add(good / "good1.wav", "/good1.wav")
    assert len(everything(Audio().load(archive))) == 2
    with pytest.raises(ValueError, match=r"must fit 'memory_bytes' = 6100\. Unpack it"):
        Audio().load(archive, memory_bytes=6100)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"Cannot read the archive '.*x\.tar\.gz': .*\. Unpack it"):
        Audio().load(archive)
    for name in ("text.tar", "text.zip", "text.tar.xz"):
        (tmp_path / name).write_text("no archive" * 200)
        with pytest.raises(ValueError, match="Cannot read the archive"):
            Audio().load(tmp_path / name)


# Arrays


@pytest.mark.parametrize("shape", [(6, 50), (6, 1, 50), (6, 2, 50)])
@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int16"])
def test_arrays(tmp_path, shape, kind):
    values = np.random.default_rng(0).uniform(-1, 1, shape)
    array = (values * 32767).astype(kind) if kind == "int16" else values.astype(kind)
    np.save(tmp_path / "a.npy", array)
    data = Audio(rate=8000).load(tmp_path / "a.npy", held_out_fraction=0.3)
    assert data.modality == Audio(rate=8000, channels=shape[1] if len(shape) == 3 else 1)
    expected = array.reshape(6, -1, 50).astype("float32") / (32768 if kind == "int16" else 1)
    for name, item in everything(data).items():
        assert item.dtype == torch.float32
        assert np.array_equal(item.numpy(), expected[int(name)])
    assert Audio(rate=8000, channels=1).load(tmp_path / "a.npy").train[0].shape == (1, 50)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((2, 5)), {"rate": None}, "'rate' must be set for arrays"),
        (np.zeros(5), {}, r"must have shape \(N, T\) or \(N, C, T\), got \(5,\)"),
        (np.zeros((0, 5)), {}, r"got \(0, 5\)"),
        (np.zeros((2, 5), np.uint8), {}, "must be floats in .* or int16, got uint8"),
        (np.array([[1, 2], [3, 4]], object), {}, "Cannot read .* Save it again"),
        (np.full((2, 5), 300.0), {}, "got 300 in recording 0"),
        (np.full((2, 5), np.nan), {}, "No recording in .* can be read: recording 0 has NaN"),
        (np.zeros((2, 3, 5)), {"channels": 2}, "it has 3 channels instead of 2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, array, options, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        Audio(**{"rate": 8000, **options}).load(tmp_path / "a.npy")


def test_recordings_of_an_array_with_gaps_are_skipped(tmp_path):
    array = noise(50, 4).T
    array[2, 3] = np.nan
    np.save(tmp_path / "a.npy", array)
    with pytest.warns(UserWarning, match="recording 2 has NaN or infinity"):
        data = Audio(rate=8000).load(tmp_path / "a.npy")
    assert sorted(everything(data)) == ["00000", "00001", "00003"]
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"Cannot read .*b\.npy"):
        Audio(rate=8000).load(tmp_path / "b.npy")

import os

import pytest

from gmvq.modalities.gathering import gather

SUFFIXES = (".ts", ".csv", ".npy")


@pytest.fixture
def put(tmp_path):
    def write(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1\n")
        return tmp_path

    return write


def found(path):
    files = gather(path, SUFFIXES)
    sides = [
        None if side is None else [file.relative_to(files.root).as_posix() for file in side] for side in files[2:4]
    ]
    return files.name, *sides


def test_a_folder_of_files_without_sides(put):
    folder = put("b.CSV.xz", "x/a.npy", "x/.hidden.csv", "notes.txt", ".git/c.csv", "labels.csv", "__MACOSX/d.csv")
    assert found(folder) == (folder.name, ["b.CSV.xz", "x/a.npy"], None)


def test_folders_are_sides(put):
    folder = put("Train/a/1.csv", "Train/a/2.csv", "val/a/3.csv", "test/b/4.csv", "5.csv")
    assert found(folder) == (folder.name, ["Train/a/1.csv", "Train/a/2.csv"], ["test/b/4.csv"])


def test_a_training_folder_alone_is_a_folder(put):
    assert found(put("train/1.csv", "2.csv"))[1:] == (["2.csv", "train/1.csv"], None)


def test_files_are_sides(put):
    folder = put("Gun_TRAIN.csv", "Gun_TEST.csv", "Gun_TRAIN.ts", "Gun_TEST.ts", "Gun_TRAIN.txt", "other.csv")
    expected = "Gun", ["Gun_TRAIN.ts"], ["Gun_TEST.ts"]
    assert found(folder) == expected
    assert found(folder / "Gun_TRAIN.ts") == expected
    assert found(folder / "Gun_TEST.ts") == expected
    assert found(folder / "Gun_TEST.csv") == ("Gun", ["Gun_TRAIN.csv"], ["Gun_TEST.csv"])
    assert found(folder / "other.csv") == ("other", ["other.csv"], None)
    assert found(folder / "Gun_TRAIN.txt") == ("Gun_TRAIN", ["Gun_TRAIN.txt"], None)


def test_files_that_are_only_a_side(put):
    folder = put("train.csv", "valid.csv", "test.csv.gz")
    assert found(folder) == (folder.name, ["train.csv"], ["test.csv.gz"])


def test_text_counts_if_its_name_has_a_side(put):
    assert found(put("README.txt", "ECG_TRAIN.txt.xz"))[1:] == (["ECG_TRAIN.txt.xz"], None)


def test_data_sets_are_told_apart(put):
    folder = put("a/train.csv", "a/test.csv", "b/train.csv", "b/test.csv")
    with pytest.raises(ValueError, match="must hold one data set, got a, b") as caught:
        gather(folder, SUFFIXES)
    assert "a/train.csv" in str(caught.value)


def test_nothing_is_an_error(put):
    with pytest.raises(ValueError, match=r"No data in .*files that end in \.ts \.csv \.npy"):
        gather(put("x.png"), SUFFIXES)
    with pytest.raises(ValueError, match=r"No data in .*test"):
        gather(put("train/1.csv", "test/1.png"), SUFFIXES)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_loops_of_links(put):
    folder = put("a/1.csv")
    os.mkfifo(folder / "pipe.csv")
    (folder / "a" / "up").symlink_to(folder)
    files = gather(folder, SUFFIXES)
    assert [file.name for file in files.train] == ["1.csv"]
    assert [(each.path.name, each.reason) for each in files.skipped] == [("pipe.csv", "it is no regular file")]
    with pytest.raises(ValueError, match="no regular file"):
        gather(folder / "pipe.csv", SUFFIXES)

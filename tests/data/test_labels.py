from pathlib import Path

import pytest
import torch

from gmvq.data.labels import Labels, labels_of, normalized, printable, split_folders


def found(names: list[str], root: Path, table: Path | None = None) -> tuple[list[int], tuple[str, ...]] | None:
    labels = labels_of(names, root, table)
    if labels is None:
        return None
    assert isinstance(labels, Labels)
    assert labels.values.dtype == torch.int64
    assert labels.values.shape == (len(names),)
    return labels.values.tolist(), labels.classes


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("side", ["", "train/", "Training/", "val/"])
def test_folders_are_classes_in_the_order_of_their_names(side: str, tmp_path: Path) -> None:
    names = [f"{side}{name}" for name in ("dog/1.wav", "cat/2.wav", "dog/deeper/3.wav", "Cow/4.wav")]
    assert found(names, tmp_path) == ([2, 1, 2, 0], ("Cow", "cat", "dog"))


def test_both_sides_of_a_split_share_their_classes(tmp_path: Path) -> None:
    names = ["train/a/1", "train/c/2", "test/b/3", "test/c/4"]
    assert found(names, tmp_path) == ([0, 2, 1, 2], ("a", "b", "c"))


def test_classes_that_are_integers_are_in_their_order(tmp_path: Path) -> None:
    assert found([f"{label}/x" for label in ("10", "9", "0", "-1")], tmp_path) == ([3, 2, 1, 0], ("-1", "0", "9", "10"))
    assert found([f"{label}/x" for label in ("10", "9", "b")], tmp_path) == ([0, 1, 2], ("10", "9", "b"))


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["1.txt", "2.txt"],
        ["a/1.txt", "a/2.txt"],  # one class says nothing
        ["train/1.txt", "test/2.txt"],
        ["2020/05/1.txt", "2020/06/2.txt", "2021/05/3.txt"],  # by date, no folder holds files directly
    ],
)
def test_other_folders_give_no_labels(names: list[str], tmp_path: Path) -> None:
    assert found(names, tmp_path) is None


@pytest.mark.parametrize("outside", ["3.txt", "misc/deeper/3.txt", "train/3.txt"])
def test_a_file_outside_the_classes_is_named(outside: str, tmp_path: Path) -> None:
    prefix = "train/" if outside.startswith("train") else ""
    with pytest.warns(UserWarning, match=rf"give no labels because of files outside them: '{outside}'.*labels\.csv"):
        assert found([f"{prefix}a/1.txt", f"{prefix}b/2.txt", outside], tmp_path) is None


@pytest.mark.parametrize("file", ["labels.csv", "metadata.csv", "other.csv"])
@pytest.mark.parametrize(
    "header", ["name,label", "file;label", "file_name\tlabel", "id,Path,CLASS", "\ufefffilename,label"]
)
def test_a_table_wins_over_folders(file: str, header: str, tmp_path: Path) -> None:
    delimiter = next(d for d in ",;\t" if d in header)
    start = "7" + delimiter if "id" in header else ""
    rows = [("a/1.txt", "x"), ("./a/2.txt", "y"), ("b\\\\3.txt".replace("\\\\", "\\"), "x")]
    text = "\n".join([header, *(start + delimiter.join(row) for row in rows), ""])
    path = write(tmp_path / file, text)
    table = path if file == "other.csv" else None
    assert found(["a/1.txt", "a/2.txt", "b/3.txt"], tmp_path, table) == ([0, 1, 0], ("x", "y"))


def test_labels_csv_is_read_before_metadata_csv(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", "name,label\n1.txt,a\n2.txt,b\n")
    write(tmp_path / "metadata.csv", "name,label\n1.txt,c\n2.txt,d\n")
    assert found(["1.txt", "2.txt"], tmp_path) == ([0, 1], ("a", "b"))


def test_metadata_without_labels_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", "file_name,text\na/1.txt,something\n")
    assert found(["a/1.txt", "b/2.txt"], tmp_path) == ([0, 1], ("a", "b"))


def test_each_side_may_have_its_own_table(tmp_path: Path) -> None:
    write(tmp_path / "train/metadata.csv", "file_name,label\n1.txt,9\n2.txt,10\n")
    write(tmp_path / "test/metadata.csv", "file_name,label\n1.txt,10\n")
    names = ["train/1.txt", "train/2.txt", "test/1.txt"]
    assert found(names, tmp_path) == ([0, 1, 1], ("9", "10"))
    (tmp_path / "test/metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"train.metadata\.csv' must have a label for each file, but lacks 'test/1"):
        found(names, tmp_path)


def test_names_are_compared_in_one_form(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", 'name,label\nu\u0308ber.txt,a\n"with, comma.txt",b\n')
    assert found(["\u00fcber.txt", "with, comma.txt"], tmp_path) == ([0, 1], ("a", "b"))
    (tmp_path / "labels.csv").write_bytes(b"name,label\n\xff.txt,a\n2.txt,b\n")
    assert found([b"\xff.txt".decode("utf-8", "surrogateescape"), "2.txt"], tmp_path) == ([0, 1], ("a", "b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"first line of .*labels\.csv' must name a column name or file"),
        ("1.txt,a\n2.txt,b\n", r"got '1\.txt,a.*Write name,label"),
        ("name,label\n1.txt,a\n1.txt,b\n", r"Row 3 of .* must repeat the label 'a' of '1\.txt', got 'b'"),
        ("name,label\n1.txt,a\n2.txt\n", r"lacks '2\.txt'\. Add them"),
        ("name,label\n1.txt,a\n2.txt,\n", r"lacks '2\.txt'"),
        ("name,label\n" + "x" * 200_000 + ",a\n", r"Cannot read the table .*field larger"),
    ],
)
def test_what_is_wrong_in_a_table_is_said(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", text)
    with pytest.raises(ValueError, match=message):
        found(["1.txt", "2.txt"], tmp_path)


def test_many_files_without_a_label_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", "name,label\n0.txt,a\n")
    with pytest.raises(ValueError, match=r"lacks '1\.txt', .*'5\.txt' and 4 more"):
        found([f"{i}.txt" for i in range(10)], tmp_path)


def test_labels_of_unknown_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", "name,label\n1.txt,a\ngone\x07.txt,b\nskipped.txt,b\n")
    (tmp_path / "skipped.txt").write_text("it is there, and could not be read")
    with pytest.warns(UserWarning, match=r"has labels of files that do not exist: 'gone\\x07\.txt'\.$"):
        assert found(["1.txt"], tmp_path) == ([0], ("a",))


def test_a_table_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        found(["1.txt"], tmp_path, tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "test"], ("train", "test")),
        (["Training", "VAL", "other"], ("Training", "VAL")),
        (["train", "val", "test"], ("train", "test")),
        (["train"], None),
        (["test"], None),
        ([], None),
    ],
)
def test_folders_of_a_split_are_paired(folders: list[str], expected: tuple[str, str] | None, tmp_path: Path) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    (tmp_path / "test.txt").write_text("a file is no folder")
    pair = split_folders(tmp_path)
    assert (None if pair is None else tuple(path.name for path in pair)) == expected


def test_names_on_one_line() -> None:
    assert normalized("./a/./b//c.png") == "a/b/c.png"
    assert printable("two\nlines\x1b[31m \udcff ü 漢.png") == "two\\nlines\\x1b[31m \\udcff ü 漢.png"

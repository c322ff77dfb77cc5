import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from gmvq.modalities.text import Text
from gmvq.modalities.text.files import decoded, read_texts
from gmvq.modalities.text.manual import sentences
from gmvq.modalities.text.rows import TextError


@pytest.fixture
def put(tmp_path):
    def write(name, content="one\ntwo\nthree\n"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def found(path, lines=None):
    texts = read_texts(path, lines)
    sides = [[entry.text for entry in side] for side in (texts.train, texts.held_out or [])]
    return *sides, texts.notes


# Which files


def test_a_folder_of_documents(put, tmp_path):
    for name in ("b.txt", "x/a.TXT", "x/.hidden.txt", ".git/c.txt", "labels.csv", "notes.md", "__MACOSX/d.txt"):
        put(name, f"One.\n\nTwo, of {name}.\n")
    texts = read_texts(tmp_path, None)
    assert [entry.name for entry in texts.train] == ["b", "x/a"]
    assert (texts.lines, texts.held_out, texts.name) == (False, None, tmp_path.name)


def test_folders_are_sides_and_their_folders_classes(put, tmp_path):
    for name in ("train/pos/1.txt", "train/neg/2.txt", "test/neg/3.txt", "test/pos/4.txt"):
        put(name, f"a film of {name}")
    data = Text().load(tmp_path)
    assert data.train.names == ["train/neg/2", "train/pos/1"]
    assert data.held_out.names == ["test/neg/3", "test/pos/4"]
    assert data.classes == ("neg", "pos")
    assert (data.train.labels.tolist(), data.held_out.labels.tolist()) == ([0, 1], [0, 1])


def test_lines_of_a_file_share_its_class(put, tmp_path):
    put("pos/a.txt", "good\nfine\n")
    put("neg/b.txt", "bad\nawful\nsad\n")
    data = Text().load(tmp_path, held_out_fraction=0.4)
    pairs = [
        (name, label)
        for side in (data.train, data.held_out)
        for name, label in zip(side.names, side.labels.tolist(), strict=True)
    ]
    assert sorted(pairs) == [*((f"neg/b-0000{i}", 0) for i in (1, 2, 3)), *((f"pos/a-0000{i}", 1) for i in (1, 2))]


def test_a_table_of_labels(put, tmp_path):
    put("a.txt", "x")
    put("b.txt", "y")
    put("labels.csv", "name,label\na.txt,2\nb.txt,10\n")
    assert Text().load(tmp_path).classes == ("2", "10")


def test_names_of_files_are_sides(put, tmp_path):
    for name in ("train.en.gz", "val.en.gz", "test_2016.en.gz", "train.de.gz", "test_2016.de.gz", "test_2017.de.gz"):
        put(name, gzip.compress(f"{name}\n".encode() * 2))
    put("README.txt")
    train, held_out, notes = found(tmp_path)
    assert train == ["train.de.gz"] * 2 + ["train.en.gz"] * 2
    assert held_out == ["test_2016.de.gz"] * 2 + ["val.en.gz"] * 2
    assert notes == ["held out test_2016.de.gz, val.en.gz, and left out README.txt, test_2016.en.gz, test_2017.de.gz"]
    assert [entry.name for entry in read_texts(tmp_path, None).train][::2] == ["train.de-00001", "train.en-00001"]
    train, held_out, _ = found(tmp_path / "train.en.gz")
    assert (train, held_out) == (["train.en.gz"] * 2, [])


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        (("train.txt", "test.txt"), "test.txt"),
        (("train.jsonl", "dev.jsonl"), "dev.jsonl"),
        (("corpus.train.txt", "corpus.valid.txt"), "corpus.valid.txt"),
        (("a/Training.txt", "a/Val.txt"), "a/Val.txt"),
        (("wiki.train.tokens", "wiki.test.tokens"), "wiki.test.tokens"),
    ],
)
def test_sides_by_other_names(put, tmp_path, names, held_out):
    for name in names:
        put(name, json.dumps({"text": name}) if name.endswith("jsonl") else name)
    assert found(tmp_path) == ([name for name in names if name != held_out], [held_out], [])


def test_a_side_alone_is_a_file_as_others(put, tmp_path):
    put("train.txt", "a\n\nb")
    put("other.txt", "c\n\nd")
    put("test.jsonl", '{"text": "e"}')
    assert found(tmp_path) == (["c\n\nd", "e", "a\n\nb"], [], [])


def test_files_of_one_stem_keep_their_endings(put, tmp_path):
    put("a.txt", "x\n\ny")
    put("a.jsonl", '{"text": "z"}')
    assert [entry.name for entry in read_texts(tmp_path, None).train] == ["a.jsonl-00001", "a.txt"]


def test_a_file_of_any_name_is_read(put):
    assert found(put("rt-polarity.pos"))[0] == ["one", "two", "three"]
    assert found(put("README"))[0] == ["one", "two", "three"]
    assert read_texts(put("a.b.txt.xz", lzma.compress(b"one\ntwo")), None).name == "a.b"


# What is skipped


@pytest.mark.skipif(os.geteuid() == 0 and not hasattr(os, "mkfifo"), reason="no pipes")
def test_what_cannot_be_read_is_skipped_with_a_reason(put, tmp_path):
    put("good.txt", "good\n\ntext")
    put("also.txt", "more\n\ntext")
    put("binary.txt", bytes(range(256)))
    put("wide.txt", "text".encode("utf-16-le"))
    put("empty.txt", "")
    put("blank.txt", " \n\n")
    put("cut.txt.gz", gzip.compress(b"text" * 1000)[:-20])
    put("half.txt", b"\xff\xfea")
    put("bad.jsonl", '{"text": "fine"}\n{"text"')
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.warns(UserWarning, match=r"Skipped 8 file\(s\)"):
        data = Text().load(tmp_path)
    reasons = {skipped.path.name: skipped.reason for skipped in data.skipped}
    assert reasons["binary.txt"] == reasons["wide.txt"] == "it is not text, as its zero bytes show"
    assert reasons["empty.txt"] == reasons["blank.txt"] == "it has no text"
    assert reasons["cut.txt.gz"].startswith("it cannot be unpacked")
    assert reasons["half.txt"].startswith("it begins like UTF-16")
    assert reasons["bad.jsonl"].startswith("its line 2 is not JSON")
    assert reasons["pipe.txt"] == "it is no regular file"
    assert sorted([*data.train.names, *data.held_out.names]) == ["also", "good"]


def test_a_single_file_that_cannot_be_read_is_an_error(put, tmp_path):
    with pytest.raises(ValueError, match=r"Cannot read .*a\.txt': it is not text"):
        Text().load(put("a.txt", b"\0\1\2" * 50))
    with pytest.raises(ValueError, match=r"There is no text in .* Skipped: .*it is not text"):
        Text().load(tmp_path)
    with pytest.raises(ValueError, match=r"No texts in .*Looked, in nested folders too, for files that end in \.txt"):
        Text().load(put("empty/a.png").parent)


def test_what_unpacks_to_far_more_is_refused(put, monkeypatch):
    monkeypatch.setattr("gmvq.modalities.text.files._UNPACKED", 1000)
    path = put("a.txt.gz", gzip.compress(b"a" * 1_000_000))
    with pytest.raises(ValueError, match="unpacks to, more than"):
        Text().load(path)


# Encodings and lines


def test_encodings():
    path = Path("a.txt")
    assert decoded("\ufeffé".encode(), path) == ("é", "")
    assert decoded("é".encode("utf-16"), path) == ("é", "")
    assert decoded("naïve café".encode("latin-1"), path) == ("naïve café", "that are not UTF-8, read as Windows-1252")
    assert decoded(b"\x93quoted\x94", path)[0] == "“quoted”"
    assert decoded(b"caf\xe9 \x81", path) == ("café \x81", "that are not UTF-8, read as Latin-1")
    text, note = decoded("déjà vu, où".encode() + b" \xe9", path)
    assert (text, note) == ("déjà vu, où \ufffd", "with bytes that are not UTF-8, read as U+FFFD (1 in a.txt)")
    assert decoded(b"nul\0 in a text", path) == ("nul\0 in a text", "")
    with pytest.raises(TextError, match="zero bytes"):
        decoded(b"\xe9\0 in a longer binary", path)


def test_encodings_and_empty_lines_are_said_once(put, tmp_path):
    put("a.txt", "é\nb\n\nc\n" + "d\n" * 40)
    put("b.txt", "caf\xe9\nx\n".encode("latin-1"))
    with pytest.warns(UserWarning, match="Windows-1252") as caught:
        Text().load(tmp_path)
    (warning,) = caught
    said = r"1 file(s) that are not UTF-8, read as Windows-1252: b; 1 empty line(s) left out."
    assert str(warning.message) == f"Of '{tmp_path}': {said}"


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb\n", True),
        ("a\r\nb\r\nc", True),
        ("a\n\nb\n", False),
        ("a single line\n", False),
        ("One.\nTwo.\n\nThree.\nFour.\n", False),
        ("x\n" * 100 + "\n" + "y\n" * 100, True),
    ],
)
def test_whether_lines_are_items(put, content, lines):
    assert read_texts(put("a.txt", content), None).lines is lines
    assert read_texts(put("a.txt", content), not lines).lines is not lines


def test_lines_end_where_editors_say(put):
    assert found(put("a.txt", "a\rb\r\nc\x85d\u2028e\x0cf\n g \n"))[0] == ["a", "b", "c\x85d\u2028e\x0cf", " g "]


# Rows


def test_json_lines(put):
    rows = [{"text": "a\nb", "label": 1}, {"text": "\ud83d\ude00", "label": 10}, {"text": "x\ud800", "label": 2}]
    data = Text().load(put("a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n"))
    assert data.classes == ("1", "2", "10")
    pairs = [
        (data.modality.decode(side[i]), side.labels[i].item())
        for side in (data.train, data.held_out)
        for i in range(len(side))
    ]
    assert sorted(pairs) == [("a\nb", 0), ("x\ufffd", 1), ("😀", 2)]
    assert data.modality.lines is True


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,Text,label\n1,"a, ""b""\nc",x\n2,d,y\n'),
        ("a.csv", 'text;label\n"a, ""b""\nc";x\nd;y\n'),
        ("a.tsv", 'label\ttext\nx\t"a, ""b""\nc"\ny\td\n'),
        ("a.csv.gz", gzip.compress(b'text,label\r\n"a, ""b""\nc",x\r\nd,y\r\n', mtime=0)),
    ],
)
def test_tables(put, name, content):
    texts = read_texts(put(name, content), None)
    assert [(entry.text, entry.label) for entry in texts.train] == [('a, "b"\nc', "x"), ("d", "y")]
    assert (texts.name, texts.train[0].name) == ("a", "a-00001")


def test_tabs_may_be_without_quotes(put):
    path = put("a.tsv", 'text\tlabel\n"Go," he said\tx\n6" tall\ty\n')
    assert found(path)[0] == ['"Go," he said', '6" tall']


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", '{"a": 1}', "its line 1 has no field 'text' with a text, but a"),
        ("a.jsonl", "[1]", "its line 1 has no field 'text' with a text"),
        ("a.jsonl", '{"text": 1}', "its line 1 has no field 'text'"),
        ("a.jsonl", "[" * 100_000, "its line 1 is not JSON"),
        ("a.jsonl", '{"text": "a", "label": [1]}', "neither a word nor an integer"),
        ("a.csv", "a,b\n1,2\n", "its first line does not name a column 'text', but a, b"),
        ("a.csv", "text,b\n1\n", "its row 1 has 1 cells instead of 2"),
        ("a.csv", "text,b\n" + "x" * 200_000 + ",y\n", "it is not a table: field larger than field limit"),
    ],
)
def test_damaged_rows(put, name, content, reason):
    with pytest.raises(TextError, match=reason):
        read_texts(put(name, content), None)


def test_rows_without_text_are_counted(put):
    assert found(put("a.csv", "text,b\nx,1\n,2\n ,3\n")) == (["x"], [], ["2 empty row(s) left out"])


# The manual


def test_sentences_of_the_manual():
    topic = """\
The "assert" statement
**********************

Assert statements check the program.  They are
short (see section Lists).

   assert_stmt ::= "assert" expression

This *really* is **prose**, e.g. English text of "names".

   x = 1
   print(x)

* First, an item of a list
  is a sentence.

Byte Arrays
   A bytearray object is a mutable array.

New in version 3.3: It was added then and there.

See Lists for more details.

A call of f(x) is not taken here.

Too short.
"""
    assert sentences({"a": topic, "b": "They are short.\n\n" + topic}) == [
        "Assert statements check the program.",
        'This really is prose, e.g. English text of "names".',
        "First, an item of a list is a sentence.",
        "A bytearray object is a mutable array.",
    ]

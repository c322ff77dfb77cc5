import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modality_members import SENTENCES
from modality_members import text as member

from gmvq.data import Loader
from gmvq.modalities.base import Passage, described, from_description
from gmvq.modalities.text import Characters, Subwords, Text
from gmvq.modalities.text.items import LONGEST, TextItems, parts_of

SHARED = Path(__file__).parents[3] / "shared" / "data" / "text"
ODD = [
    "",
    "\0",
    "a\r\nb\n\n c  d\t",
    "e\u0301 é ﬁ Ａ",
    "👩\u200d👩\u200d👧 𝔘",
    "\u2028\x85\x0b",
    "\ufeff\ufffd\U0010ffff",
    "<s> [UNK] Ġ",
]
SUBWORDS = Subwords.learned(SENTENCES * 3, 300)
KNOWN = {
    "bytes": Text(vocabulary=()),
    "characters": Text(vocabulary=("ü", "ß", "😀")),
    "subwords": Text("subwords", subwords=SUBWORDS),
}


@pytest.fixture(params=KNOWN.values(), ids=KNOWN)
def text(request):
    return request.param


def texts(data, side):
    return [data.modality.decode(side[index]) for index in range(len(side))]


def everything(data):
    return sorted([*texts(data, data.train), *texts(data, data.held_out)])


# Symbols


@settings(max_examples=300, deadline=None)
@given(written=st.text(), kind=st.sampled_from(sorted(KNOWN)))
def test_every_text_comes_back(written, kind):
    text = KNOWN[kind]
    symbols = text.encode(written)
    assert (symbols.dtype, symbols.ndim) == (torch.int64, 1)
    assert not (symbols == 0).any()
    assert not (symbols >= text.signal.channels).any()
    assert text.decode(symbols) == written


def test_every_character_comes_back(text):
    written = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000), *range(0x11000, 0x110000, 0x101)]))
    assert text.decode(text.encode(written)) == written


@pytest.mark.parametrize("written", ODD)
def test_odd_texts_come_back(text, written):
    assert text.decode(text.encode(written)) == written


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 259)), st.sampled_from(sorted(KNOWN)))
def test_every_sequence_is_some_text(symbols, kind):
    text = KNOWN[kind]
    symbols = torch.tensor([symbol % text.signal.channels for symbol in symbols], dtype=torch.int64)
    text.decode(symbols).encode()


def test_characters_have_symbols():
    text = Text(vocabulary=("é", "😀"))
    assert text.signal.channels == 259
    assert text.encode("Aé😀ü\0").tolist() == [66, 257, 258, 196, 189, 1]
    assert text.decode(torch.tensor([66, 196, 66, 0, 67])) == "A\ufffdA"
    assert text.decode(torch.tensor([66, 227, 131, 257])) == "A\ufffdé"
    assert text.decode(torch.tensor([], dtype=torch.int64)) == text.decode(torch.tensor([0, 66])) == ""


def test_the_vocabulary_is_what_occurs_twice_the_most_frequent_first():
    assert Characters.learned(["ñ é ü", "é ñ", "a a é"]) == ("é", "ñ")
    assert Characters.learned(["plain"]) == ()


def test_subwords_shorten_what_they_learned_from():
    text = KNOWN["subwords"]
    assert 257 < text.signal.channels <= 300  # no pair that occurs is left to merge
    assert len(text.encode(SENTENCES[0])) < len(SENTENCES[0]) / 2
    assert Subwords.learned(SENTENCES * 3, 300) == SUBWORDS
    assert text.decode(torch.tensor([0, 40])) == ""


def test_lone_surrogates_are_refused(text):
    with pytest.raises(ValueError, match=r"'text' must be without lone surrogates.*'\\ud800'"):
        text.encode("a\ud800")


def test_foreign_symbols_are_refused(text):
    for symbols in ([-1], [3, text.signal.channels]):
        with pytest.raises(ValueError, match=r"'symbols' must lie in \[0, "):
            text.decode(torch.tensor(symbols))


def _changed(change):
    description = json.loads(SUBWORDS)
    change(description)
    return json.dumps(description)


@pytest.mark.parametrize(
    "subwords",
    [
        "",
        "{}",
        '{"a": ',
        _changed(lambda made: made.update(normalizer={"type": "Lowercase"})),
        _changed(lambda made: made.update(normalizer={"type": "NFC"})),
        _changed(lambda made: made["pre_tokenizer"].update(add_prefix_space=True)),
        _changed(lambda made: made.update(decoder=None)),
        _changed(lambda made: made["model"]["vocab"].pop("ī")),
    ],
)
def test_tokenizers_that_lose_text_are_refused(subwords):
    with pytest.raises(ValueError, match=r"'subwords' must be"):
        Text("subwords", subwords=subwords)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"units": "words"}, "'units' must be one of characters, subwords"),
        ({"vocabulary": ("a",)}, "'vocabulary' must be distinct single characters beyond ASCII"),
        ({"vocabulary": ("é", "é")}, "'vocabulary' must be distinct"),
        ({"vocabulary": ("éé",)}, "'vocabulary' must be distinct"),
        ({"vocabulary": ("\ud800",)}, "'vocabulary' must be distinct"),
        ({"vocabulary": tuple(map(chr, range(0x4E00, 0x6000)))}, "'vocabulary' must have at most 4096 characters"),
        ({"vocabulary": (), "units": "subwords"}, "'vocabulary' must be None for units of subwords"),
        ({"subwords": "{}"}, "'subwords' must be None for units of characters"),
        ({"vocabulary_size": 100}, "'vocabulary_size' must be an integer of at least 257"),
    ],
)
def test_settings_are_checked(wrong, rule):
    with pytest.raises(ValueError, match=rule):
        Text(**wrong)


def test_what_is_not_known_is_said():
    for unknown, name in ((Text(), "vocabulary"), (Text("subwords"), "subwords")):
        with pytest.raises(ValueError, match=f"'{name}' of the text must be known, got None"):
            _ = unknown.signal


def test_the_description_is_json(text):
    again = from_description(json.loads(json.dumps(described(text))))
    assert again == text
    assert again.encode("süße 😀").tolist() == text.encode("süße 😀").tolist()


def test_it_is_made_whatever_the_default_device_is(text):
    with torch.device("meta"):  # as models are built that are to be loaded
        again = from_description(described(text))
        assert again.decode(again.encode("süße")) == "süße"


def test_it_can_be_copied(text):
    text.encode("a")
    for again in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert again == text
        assert torch.equal(again.encode("süße"), text.encode("süße"))


def test_importing_it_is_quick():
    code = "import sys, gmvq.modalities; assert not {'tokenizers', 'pydoc_data.topics'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


# Loading


@pytest.mark.parametrize("units", ["characters", "subwords"])
def test_what_is_known_after_loading(tmp_path, units):
    path = tmp_path / "colors.txt"
    path.write_text("\n".join(SENTENCES), "utf-8")
    data = Text(units, vocabulary_size=280).load(path, held_out_fraction=0.3)
    assert everything(data) == sorted(SENTENCES)
    assert data.modality.lines is True
    assert data.modality.signal.channels == (280 if units == "subwords" else 259)
    assert data.name == "colors"
    assert len(data.held_out) >= 1


def test_the_vocabulary_is_of_training_text_alone(tmp_path):
    (tmp_path / "train.txt").write_text("é é\nö ö\nplain\n", "utf-8")
    (tmp_path / "test.txt").write_text("ß ß ß\nö\n", "utf-8")
    data = Text().load(tmp_path)
    assert data.modality.vocabulary == ("é", "ö")
    assert texts(data, data.held_out) == ["ß ß ß", "ö"]


@pytest.mark.parametrize("units", ["characters", "subwords"])
def test_known_settings_load_other_data_by_them(tmp_path, units):
    (tmp_path / "one.txt").write_text("é é\nö ö\nplain\n" * 2, "utf-8")
    (tmp_path / "two.txt").write_text("日本\n日本\n\nünicode\n", "utf-8")
    known = Text(units).load(tmp_path / "one.txt").modality
    with pytest.warns(UserWarning, match=r"Of .*two.txt': 1 empty line\(s\) left out"):
        data = known.load(tmp_path / "two.txt")
    assert data.modality == known
    assert everything(data) == ["ünicode", "日本", "日本"]


def test_copies_land_on_one_side(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {number % 40}" for number in range(200)))
    data = Text().load(path, held_out_fraction=0.5)
    assert not set(texts(data, data.train)) & set(texts(data, data.held_out))
    assert len(everything(data)) == 200
    path.write_text(path.read_text() + "\nsomething else")
    more = Text().load(path, held_out_fraction=0.5)
    assert set(texts(data, data.held_out)) <= set(texts(more, more.held_out))


def test_of_a_single_document_the_end_is_held_out(tmp_path):
    path = tmp_path / "play.txt"
    whole = "".join(f"KING {number}:\r\nWhat ho.\r\n\r\n" for number in range(100))
    path.write_bytes(whole.encode())
    data = Text().load(path, held_out_fraction=0.2)
    assert (data.train.names, data.held_out.names) == (["play-00001"], ["play-00002"])
    head, tail = texts(data, data.train) + texts(data, data.held_out)
    assert head + tail == whole
    assert head.endswith("\n")
    assert 0.75 < len(head) / len(whole) < 0.85
    assert data.modality.lines is False


def test_long_documents_and_lines_are_cut(tmp_path):
    path = tmp_path / "long.txt"
    whole = "word " * 20_000 + "\n\n" + "x" * 150_000
    path.write_text(whole)
    data = Text().load(path)
    assert "".join(texts(data, data.train) + texts(data, data.held_out)) == whole
    assert max(size for (size,) in data.train.sizes) <= LONGEST
    path.write_text("short\n" * 9 + "y" * 100_000 + "\n")
    data = Text(lines=True).load(path)
    names = [*data.train.names, *data.held_out.names]
    assert {"long-00001", "long-00010-00001", "long-00010-00002"} <= set(names)


@given(st.text("ab\n", max_size=60), st.integers(2, 9))
def test_parts_join_to_the_text(whole, longest):
    parts = list(parts_of(whole, longest))
    assert "".join(parts) == whole
    assert all(len(part) <= longest for part in parts)


def test_a_single_line_stands_for_both_sides(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("only this\n")
    with pytest.warns(UserWarning, match="holds one text, used for training and for evaluation"):
        data = Text(lines=True).load(path)
    assert data.train is data.held_out


def test_memory_is_saved_beyond_the_budget(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {number}" for number in range(300)))
    wide, narrow = Text().load(path), Text().load(path, memory_bytes=1000)
    assert (wide.train.symbols.dtype, narrow.train.symbols.dtype) == (torch.int64, torch.int16)
    assert narrow.train[5].dtype == torch.int64
    assert torch.equal(narrow.train[5], wide.train[5])


def test_items_are_a_sequence():
    items = TextItems(torch.arange(1, 7), [(0, 2), (2, 3), (3, 6)], ["a", "b", "c"], torch.tensor([0, 1, 1]))
    assert (len(items), items.sizes) == (3, [(2,), (1,), (3,)])
    part = items.subset([2, 0])
    assert (part.names, part.sizes, part.labels.tolist()) == (["c", "a"], [(3,), (2,)], [1, 0])
    assert part[0].tolist() == [4, 5, 6]
    assert part.subset([1])[0].tolist() == [1, 2]
    assert len(items.subset([])) == 0


def test_batches_of_texts_come_with_their_lengths(tmp_path):
    modality, _, write_folder = member()
    write_folder(tmp_path)
    data = modality.load(tmp_path)
    batch = Loader(data.train, 4, window=modality.window, size=None, seed=1).batch(3)
    assert batch.items.shape == (4, int(batch.lengths.max()))
    assert set(batch.labels.tolist()) <= {0, 1}
    ends = torch.arange(batch.items.shape[1]) >= batch.lengths[:, None]
    assert torch.equal(batch.items == 0, ends)


# The other verbs


def test_windows_are_pure():
    modality, item, _ = member()
    before, chance = item.clone(), np.array([0.999999, 0.0, 0.0])
    window = modality.window(item, 16, chance)
    assert torch.equal(window, item[-16:])
    assert torch.equal(modality.window(item, 16, np.array([0.0, 1.0, 1.0])), item[:16])
    assert torch.equal(window, modality.window(item, 16, chance))
    assert torch.equal(item, before)
    for size in (None, len(item), 500):
        assert torch.equal(modality.window(item, size, chance), item)


def test_short_texts_are_continued_by_the_end(text):
    item = text.padded(text.encode("süß"), 20)
    assert item.shape == (20,)
    assert text.decode(item) == "süß"


def test_lines_that_are_written_are_loaded(tmp_path, text):
    lines = [*SENTENCES, "\ufeff 😀 é\u0301", "a\\nb", "\x0b\x0c\x85\u2028.", " spaces "]
    for order in (lines, lines[::-1], ["\ufeffx", *lines]):
        text.write(tmp_path / "out.txt", [text.encode(line) for line in order])
        data = text.load(tmp_path / "out.txt")
        assert everything(data) == sorted(order)


def test_a_document_that_is_written_is_loaded(tmp_path):
    document = Text(vocabulary=(), lines=False)
    for whole in ("one\r\n\ntwo 😀\nend", "\ufeffmarked\n\nend\n", "no line end"):
        document.write(tmp_path / "out.txt", [document.encode(whole)])
        data = document.load(tmp_path / "out.txt", held_out_fraction=0.4)
        assert "".join(texts(data, data.train) + texts(data, data.held_out)) == whole


def test_how_lines_are_written(tmp_path):
    modality, _, _ = member()
    path = tmp_path / "new" / "out.txt"
    modality.write(path, [modality.encode("a\nb\r"), torch.tensor([0, 0]), torch.tensor([66, 0, 66])])
    assert path.read_bytes() == b"a\\nb\\r\n\nA\n"
    modality.write(path, [modality.encode("a\n")])
    assert path.read_bytes() == b"a\\n\n"
    with pytest.raises(ValueError, match=r"Texts are written as \.txt, got .*out\.csv"):
        modality.write(tmp_path / "out.csv", [modality.encode("a")])
    assert sorted(tmp_path.iterdir()) == [path.parent]


def test_the_distortion_reads_text():
    modality, item, _ = member()
    distortion = modality.distortion()
    distortion.update(item[None], item[None])
    assert distortion.metrics() == {"symbol_accuracy": 1.0, "exact_share": 1.0, "character_error_rate": 0.0}
    distortion.update(modality.encode("abcd")[None], modality.encode("abce")[None])
    assert distortion.metrics()["character_error_rate"] == 0.125
    assert set(modality.distortion(quick=True).measures) == set(modality.measures)
    quick = modality.distortion(quick=True)
    quick.update(item[None], item[None])
    assert "character_error_rate" not in quick.metrics()


def test_exhibits():
    modality = Text(vocabulary=())
    real, made = modality.encode("the red cat"), modality.encode("the bad cat")
    exhibit = modality.exhibit("a-00001", real, made, torch.tensor([[1, 20], [3, 4]]))
    assert exhibit.note == f"{9 / 11:.1%} of symbols"
    runs = (("the ", False), ("re", True), ("d cat", False)), (("the ", False), ("ba", True), ("d cat", False))
    assert exhibit.real == (Passage(runs[0], "a-00001"),)
    assert exhibit.made == (Passage(runs[1], "a-00001, reconstructed"),)
    assert exhibit.codes == (Passage((("1.20 3.4", False),), "Codes of a-00001"),)
    alone = modality.exhibit("a", real)
    assert (alone.real[0].runs, alone.made, alone.codes, alone.note) == ((("the red cat", False),), (), (), "")


def test_exhibits_of_texts_of_different_lengths_are_aligned():
    modality = KNOWN["subwords"]
    real = modality.encode("the red cat sleeps")
    made = modality.padded(modality.encode("the red sleeps"), len(real))
    shown = modality.exhibit("a", modality.padded(real, len(made)), made, torch.arange(300))
    assert "".join(run for run, _ in shown.made[0].runs) == "the red sleeps"
    assert not any(marked for _, marked in shown.made[0].runs)
    assert "".join(run for run, marked in shown.real[0].runs if marked).strip() == "cat"
    assert shown.codes[0].runs[0][0].endswith(" 255 ...")


def test_exhibits_of_long_and_of_odd_texts():
    modality = Text(vocabulary=())
    long = modality.exhibit("a", modality.encode("x" * 5000), modality.encode("x" * 4999 + "\n"))
    assert long.real[0] == Passage((("x" * 1000, False),), "a, the first 1,000 of 5,000 characters")
    odd = modality.exhibit("a", torch.tensor([66, 1, 67, 200, 11, 68]), torch.tensor([0, 0, 0, 0, 0, 0]))
    assert odd.real[0].runs == (("A\ufffdB\ufffd\nC", True),)
    assert odd.made[0].runs == ()


def test_what_it_recognizes():
    known = {
        "a.txt": True,
        "a.TXT.gz": True,
        "a.jsonl.xz": True,
        "train.en.gz": True,
        "test_2016_flickr.de": True,
        "wiki.train.tokens": True,
        "notes.en": False,
        "Gun_TRAIN.ts": False,
        "a.csv": True,  # it may have a column of texts
        "a.png": False,
    }
    assert {name: Text().recognizes(Path(name)) for name in known} == known


# Real data


def test_the_bundled_manual():
    data = Text().load("bundled:manual")
    sentences = everything(data)
    assert (data.name, data.modality.lines, data.signal.channels) == ("manual", True, 257)
    assert len(sentences) == len(set(sentences)) > 800
    assert 0.05 < len(data.held_out) / len(sentences) < 0.2
    for sentence in sentences:
        assert 20 <= len(sentence) <= 200
        assert sentence[0].isupper()
        assert sentence[-1] in ".?!"
        assert not set(sentence) & set("=<>{}[]|\\_*`#\n")
    assert "Every object has an identity, a type and a value." in sentences
    assert Text().load("bundled:manual").held_out.names == data.held_out.names
    assert Text("subwords", vocabulary_size=400).load("bundled:manual").signal.channels == 400
    with pytest.raises(ValueError, match="bundled:manual"):
        Text().load("bundled:novel")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize(
    ("name", "items", "channels", "lines"),
    [
        ("multi30k/test_2016_flickr.en.gz", (909, 91), 257, True),
        ("tinyshakespeare.txt", (16, 2), 257, False),
        ("rt-polarity.pos", (4557, 524), 275, True),
    ],
)
def test_real_files(name, items, channels, lines):
    data = Text().load(SHARED / name)
    assert (len(data.train), len(data.held_out)) == items
    assert (data.signal.channels, data.modality.lines) == (channels, lines)

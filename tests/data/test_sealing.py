import json
import os
import random
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from gmvq.data.parsing import DamagedFileError
from gmvq.data.sealing import DTYPES, Form, SealedFile, read_record, read_sealed, sealing, write_record, write_sealed

FORM = Form("gmvq.test", 3, "Make it again.")
STATE = {"step": 3, "names": ["a", "é", '"'], "scale": 0.1}


def tensors():
    """A tensor of each type, a number, and one without values."""
    found = {name: torch.tensor([[0, 1], [1, 0]]).to(dtype) for name, dtype in DTYPES.items()}
    found |= {"number": torch.tensor(0.5), "empty": torch.zeros(0, 3), "turned": torch.rand(2, 3).T}
    return {**found, "column": torch.arange(18.0).reshape(2, 9)[:1, 4]}


@pytest.fixture
def path(tmp_path):
    write_sealed(tmp_path / "file", FORM, STATE, tensors())
    return tmp_path / "file"


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype
        and found[name].shape == tensor.shape
        and found[name].contiguous().view(-1).tolist() == tensor.reshape(-1).tolist()
        for name, tensor in expected.items()
    )


def test_what_was_written_comes_back(tmp_path):
    torch.manual_seed(0)
    expected = tensors()
    write_sealed(tmp_path / "file", FORM, STATE, expected)
    state, found = read_sealed(tmp_path / "file", FORM)
    assert state == STATE
    assert same(found, expected)
    assert same(load_file(tmp_path / "file"), expected)  # it is a file of safetensors


def test_the_same_content_has_the_same_bytes(tmp_path):
    for name, parts in (
        ("a", {"x": torch.ones(2), "y": torch.ones(3)}),
        ("b", {"y": torch.ones(3), "x": torch.ones(2)}),
    ):
        write_sealed(tmp_path / name, FORM, STATE, parts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_changed_bit_is_refused(path):
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << random.Random(place).randrange(8)
        path.write_bytes(spoilt)
        with pytest.raises(DamagedFileError, match=r"file (is damaged|is of format)"):
            read_sealed(path, FORM)


def test_any_other_change_is_refused(path):
    whole, generator = path.read_bytes(), random.Random(0)
    for _ in range(300):
        first, last = sorted(generator.choices(range(len(whole)), k=2))
        put = generator.choice([b"", generator.randbytes(9), whole[first:last] * 2, bytes(last - first)])
        spoilt = whole[:first] + put + whole[last:]
        if spoilt == whole:
            continue
        path.write_bytes(spoilt)
        with pytest.raises(DamagedFileError):
            read_sealed(path, FORM)


def forge(path, header, body=b"", length=None):
    """Writes any header with a digest, without the checks of a writer."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)


def header(**entries):
    return {"__metadata__": {"digest": "0" * 64, "format": "gmvq.test", "version": "3", "state": "{}"}, **entries}


def entry(dtype="F32", shape=(2,), place=(0, 8), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": place, **more}


def test_a_forged_file_can_be_made(path):
    forge(path, header(a=entry()), bytes(8))
    assert SealedFile(path, FORM).tensor("a").tolist() == [0, 0]


@pytest.mark.parametrize(
    ("made", "body", "reason"),
    [
        (header(a=entry(shape=[1 << 40], place=[0, 1 << 42])), 8, "bytes in place of"),
        (header(a=entry(shape=[1 << 60], place=[0, 1 << 62])), 8, "shape"),
        (header(a=entry(shape=[10**4000] * 9)), 8, "too large"),
        (header(a=entry(shape=[1] * 500_000)), 8, "shape"),
        (header(a=entry(shape=[-1, -2])), 8, "shape"),
        (header(a=entry(shape=[True, 2])), 8, "shape"),
        (header(a=entry(shape=[2.0])), 8, "shape"),
        (header(a=entry(shape=3)), 8, "damaged"),
        (header(a=entry(dtype="F4")), 8, "type"),
        (header(a=entry(dtype=["F32"])), 8, "damaged"),
        (header(a=entry(more=1)), 8, "type"),
        (header(a=entry(place=[4, 12])), 12, "where it should be"),
        (header(a=entry("U8", [1], [0, 1]), b=entry(place=[1, 9])), 9, "where it should be"),
        (header(a=entry(), b=entry()), 8, "where it should be"),
        (header(a=[]), 8, "damaged"),
        (header(a={}), 8, "dtype"),
        (header(a=entry()), 9, "9|bytes"),
        ([], 99, "of format None"),
        ({}, 99, "of format None"),
        ({"__metadata__": {"format": "gmvq.test", "version": "3"}}, 99, "digest"),
        ({"__metadata__": {"format": "gmvq.test", "version": "4"}}, 99, "of format 'gmvq.test' '4'"),
        ({"__metadata__": {"digest": "0" * 64, "format": "gmvq.test", "version": "3", "state": "[]"}}, 0, "order"),
        ({"__metadata__": {"digest": "0" * 64, "format": "gmvq.test", "version": "3", "state": 1}}, 0, "order"),
        ({"__metadata__": {"format": "gmvq.test", "version": "3", "digest": "0" * 64, "state": "{}"}}, 0, "order"),
        (b"[" * 100_000, 0, "nested"),
        (b"{}", 0, "within its header"),
    ],
)
def test_headers_that_lie_are_refused_before_memory_is_taken(path, made, body, reason):
    forge(path, made, bytes(body))
    with pytest.raises(DamagedFileError, match=reason):
        SealedFile(path, FORM)


@pytest.mark.parametrize("length", [0, 7, 8, 1 << 20, 1 << 40, (1 << 64) - 8])
def test_the_length_of_the_header_is_checked(path, length):
    forge(path, header(a=entry()), bytes(8), length)
    with pytest.raises(DamagedFileError):
        SealedFile(path, FORM)


def test_booleans_are_zero_or_one(path):
    forge(path, header(a=entry("BOOL", [2], [0, 2])), b"\1\2")
    with pytest.raises(DamagedFileError, match="0 and 1"):
        SealedFile(path, FORM).tensor("a")


def test_other_files_are_refused(tmp_path, path):
    save_file({"a": torch.ones(99)}, tmp_path / "other", {"format": "pt"})
    with pytest.raises(DamagedFileError, match="of format 'pt'"):
        read_sealed(tmp_path / "other", FORM)
    with pytest.raises(DamagedFileError, match=r"Make it again"):
        read_sealed(path, FORM._replace(version=2))
    with pytest.raises(FileNotFoundError, match=r"Make it again"):
        read_sealed(tmp_path / "nowhere", FORM)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "pipe", FORM)
    with pytest.raises(DamagedFileError, match="has no 'b'"):
        SealedFile(path, FORM).tensor("b")


def test_a_state_that_could_not_be_read_is_not_written(path):
    old = path.read_bytes()
    for state in ({"a": float("nan")}, {"a": "x" * (1 << 24)}):
        with pytest.raises(ValueError, match=r"JSON|larger"):
            write_sealed(path, FORM, state, {})
    with pytest.raises(ValueError, match="'dtype' must be"):
        write_sealed(path, FORM, {}, {"a": torch.zeros(1, dtype=torch.complex128)})
    assert path.read_bytes() == old


def test_parts_may_be_put_in_any_order(path):
    with sealing(path, FORM, {}, {"a": ("U8", (4,)), "b": ("I64", (1,))}) as draft:
        draft.put("a", b"cd", 2)
        draft.put("b", bytes(8))
        draft.put("a", b"ab")
    with SealedFile(path, FORM) as file:
        assert bytes(file.verify().tensor("a").numpy()) == b"abcd"
        assert bytes(file.part("a", 1, 3).numpy()) == b"bc"


def test_an_open_file_stays_itself_when_it_is_replaced(path):
    file = SealedFile(path, FORM)
    write_sealed(path, FORM, {}, {"F32": torch.ones(5)})
    assert file.verify().tensor("F32").tolist() == [[0, 1], [1, 0]]


def test_records_are_sealed(tmp_path):
    value = {"format": "gmvq.test", "version": 3, "a": [1.5, None, {"b": "é"}]}
    write_record(tmp_path / "x.json", value)
    assert read_record(tmp_path / "x.json") == read_record(tmp_path / "x.json", FORM) == value
    text = (tmp_path / "x.json").read_text()
    for old, new, reason in (
        ("1.5", "1.25", "not what was written"),
        ("null", "0", "not what was written"),
        ('"version": 3', '"version": true', "version True"),
        ('"version": 3', '"version": 4', "version 4"),
        ("gmvq.test", "gmvq.other", "not of format"),
        ('"digest"', '"digits"', "not what was written"),
        (text, "[]", "not of format"),
        (text, "", "not JSON"),
    ):
        (tmp_path / "x.json").write_text(text.replace(old, new))
        with pytest.raises(DamagedFileError, match=reason):
            read_record(tmp_path / "x.json", FORM)
    (tmp_path / "x.json").write_text(text.replace("\n", " "))
    assert read_record(tmp_path / "x.json", FORM) == value

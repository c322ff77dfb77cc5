import hashlib
import json
import struct
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gmvq.data.parsing import DamagedFileError
from gmvq.data.sealing import write_sealed
from gmvq.tokenization import TokenFile, TokenInfo, write_tokens
from gmvq.tokenization.tokens import FORM
from gmvq.types import Signal

IMAGES = Signal("image", 2, 3, "unit")
SOUND = Signal("audio", 1, 1, "signed", 8000.0)
VECTORS = Signal("vectors", 0, 5, "real")


def info(sizes=((8, 8), (8, 7)), names=("a.png", "b/c.jpg"), codebook_sizes=(512,), signal=IMAGES, levels=False):
    return TokenInfo("feed" * 16, codebook_sizes, levels, 4 if signal.axes else 1, signal, names, sizes)


def codes(description):
    generator = torch.Generator().manual_seed(0)
    found = []
    for grid in description.grids:
        levels = [torch.randint(size, grid, generator=generator) for size in description.codebook_sizes]
        found.append(torch.stack(levels, -1) if description.has_levels else levels[0])
    return found


def write(path, description, grids=None):
    grids = codes(description) if grids is None else grids
    write_tokens(path, description, (([index], grid[None]) for index, grid in enumerate(grids)))
    return grids


def test_golden_bytes(tmp_path):
    description = info(((4, 8), (4, 8)), ("a", "é"))
    write(tmp_path / "t", description, [torch.tensor([[1, 2]]), torch.tensor([[258, 511]])])
    whole = (tmp_path / "t").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    assert length % 8 == 0
    digest = header["__metadata__"].pop("digest")
    state = {
        "tokenizer": "feed" * 16,
        "codebook_sizes": [512],
        "has_levels": False,
        "downsampling": 4,
        "signal": asdict(IMAGES),
    }
    assert header == {
        "__metadata__": {"format": "gmvq.tokens", "version": "1", "state": json.dumps(state)},
        "ends": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
        "sizes": {"dtype": "I64", "shape": [2, 2], "data_offsets": [16, 48]},
        "codes": {"dtype": "U16", "shape": [2, 1, 2], "data_offsets": [48, 56]},
        "names": {"dtype": "U8", "shape": [3], "data_offsets": [56, 59]},
    }
    numbers = np.array([1, 3, 4, 8, 4, 8], "<i8").tobytes()
    assert whole[8 + length :] == numbers + bytes.fromhex("010002000201ff01") + "aé".encode()
    assert digest == hashlib.sha256(whole.replace(digest.encode(), b"0" * 64)).hexdigest()
    assert TokenFile(tmp_path / "t").info == description


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (2, "u1"),
        (256, "u1"),
        (257, "u2"),
        (65536, "u2"),
        (65537, "i4"),
        (2**31, "i4"),
        (2**31 + 1, "i8"),
        (2**62, "i8"),
    ],
)
@pytest.mark.parametrize(
    ("signal", "sizes"),
    [
        (IMAGES, ((8, 8), (7, 5))),
        (IMAGES, ((8, 8), (9, 70))),
        (SOUND, ((9,), (800,))),
        (SOUND, ((8,), (8,))),
        (VECTORS, ((), ())),
    ],
)
@pytest.mark.parametrize("levels", [False, True])
def test_written_codes_come_back(tmp_path, size, dtype, signal, sizes, levels):
    description = info(sizes, codebook_sizes=(size, 3) if levels else (size,), signal=signal, levels=levels)
    grids = write(tmp_path / "deep" / "t", description)
    file = TokenFile(tmp_path / "deep" / "t")
    file.verify()
    assert file.info == description
    assert description.tokens == sum(grid.numel() // (2 if levels else 1) for grid in grids)
    assert len(file) == 2
    for index, grid in enumerate(grids):
        assert file[index].dtype == torch.int64
        assert torch.equal(file[index], grid)
    assert torch.equal(file[-1], grids[-1])
    assert load_file(tmp_path / "deep" / "t")["codes"].dtype == np.dtype(dtype)
    with pytest.raises(IndexError, match="below 2"):
        file[2]


def test_batches_may_come_in_any_order(tmp_path):
    description = info()
    grids = codes(description)
    write_tokens(tmp_path / "t", description, [([1, 0], torch.stack(grids[::-1]))])
    assert torch.equal(TokenFile(tmp_path / "t")[0], grids[0])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([([0], torch.zeros(1, 2, 2, dtype=torch.int64))], "1 are missing"),
        ([([0], torch.full((1, 2, 2), 512))], "below"),
        ([([0], torch.full((1, 2, 2), -1))], "below"),
        ([([0], torch.zeros(1, 2, 2))], "must be integers"),
        ([([0], torch.zeros(1, 2, 3, dtype=torch.int64))], "of shape"),
    ],
)
def test_wrong_codes_leave_the_old_file(tmp_path, batches, message):
    (tmp_path / "t").write_text("old")
    with pytest.raises(ValueError, match=message):
        write_tokens(tmp_path / "t", info(), batches)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert (tmp_path / "t").read_text() == "old"


def test_info_without_items_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_tokens(tmp_path / "t", info((), ()), [])


def test_millions_of_items_and_any_names_are_read_back(tmp_path):
    # the header stays small: names and sizes are tensors
    number = 2_600_000
    description = info(((8,),) * number, [str(i) for i in range(number)], (16,), SOUND)
    batches = ((range(i, i + 100_000), torch.ones(100_000, 2, dtype=torch.int64)) for i in range(0, number, 100_000))
    write_tokens(tmp_path / "t", description, batches)
    file = TokenFile(tmp_path / "t")
    assert (len(file), file[number - 1].tolist(), file.info.names[-1]) == (number, [1, 1], str(number - 1))
    names = ["a\nb", "ü" * 3000, "\udc80", '"', "\0"]
    write(tmp_path / "t", info(((8,),) * 5, names, (16,), SOUND))
    assert list(TokenFile(tmp_path / "t").info.names) == names


def test_codes_that_were_changed_within_their_range_are_noticed(tmp_path):
    write(tmp_path / "t", info())
    whole = bytearray((tmp_path / "t").read_bytes())
    whole[-20] ^= 1
    (tmp_path / "t").write_bytes(whole)
    TokenFile(tmp_path / "t", verify=False)[0]
    with pytest.raises(DamagedFileError, match="not what was written"):
        TokenFile(tmp_path / "t")


def state(**changes):
    values = {
        "tokenizer": "feed",
        "codebook_sizes": [16],
        "has_levels": False,
        "downsampling": 4,
        "signal": asdict(IMAGES),
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def tensors(**changes):
    values = {
        "codes": torch.full((1, 2, 2), 3, dtype=torch.uint8),
        "sizes": torch.tensor([[8, 8]]),
        "names": torch.tensor([97], dtype=torch.uint8),
        "ends": torch.tensor([1]),
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": None}, "description"),
        ({"signal": [1]}, "description"),
        ({"signal": {}}, "description"),
        ({"signal": asdict(IMAGES) | {"modality": 3}}, "description"),
        ({"codebook_sizes": 3}, "description"),
        ({"codebook_sizes": "many"}, "contradict"),
        ({"codebook_sizes": []}, "contradict"),
        ({"codebook_sizes": [0]}, "contradict"),
        ({"codebook_sizes": [True]}, "contradict"),
        ({"codebook_sizes": [4, 4]}, "contradict"),
        ({"codebook_sizes": [10**39]}, "contradict"),
        ({"codebook_sizes": [10**4000]}, "too large"),
        ({"downsampling": 0}, "contradict"),
        ({"downsampling": 4.0}, "contradict"),
        ({"has_levels": 1}, "contradict"),
        ({"tokenizer": 1}, "contradict"),
        ({"downsampling": 8}, "do not fit"),
        ({"codebook_sizes": [512]}, "U8 in place of U16"),
        ({"codebook_sizes": [3]}, "must lie below"),
    ],
)
def test_descriptions_that_contradict_the_file(tmp_path, changes, message):
    write_sealed(tmp_path / "t", FORM, state(**changes), tensors())
    with pytest.raises(DamagedFileError, match=message):
        TokenFile(tmp_path / "t")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": torch.tensor([255], dtype=torch.uint8)}, "names"),
        ({"names": torch.tensor([97, 97], dtype=torch.uint8)}, "names"),
        ({"names": torch.tensor([97.0])}, "names"),
        ({"names": None}, "names"),
        ({"ends": torch.tensor([2])}, "names"),
        ({"ends": torch.tensor([-1, 1]), "sizes": torch.tensor([[8, 8]] * 2)}, "names"),
        ({"ends": torch.tensor([2**63 - 1, 1]), "sizes": torch.tensor([[8, 8]] * 2)}, "names"),
        ({"ends": torch.tensor([[1]])}, "names"),
        ({"ends": torch.zeros(0, dtype=torch.int64), "sizes": torch.zeros(0, 2, dtype=torch.int64)}, "sizes"),
        ({"ends": torch.tensor(1)}, "ends"),
        ({"ends": None}, "ends"),
        ({"sizes": torch.tensor([[0, 8]])}, "sizes"),
        ({"sizes": torch.tensor([[8]])}, "sizes"),
        ({"sizes": torch.tensor([[8.0, 8.0]])}, "sizes"),
        ({"sizes": torch.tensor([[8, 9]])}, "do not fit"),
        ({"sizes": torch.tensor([[2**62, 2**62]])}, "do not fit"),
        ({"sizes": None}, "sizes"),
        ({"codes": None}, "codes"),
        ({"codes": torch.zeros(2, 2, dtype=torch.uint8)}, "do not fit"),
    ],
)
def test_tensors_that_contradict_each_other(tmp_path, changes, message):
    write_sealed(tmp_path / "t", FORM, state(), tensors(**changes))
    with pytest.raises(DamagedFileError, match=message):
        TokenFile(tmp_path / "t")


def test_names_must_end_between_characters(tmp_path):
    two = {"sizes": torch.tensor([[8, 8]] * 2), "names": torch.tensor(list("é".encode()), dtype=torch.uint8)}
    write_sealed(tmp_path / "t", FORM, state(), tensors(ends=torch.tensor([1, 2]), **two))
    with pytest.raises(DamagedFileError, match="names"):
        TokenFile(tmp_path / "t")


def test_truncated_and_foreign_files(tmp_path):
    write(tmp_path / "t", info())
    whole = (tmp_path / "t").read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"PNG", whole + b"x"):
        (tmp_path / "t").write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"is damaged \(.*gmvq tokenize"):
            TokenFile(tmp_path / "t")
    with pytest.raises(FileNotFoundError, match="gmvq tokenize"):
        TokenFile(tmp_path)

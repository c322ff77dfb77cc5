import json
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gmvq.tokenization import TokenFile, TokenInfo, write_tokens


def info(codebook_size=512, sizes=((8, 8), (8, 7)), names=("a.png", "b/c.jpg")):
    return TokenInfo("feed" * 16, codebook_size, 4, names, sizes)


def codes(description):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(description.codebook_size, grid, generator=generator) for grid in description.grids]


def write(path, description, grids=None):
    grids = codes(description) if grids is None else grids
    write_tokens(path, description, (([index], grid[None]) for index, grid in enumerate(grids)))
    return grids


def test_golden_bytes_of_one_tensor(tmp_path):
    description = info(codebook_size=512, sizes=((4, 8), (4, 8)), names=("a.png", "b.png"))
    write(tmp_path / "t", description, [torch.tensor([[1, 2]]), torch.tensor([[258, 511]])])
    header = (
        '{"__metadata__":{"format":"gmvq.tokens","version":"1","tokenizer":"' + "feed" * 16 + '",'
        '"codebook_size":"512","downsampling":"4","sizes":"[[4,8]]","names":"[\\"a.png\\",\\"b.png\\"]"},'
        '"codes":{"dtype":"U16","shape":[2,1,2],"data_offsets":[0,8]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    assert (tmp_path / "t").read_bytes() == struct.pack("<Q", len(header)) + header + bytes.fromhex("010002000201ff01")


def test_golden_bytes_of_a_tensor_for_each_image(tmp_path):
    description = info(codebook_size=16, sizes=((4, 4), (4, 5)), names=("a", "é"))
    write(tmp_path / "t", description, [torch.tensor([[7]]), torch.tensor([[15, 0]])])
    header = (
        '{"__metadata__":{"format":"gmvq.tokens","version":"1","tokenizer":"' + "feed" * 16 + '",'
        '"codebook_size":"16","downsampling":"4","sizes":"[[4,4],[4,5]]","names":"[\\"a\\",\\"\\\\u00e9\\"]"},'
        '"codes.0":{"dtype":"U8","shape":[1,1],"data_offsets":[0,1]},'
        '"codes.1":{"dtype":"U8","shape":[1,2],"data_offsets":[1,3]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    assert (tmp_path / "t").read_bytes() == struct.pack("<Q", len(header)) + header + bytes([7, 15, 0])
    assert TokenFile(tmp_path / "t").info.names == ("a", "é")


@pytest.mark.parametrize(("size", "dtype"), [(2, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "i4")])
@pytest.mark.parametrize("sizes", [((8, 8), (7, 5)), ((8, 8), (9, 70))])
def test_written_codes_come_back(tmp_path, size, dtype, sizes):
    description = info(size, sizes)
    grids = write(tmp_path / "deep" / "t", description)
    file = TokenFile(tmp_path / "deep" / "t")
    assert file.info == description
    assert description.tokens == sum(grid.numel() for grid in grids)
    assert len(file) == 2
    for index, grid in enumerate(grids):
        assert file[index].dtype == torch.int64
        assert torch.equal(file[index], grid)
    assert torch.equal(file[-1], grids[-1])
    assert {tensor.dtype for tensor in load_file(tmp_path / "deep" / "t").values()} == {np.dtype(dtype)}
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
        ([([0], torch.full((1, 2, 2), 512))], "below 512"),
        ([([0], torch.full((1, 2, 2), -1))], "below 512"),
        ([([0], torch.zeros(1, 2, 3, dtype=torch.int64))], "of shape"),
    ],
)
def test_wrong_codes_leave_the_old_file(tmp_path, batches, message):
    (tmp_path / "t").write_text("old")
    with pytest.raises(ValueError, match=message):
        write_tokens(tmp_path / "t", info(), batches)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert (tmp_path / "t").read_text() == "old"


def test_info_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_tokens(tmp_path / "t", info(names=(), sizes=()), [])


def metadata(**changes):
    values = {
        "format": "gmvq.tokens",
        "version": "1",
        "tokenizer": "feed",
        "codebook_size": "16",
        "downsampling": "4",
        "sizes": "[[8,8]]",
        "names": '["a"]',
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not of format"),
        ({"version": "2"}, "of version 2"),
        ({"names": None}, "metadata"),
        ({"names": "[1"}, "metadata"),
        ({"sizes": "[8]"}, "metadata"),
        ({"codebook_size": "many"}, "metadata"),
        ({"names": "[1]"}, "contradict"),
        ({"names": "[]"}, "contradict"),
        ({"sizes": "[[8,8],[8,8]]"}, "contradict"),
        ({"sizes": "[[0,8]]"}, "contradict"),
        ({"sizes": "[[8.5,8]]"}, "contradict"),
        ({"downsampling": "0"}, "contradict"),
        ({"downsampling": "8"}, "shapes"),
        ({"sizes": "[[8,9]]"}, "shapes"),
        ({"codebook_size": "512"}, "U8 in place of U16"),
        ({"codebook_size": "3"}, "below K = 3"),
    ],
)
def test_files_that_contradict_themselves(tmp_path, changes, message):
    save_file({"codes": np.full((1, 2, 2), 3, np.uint8)}, tmp_path / "t", metadata(**changes))
    with pytest.raises(ValueError, match=message):
        TokenFile(tmp_path / "t")[0]


def test_files_without_the_tensors(tmp_path):
    save_file({"codes.1": np.zeros((2, 2), np.uint8)}, tmp_path / "t", metadata())
    with pytest.raises(ValueError, match="does not hold the codes"):
        TokenFile(tmp_path / "t")


def test_truncated_and_foreign_files(tmp_path):
    write(tmp_path / "t", info())
    whole = (tmp_path / "t").read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"PNG", whole + b"x"):
        (tmp_path / "t").write_bytes(damaged)
        with pytest.raises(ValueError, match="no whole safetensors file"):
            TokenFile(tmp_path / "t")
    with pytest.raises(FileNotFoundError, match="gmvq tokenize"):
        TokenFile(tmp_path)


def test_metadata_are_json_strings(tmp_path):
    write(tmp_path / "t", info())
    size = struct.unpack("<Q", (tmp_path / "t").read_bytes()[:8])[0]
    assert size % 8 == 0
    header = json.loads((tmp_path / "t").read_bytes()[8 : 8 + size])
    assert json.loads(header["__metadata__"]["sizes"]) == [[8, 8], [8, 7]]

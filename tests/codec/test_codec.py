import os
import random
import zlib

import pytest
import torch

from gmvq import hub
from gmvq.codec import Codec, DamagedSegmentError, container, measured
from gmvq.codec.container import Header, Segment, read, rows_of, write
from gmvq.data import ListItems
from gmvq.data.parsing import DamagedFileError
from gmvq.entropy import EntropyConfig, EntropyModel, fit
from gmvq.modalities import Audio, Image, Vectors
from gmvq.models import Autoencoder, AutoencoderConfig

MUTATIONS = 100_000 if os.environ.get("GMVQ_FAULTS") == "full" else 1500


def tokenizer(**changes):
    torch.manual_seed(0)
    settings = {"modality": Image(channels=3), "codebook_size": 64, "width": 8, "blocks": 1}
    return Autoencoder(AutoencoderConfig(**{**settings, **changes})).eval()


@pytest.fixture(scope="module")
def codec():
    return Codec(tokenizer())


def codes_of(*grid, seed=0, size=64):
    return torch.randint(size, grid, generator=torch.Generator().manual_seed(seed))


def test_an_item_comes_back_as_its_reconstruction(codec):
    item = torch.randint(256, (3, 33, 50), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = codec.compress(item)
    expected = codec.tokenizer.signal.stored(codec.tokenizer.reconstruct(item[None]))[0]
    made = codec.decompress(data)
    assert made.dtype == torch.uint8
    assert torch.equal(made, expected)
    parsed = read(data)
    assert parsed.header.size == (33, 50)
    assert parsed.header.tokenizer == hub.fingerprint(codec.tokenizer)[:8]


@pytest.mark.parametrize(
    ("modality", "item"),
    [
        (Audio(rate=8000, channels=1), torch.zeros(1, 1001, dtype=torch.int16)),
        (Vectors(("a", "b")), torch.tensor([0.5, -1.0])),
    ],
)
def test_other_modalities_come_back(modality, item):
    own = Codec(tokenizer(modality=modality, downsampling=1 if isinstance(modality, Vectors) else 4))
    data = own.compress(item)
    assert own.decompress(data).shape == item.shape
    assert read(data).header.rate == (8000 if isinstance(modality, Audio) else None)


def test_the_header_takes_at_most_24_bytes():
    for size, rate in (((512, 768), None), ((16383, 16383), None), ((2_000_000,), 48_000)):
        header = Header("0" * 8, "f" * 8, 8, size, rate)
        assert len(write(header, 1, [Segment(b"", packed=False)])) <= 24


def test_no_file_is_larger_than_packed_codes_and_a_header(codec):
    for seed in range(5):
        codes = codes_of(7, 9, seed=seed)
        data = codec.pack(codes, (28, 36))
        assert len(data) <= 24 + codes.numel() * 6 / 8 + 1
        assert read(data).segments[0].packed


@pytest.mark.parametrize("threads", [1, 2])
def test_segments_are_the_same_with_any_number_of_threads(codec, threads):
    own = Codec(codec.tokenizer, segment=100, threads=threads)
    codes = codes_of(30, 20)
    data = own.pack(codes, (120, 80))
    assert data == Codec(codec.tokenizer, segment=100).pack(codes, (120, 80))
    assert len(read(data).segments) == 6
    # the reader needs not know how the writer divided
    assert torch.equal(codec.unpack(data).codes, codes)


def test_a_damaged_segment_costs_itself(codec):
    codes = codes_of(30, 20)
    data = Codec(codec.tokenizer, segment=100).pack(codes, (120, 80))
    broken = bytearray(data)
    broken[-10] ^= 1
    with pytest.raises(DamagedSegmentError, match=r"5 \(tokens from 25\)") as caught:
        codec.unpack(bytes(broken))
    assert caught.value.segments == (5,)
    found = codec.unpack(bytes(broken), salvage=True).codes
    assert torch.equal(found[:25], codes[:25])
    assert bool((found[25:] == -1).all())
    assert codec.decompress(bytes(broken), salvage=True).shape == (3, 120, 80)
    cut = codec.unpack(data[: len(data) // 2], salvage=True).codes
    assert torch.equal(cut[:10], codes[:10])


@pytest.mark.parametrize("segment", [100, 1 << 17])
def test_every_changed_byte_and_every_cut_is_noticed(codec, segment):
    own = Codec(codec.tokenizer, segment=segment)
    codes = codes_of(15, 20)
    data = own.pack(codes, (60, 80))
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"\w"):
            own.unpack(bytes(broken))
        with pytest.raises(DamagedFileError):
            own.unpack(data[:place])
    with pytest.raises(DamagedFileError):
        own.unpack(data + b"\0")


def sealed(data):
    """Writes the check sums that belong to changed bytes, as someone would who means harm."""
    if len(data) < 18 or not data[4] & 4:  # one segment
        return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")
    made, cursor = bytearray(data), container._Cursor(data, 13, len(data))
    try:
        form = cursor.number(1 << 40)
        for _ in range((form & 3) + bool(data[4] & 8) + 1):
            cursor.number(1 << 42)
        lengths = [cursor.number(len(data)) for _ in range(cursor.number(len(data)))]
    except DamagedFileError:
        return data
    start = cursor.place
    made[start : start + 4] = zlib.crc32(made[:start]).to_bytes(4, "little")
    start += 4
    for length in lengths:
        end = start + max(length, 4)
        made[end - 4 : end] = zlib.crc32(made[start : end - 4]).to_bytes(4, "little")
        start = end
    return bytes(made)


def test_hostile_files_give_errors_or_codes_and_no_large_memory(codec):
    chance, kinds = random.Random(0), []
    codes = codes_of(6, 8)
    for seed in range(3):
        kinds.append(codec.pack(codes_of(6, 8, seed=seed), (24, 32)))
    kinds.append(codec.pack(torch.full((6, 8), 3), (24, 32)))
    kinds.append(codec.pack(codes.masked_fill(codes < 20, -1), (24, 32)))
    several = Codec(codec.tokenizer, segment=10).pack(codes, (24, 32))
    outcomes = {"codes": 0, "refused": 0}
    for number in range(MUTATIONS):
        data = bytearray(several if number % 6 == 5 else kinds[number % 6 % 5])
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(4, len(data))
            data[place] = chance.randrange(256)
        if chance.random() < 0.2:
            data = data[: chance.randrange(len(data))]
        try:
            found = codec.unpack(sealed(bytes(data)), salvage=True)
        except ValueError:
            outcomes["refused"] += 1
        else:
            outcomes["codes"] += 1
            assert found.codes.numel() < 1 << 24
            assert -1 <= found.codes.min() <= found.codes.max() < 64
    assert min(outcomes.values()) > 0


def test_too_many_codes_for_the_bytes_are_refused_before_memory_is_taken(codec):
    header = Header(codec.mark, codec.model_mark, 1, (1 << 20, 1 << 20))
    with pytest.raises(DamagedFileError, match="cannot hold"):
        codec.unpack(write(header, 1, [Segment(b"abc", packed=False)]))


def test_files_of_others_are_named(codec):
    data = codec.pack(codes_of(5, 5), (20, 20))
    torch.manual_seed(1)
    other = Codec(Autoencoder(codec.tokenizer.config).eval())
    with pytest.raises(ValueError, match="made with the tokenizer"):
        other.unpack(data)
    model = fit(codec.model.config, [None], [codes_of(9, 9, seed=3)])
    fitted = Codec(codec.tokenizer, model)
    assert torch.equal(fitted.unpack(data).codes, codes_of(5, 5)), "files from before the fit stay readable"
    with pytest.raises(ValueError, match="made with the entropy model"):
        codec.unpack(fitted.pack(codes_of(5, 5), (20, 20)))
    with pytest.raises(ValueError, match="must be of codes"):
        Codec(codec.tokenizer, EntropyModel(EntropyConfig((65,), 2)))
    for wrong, named in ((b"", "no file"), (b"RIFF" * 20, "no file"), (data[:4] + b"\xf0" + data[5:], "version 15")):
        with pytest.raises(DamagedFileError, match=named):
            codec.unpack(wrong)


def test_levels_are_a_prefix():
    own = Codec(tokenizer(quantizer="residual", quantizer_options={"levels": 3}))
    codes = codes_of(6, 7, 3, size=4)
    sizes = [len(own.pack(codes, (24, 28), levels=levels)) for levels in (1, 2, 3)]
    assert sizes == sorted(sizes)
    found = own.unpack(own.pack(codes, (24, 28), levels=2))
    assert torch.equal(found.codes, codes[..., :2])
    assert own.decompress(own.pack(codes, (24, 28), levels=1)).shape == (3, 24, 28)
    for levels in (0, 4):
        with pytest.raises(ValueError, match="levels"):
            own.pack(codes, (24, 28), levels=levels)


def test_codes_that_do_not_fit_are_refused(codec):
    with pytest.raises(ValueError, match="grid"):
        codec.pack(codes_of(5, 5), (40, 40))
    with pytest.raises(ValueError, match="lie in"):
        codec.pack(torch.full((5, 5), 64), (20, 20))
    with pytest.raises(ValueError, match="levels"):
        codec.pack(codes_of(5, 5), (20, 20), levels=1)
    for quantizer, named in (("none", "no codes"), ("hierarchical", "several scales")):
        with pytest.raises(ValueError, match=named):
            Codec(tokenizer(quantizer=quantizer))


def test_measures_are_those_of_the_files(codec):
    items = ListItems([torch.full((3, 16, 16), 10 * n, dtype=torch.uint8) for n in range(3)], 2, ["a", "b", "c"])
    found = measured(codec, items)
    assert found["codes"] == 3 * 16
    assert found["bytes"] == sum(len(codec.compress(items[index])) for index in range(3))
    assert found["bits_per_code"] == pytest.approx(8 * found["bytes"] / 48)
    assert found["packed_bits_per_code"] == 6
    assert found["estimated_bits_per_code"] < found["bits_per_code"]


def test_rows_are_divided_evenly():
    assert rows_of((), 1, 10) == 1
    assert rows_of((100,), 1, 1000) == 100
    assert rows_of((101,), 1, 100) == 51
    assert rows_of((5, 1000), 2, 10) == 1
    assert rows_of((container.MOST_SEGMENTS + 1,), 1, 1) == 2


def test_files_of_version_1_are_these_bytes():
    whole = write(Header("00112233", "44556677", 3, (513, 768), 48_000), 9, [Segment(b"abc", packed=True)])
    assert whole.hex() == "676d7671190011223344556677" + "0e" + "8104" + "8006" + "80f702" + "616263" + whole[-4:].hex()
    several = write(Header("00112233", "44556677", 1, (7,), None, masked=True), 4, [Segment(b"x", packed=False)] * 2)
    crc = zlib.crc32(b"\0x").to_bytes(4, "little").hex()
    head = "676d7671160011223344556677" + "05" + "07" + "04" + "02" + "0606"
    assert several.hex() == head + zlib.crc32(bytes.fromhex(head)).to_bytes(4, "little").hex() + ("0078" + crc) * 2

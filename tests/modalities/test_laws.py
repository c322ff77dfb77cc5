"""One list of modalities, one test for each law (style.md, 8)."""

import inspect
import json
import math
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modality_members import MEMBERS, worsened
from PIL import Image

from gmvq.modalities import MODALITIES, Modality, Passage, Picture, Sound, described, fingerprint, from_description
from gmvq.models import Autoencoder, AutoencoderConfig

PERFECT = {
    **{"mse": 0, "mae": 0, "cosine": 1, "r2": 1, "mel_distance": 0, "si_sdr": 100},
    **{"psnr": 100, "ssim": 1, "lpips": 0, "symbol_accuracy": 1, "exact_share": 1, "character_error_rate": 0},
}
"""What each metric is where nothing was lost."""
STRIDE = 4

members = pytest.mark.parametrize("name", MEMBERS)
sequences = pytest.mark.parametrize("name", [name for name in MEMBERS if MEMBERS[name]().modality.signal.axes == 1])


def floats(member):
    """The item as a model takes it."""
    return member.modality.signal.checked(member.item[None])[0]


def model_of(modality):
    """A small tokenizer with random weights, whose codes depend on the items."""
    torch.manual_seed(0)
    stride = STRIDE if modality.signal.axes else 1
    config = AutoencoderConfig("lookup-free", modality, 16, width=8, blocks=1, downsampling=stride)
    return Autoencoder(config).eval()


def part_of(item, axes, size):
    return item[(..., *[slice(size)] * axes)]


def test_every_modality_has_a_member():
    assert {name: type(make().modality) for name, make in MEMBERS.items()} == MODALITIES


@members
def test_verbs_take_what_the_base_class_says(name):
    for verb in ("load", "read", "recognizes", "window", "padded", "distortion", "exhibit", "write"):
        own, base = (inspect.signature(getattr(kind, verb)) for kind in (MODALITIES[name], Modality))
        assert list(own.parameters.values()) == list(base.parameters.values()), verb


# Settings


@members
def test_the_description_is_json(name):
    for modality in (MEMBERS[name]().modality, MODALITIES[name]()):
        again = from_description(json.loads(json.dumps(described(modality), allow_nan=False)))
        assert again == modality
        assert hash(again) == hash(modality)


@members
def test_the_signal_is_of_its_items(name):
    modality, item, _ = MEMBERS[name]()
    signal = modality.signal
    assert (signal.modality, modality.kind) == (name, name)
    assert signal.checked(item[None]).shape == (1, *item.shape)
    assert item.ndim == signal.item_axes
    with pytest.raises(ValueError, match="'items' must have shape"):
        signal.checked(item[None, None])


# Window


@members
@settings(max_examples=30, deadline=None)
@given(
    size=st.one_of(st.none(), st.integers(1, 200)),
    chance=st.tuples(*[st.floats(0, 1, allow_nan=False)] * 3),
)
def test_a_window_is_a_pure_function(name, size, chance):
    modality, item, _ = MEMBERS[name]()
    before, numbers = item.clone(), np.array(chance)
    window, again = modality.window(item, size, numbers), modality.window(item, size, numbers)
    assert torch.equal(window, again)
    assert torch.equal(item, before)
    assert numbers.tolist() == list(chance)
    assert (window.dtype, window.ndim) == (item.dtype, item.ndim)
    lengths = modality.signal.size(item)
    if size is None or not lengths:
        wanted = lengths
    elif len(lengths) == 1:
        wanted = (min(size, lengths[0]),)
    else:
        wanted = (size,) * len(lengths)
    assert modality.signal.size(window) == wanted
    modality.signal.checked(window[None])


@members
def test_a_whole_window_is_the_item(name):
    modality, item, _ = MEMBERS[name]()
    assert torch.equal(modality.window(item, None, np.array([0.3, 0.7, 0.5])), item)


@sequences
def test_windows_reach_both_ends(name):
    modality, item, _ = MEMBERS[name]()
    for place, part in ((0.0, item[..., :10]), (1.0, item[..., -10:])):
        assert torch.equal(modality.window(item, 10, np.array([place, place, 1.0])), part)


# Files


@members
def test_what_is_written_is_loaded(tmp_path, name):
    member = MEMBERS[name]()
    modality, item, _ = member
    path = tmp_path / f"item{modality.suffix}"
    modality.write(path, [floats(member)])
    data = modality.load(path, held_out_fraction=0)
    assert data.modality == modality
    assert data.held_out is data.train
    (again,) = (data.train[index] for index in range(len(data.train)))
    assert (again.dtype, again.shape) == (item.dtype, item.shape)
    precision = 1 / 32768 if modality.signal.values == "signed" else 0  # WAV files have 16 bits
    assert (again.double() - item.double()).abs().max() <= precision


@members
def test_several_items_in_one_file(tmp_path, name):
    member = MEMBERS[name]()
    modality, real = member.modality, floats(member)
    path, items = tmp_path / f"items{modality.suffix}", [real, worsened(real, 0.5), worsened(real, 0.9)]
    if not (modality.several or modality.lays_out):
        with pytest.raises(ValueError, match=rf"'items' must be one {modality.item} for .*items"):
            modality.write(path, items, columns=2)
        assert not path.exists()
        return
    modality.write(path, items, columns=2)
    again = modality.load(path, held_out_fraction=0).train
    if modality.several:
        assert [again[index].tolist() for index in range(len(again))] == [item.tolist() for item in items]


@members
def test_a_folder_of_files(tmp_path, name):
    modality, _, write_folder = MEMBERS[name]()
    write_folder(tmp_path)
    data = modality.load(tmp_path, held_out_fraction=0.4)
    assert (data.name, data.skipped, data.modality) == (tmp_path.name, (), modality)
    assert set(data.train.names).isdisjoint(data.held_out.names)
    assert data.classes == tuple(sorted(folder.name for folder in tmp_path.iterdir()))
    for side in (data.train, data.held_out):
        assert [data.classes[label] for label in side.labels] == [name.split("/")[0] for name in side.names]
        assert [data.signal.size(side[index]) for index in range(len(side))] == side.sizes
        for index in range(len(side)):
            data.signal.checked(side[index][None])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(map(modality.recognizes, files))


@members
def test_nothing_is_held_out_where_nothing_is_wanted(tmp_path, name):
    modality, _, write_folder = MEMBERS[name]()
    write_folder(tmp_path)
    whole, split = modality.load(tmp_path, held_out_fraction=0), modality.load(tmp_path, held_out_fraction=0.4)
    assert whole.held_out is whole.train
    assert sorted(whole.train.names) == sorted([*split.train.names, *split.held_out.names])
    assert whole.labelled


@members
def test_settings_are_those_of_the_data(tmp_path, name):
    """A modality that knows nothing learns its settings from the data, and loads them again by these."""
    MEMBERS[name]().write_folder(tmp_path)
    data = MODALITIES[name]().load(tmp_path, held_out_fraction=0.4)
    again = data.modality.load(tmp_path, held_out_fraction=0.4)
    assert again.modality == data.modality
    assert fingerprint(again) == fingerprint(data)


@members
def test_loading_again_gives_the_same(tmp_path, name):
    modality, _, write_folder = MEMBERS[name]()
    marks = []
    for place in (tmp_path / "one" / "data", tmp_path / "two" / "data"):
        write_folder(place)
        marks += [fingerprint(modality.load(place, held_out_fraction=0.4)) for _ in range(2)]
    assert len(set(marks)) == 1


@members
def test_files_that_are_added_move_no_item_to_the_other_side(tmp_path, name):
    member = MEMBERS[name]()
    modality, _, write_folder = member
    write_folder(tmp_path)
    before = modality.load(tmp_path, held_out_fraction=0.4)
    folder = next(folder for folder in tmp_path.iterdir() if folder.is_dir())
    for place in range(2):
        real = worsened(floats(member), 0.3 + 0.3 * place)
        modality.write(folder / f"added-{place}{modality.suffix}", [real])
    after = modality.load(tmp_path, held_out_fraction=0.4)
    assert len(after.train) + len(after.held_out) == len(before.train) + len(before.held_out) + 2
    for side in ("train", "held_out"):
        old, new = getattr(before, side), getattr(after, side)
        places = {name: index for index, name in enumerate(new.names)}
        assert set(old.names) <= places.keys()
        assert all(torch.equal(old[index], new[places[name]]) for index, name in enumerate(old.names))


@members
def test_what_cannot_be_loaded_is_named(tmp_path, name):
    modality = MODALITIES[name]()
    with pytest.raises(FileNotFoundError, match=r"There is nothing at '.*missing'"):
        modality.load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=str(tmp_path / "empty")):
        modality.load(tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    for place in range(2):
        (tmp_path / "broken" / f"{place}{MEMBERS[name]().modality.suffix}").write_bytes(bytes(range(8)) * 20 + b"\0")
    with pytest.raises(ValueError, match=f"{tmp_path / 'broken'}.*Skipped: .*0.*1"):
        modality.load(tmp_path / "broken")
    with pytest.raises(ValueError, match=str(tmp_path / "broken" / "0")):
        modality.load(next((tmp_path / "broken").glob("0*")))
    with pytest.raises(ValueError, match="'held_out_fraction' must"):
        modality.load(tmp_path, held_out_fraction=1.0)


@members
def test_a_broken_file_is_skipped_and_named(tmp_path, name):
    modality, _, write_folder = MEMBERS[name]()
    write_folder(tmp_path)
    broken = next(folder for folder in tmp_path.iterdir()) / f"broken{modality.suffix}"
    broken.write_bytes(bytes(range(8)) * 20 + b"\0")
    with pytest.warns(UserWarning, match=r"Skipped 1 file\(s\) of .*broken"):
        data = modality.load(tmp_path)
    assert [skipped.path for skipped in data.skipped] == [broken]
    assert data.labelled


@members
def test_foreign_files_are_not_recognized(name):
    modality = MODALITIES[name]()
    assert not any(modality.recognizes(Path(file)) for file in ("a.exe", "b.pdf", "c", "d.safetensors", "e.html"))


# Distances


def said(distortion):
    """The metrics that can be measured of these items."""
    return {key: value for key, value in distortion.metrics().items() if value is not None}


@members
@pytest.mark.parametrize("quick", [False, True])
def test_the_distance_of_an_item_to_itself_is_none(name, quick):
    member = MEMBERS[name]()
    distortion, real = member.modality.distortion(quick=quick), floats(member)[None]
    distortion.update(real, real)
    metrics = said(distortion)
    assert metrics == pytest.approx({key: PERFECT[key] for key in metrics})
    assert distortion.items == 1
    assert distortion.headline in metrics
    assert metrics.keys() <= {measure.key for measure in member.modality.measures}
    assert distortion.protocol.endswith(".")


@members
def test_the_worse_an_item_the_worse_its_distance(name):
    member = MEMBERS[name]()
    real = floats(member)
    headlines = []
    for amount in (0, 0.1, 0.4, 0.9):
        distortion = member.modality.distortion(quick=True)
        distortion.update(worsened(real, amount)[None], real[None])
        sign = 1 if distortion.higher_is_better else -1
        headlines.append(sign * distortion.metrics()[distortion.headline])
    assert headlines == sorted(headlines, reverse=True)
    assert len(set(headlines)) == 4


@members
def test_parts_of_a_batch_are_measured_as_the_whole(name):
    member = MEMBERS[name]()
    real = floats(member).expand(4, *member.item.shape)
    made = torch.stack([worsened(one, 0.2 * (place + 1), seed=place) for place, one in enumerate(real)])
    whole, parts = member.modality.distortion(), member.modality.distortion()
    whole.update(made, real)
    for start, stop in ((0, 1), (1, 4)):
        parts.update(made[start:stop], real[start:stop])
    assert whole.items == parts.items == 4
    assert said(parts) == pytest.approx(said(whole), rel=1e-9)


# Batches


@members
def test_an_item_alone_equals_the_item_in_a_batch(name):
    member = MEMBERS[name]()
    modality, model, axes = member.modality, model_of(member.modality), member.modality.signal.axes
    real = part_of(floats(member), axes, 30)
    items = torch.stack([real, *(worsened(real, 0.9, seed) for seed in range(7))])
    model.standardize([items])
    codes = model.encode(items)
    assert codes.unique().numel() > 1
    size = modality.signal.size(items)
    together = model.decode(codes, size)
    for place, item in enumerate(items):
        alone = model.encode(item[None])
        assert torch.equal(alone[0], codes[place])
        torch.testing.assert_close(model.decode(alone, size)[0], together[place])


@sequences
def test_lengths_equal_a_shorter_input(name):
    member = MEMBERS[name]()
    modality, model = member.modality, model_of(member.modality)
    short, long = floats(member)[..., :21], floats(member)[..., :48]
    lengths, tokens = torch.tensor([21, 48]), -(-21 // STRIDE)
    zeros = modality.padded(short, 48)
    spoiled = torch.cat([short, long[..., 21:].flip(-1)], -1)
    alone = model.encode(short[None])[0]
    expected = model.reconstruct(short[None])[0]
    for padded in (zeros, spoiled):
        assert padded.shape == long.shape
        batch = torch.stack([padded, long])
        codes = model.encode(batch, lengths)
        assert torch.equal(codes[0, :tokens], alone)
        assert (codes[0, tokens:] == -1).all()
        torch.testing.assert_close(model.reconstruct(batch, lengths)[0, ..., :21], expected)
    assert torch.equal(codes[1], model.encode(long[None])[0])


@sequences
@pytest.mark.parametrize("quick", [False, True])
def test_what_is_beyond_the_end_is_not_measured(name, quick):
    member = MEMBERS[name]()
    modality = member.modality
    long = floats(member)[..., :48]
    parts = [(worsened(real, 0.3), real) for real in (long[..., :21], long)]
    alone, together = modality.distortion(quick=quick), modality.distortion(quick=quick)
    for made, real in parts:
        alone.update(made[None], real[None])
    made, real = (torch.stack([modality.padded(side, 48) for side in sides]) for sides in zip(*parts, strict=True))
    made[0, ..., 21:] = long[..., 21:]
    together.update(made, real, torch.tensor([21, 48]))
    assert said(together) == pytest.approx(said(alone), rel=1e-9)


@sequences
def test_a_sequence_is_continued_and_never_cut(name):
    modality, item, _ = MEMBERS[name]()
    length = item.shape[-1]
    longer = modality.padded(item, length + 9)
    assert (longer.dtype, longer.shape) == (item.dtype, (*item.shape[:-1], length + 9))
    assert torch.equal(longer[..., :length], item)
    assert torch.equal(modality.padded(item, length - 3), item)
    modality.signal.checked(longer[None])


# Exhibits


def check_part(part):
    """Opens what a reader's browser will open."""
    assert part.text
    if isinstance(part, Passage):
        assert all(isinstance(run, str) and run for run, _ in part.runs)
        return
    if isinstance(part, Sound):
        samples, rate = soundfile.read(BytesIO(part.data))
        assert len(samples)
        assert rate > 0
        return
    assert isinstance(part, Picture)
    assert part.width > 0
    if part.kind == "svg":
        assert ElementTree.fromstring(part.data).tag.endswith("svg")
        return
    with Image.open(BytesIO(part.data)) as image:
        assert image.format == {"png": "PNG", "webp": "WEBP"}[part.kind]
        image.load()


@members
@pytest.mark.parametrize(("times", "levels"), [(1, ()), (8, (3,))])
def test_exhibits_can_be_opened(name, times, levels):
    """Of small items and of large ones, as they are stored and as a model makes them."""
    member = MEMBERS[name]()
    modality, axes = member.modality, member.modality.signal.axes
    item = part_of(member.item, axes, 24)
    for axis in range(item.ndim - axes, item.ndim):
        item = item.repeat_interleave(times, axis)
    real = modality.signal.checked(item[None])[0]
    made, grid = worsened(real, 0.3), (*modality.signal.grid(modality.signal.size(real), STRIDE), *levels)
    codes = torch.arange(math.prod(grid)).reshape(grid) % 999
    drawn = modality.exhibit("drawn", real)
    assert (drawn.name, drawn.note, drawn.made, drawn.codes) == ("drawn", "", (), ())
    pair = modality.exhibit("pair", item, made)
    assert pair.note
    assert not pair.codes
    whole = modality.exhibit("whole", item, made, codes)
    assert whole.codes
    assert len(whole.made) == len(whole.real) == len(pair.made) == len(drawn.real) > 0
    for part in (*drawn.real, *pair.real, *pair.made, *whole.real, *whole.made, *whole.codes):
        check_part(part)
    assert modality.exhibit("pair", item, made) == pair


@members
def test_one_item_is_named_as_one(name):
    modality = MODALITIES[name]()
    assert modality.counted(1) == f"1 {modality.item}"
    assert modality.counted(2000, "held-out") == f"2,000 held-out {modality.items}"

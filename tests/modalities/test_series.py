from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from modality_members import series as member
from PIL import Image
from pyarrow import parquet

from gmvq.modalities.series import Series, without_gaps

SHARED = Path(__file__).parents[3] / "shared" / "data" / "timeseries"


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def table(steps, header="a,b", cell=lambda step, channel: step + channel / 10):
    return header + "\n" + "".join(f"{cell(step, 0)},{cell(step, 1)}\n" for step in range(steps))


def sizes(data):
    return [[size for (size,) in side.sizes] for side in (data.train, data.held_out)]


# Files


def test_a_long_series_is_cut_in_time(put):
    data = Series().load(put("load.csv", table(100)), held_out_fraction=0.2)
    assert (data.name, data.train.names, data.held_out.names) == ("load", ["load 0-79"], ["load 80-99"])
    whole = torch.cat([data.train[0], data.held_out[0]], 1)
    assert torch.equal(whole[0], torch.arange(100.0))
    assert (data.modality, data.labelled) == (Series(names=("a", "b")), False)
    assert (data.signal.axes, data.signal.channels, data.signal.values) == (1, 2, "real")


@pytest.mark.parametrize(
    ("days", "rate"),
    [
        (["2020-01-01", "2020-01-02", "2020-01-03"], 1 / 86400),
        (["2020-01-01 00:00:00", "2020-01-01 00:00:30", "2020-01-01 00:01:00"], 1 / 30),
        (["2020-01-01T00:00:00.000", "2020-01-01T00:00:00.004", "2020-01-01T00:00:00.008"], 250.0),
        (["2020-01-01", "2020-02-01", "2020-03-01"], None),
        (["01.02.2020", "02.02.2020", "03.02.2020"], None),
        (["2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z", "2020-01-03T00:00:00Z"], None),
    ],
)
def test_dates_are_the_clock(put, days, rate):
    data = Series().load(put("t.csv", "date,a\n" + "".join(f"{day},{i}\n" for i, day in enumerate(days))))
    assert data.modality == Series(names=("a",), rate=rate)


def test_parquet_has_a_clock_too(tmp_path):
    times = pyarrow.array(np.arange(50) * 15_000_000_000, pyarrow.timestamp("ns"))
    parquet.write_table(pyarrow.table({"time": times, "load": np.arange(50.0)}), tmp_path / "t.parquet")
    data = Series().load(tmp_path / "t.parquet")
    assert data.modality == Series(names=("load",), rate=1 / 15)
    assert sizes(data) == [[45], [5]]


def test_the_newest_first_is_turned_round(put):
    data = Series().load(put("t.csv", "when,a\n2020-01-03,3\n2020-01-02,2\n2020-01-01,1\n"))
    assert torch.cat([data.train[0], data.held_out[0]], 1).tolist() == [[1, 2, 3]]
    data = Series().load(put("t.csv", "time,a\n9,3\n8,2\n5,1\n"))
    assert torch.cat([data.train[0], data.held_out[0]], 1).tolist() == [[1, 2, 3]]


def test_a_first_column_that_is_no_time_is_a_channel(put):
    assert Series().load(put("t.csv", "level,a\n1,3\n2,2\n3,1\n")).modality.names == ("level", "a")
    assert Series().load(put("t.csv", "time,a\n1,3\n3,2\n2,1\n")).modality.names == ("time", "a")
    assert Series().load(put("t.csv", "time\n1\n2\n3\n")).modality.names == ("time",)


def test_times_out_of_order_are_said(put):
    path = put("t.csv", "date,a\n2020-01-03,3\n2020-01-05,2\n2020-01-01,1\n")
    with pytest.warns(UserWarning, match="the times 'date', which do not rise"):
        data = Series().load(path)
    assert torch.cat([data.train[0], data.held_out[0]], 1).tolist() == [[3, 2, 1]]


def test_columns_of_text_and_of_labels_are_left_out_and_named(put):
    path = put("t.csv", "date,a,station,label\n" + "".join(f"2020-01-0{day},{day},Kiel,0\n" for day in range(1, 9)))
    with pytest.warns(UserWarning, match=r"Left out of .*: column\(s\) of text or labels: station, label"):
        data = Series().load(path)
    assert data.modality.names == ("a",)
    assert Series(names=("label",)).load(path).modality.names == ("label",)


def test_a_folder_of_files(tmp_path):
    _, _, write_folder = member()
    write_folder(tmp_path)
    (tmp_path / "run" / "odd.csv").write_text("x,z\n1,2\n")
    (tmp_path / "run" / "text.csv").write_text("x,y\n1,hello\n2,3\n4,5\n")
    (tmp_path / "run" / "gone.csv").write_text("x,y\n1,\n2,\n")
    with pytest.warns(UserWarning, match=r"Skipped 3 file\(s\)") as caught:
        data = Series().load(tmp_path, held_out_fraction=0.3)
    assert {"no column 'y'", "'hello' in row 1", "'y' is all gaps"} <= {
        part for part in ("no column 'y'", "'hello' in row 1", "'y' is all gaps") if part in str(caught[0].message)
    }
    names = [*data.train.names, *data.held_out.names]
    assert sorted(names) == ["rest/a.csv", "rest/b.csv", "run/c.csv", "run/d.csv", "run/e.csv"]
    assert data.classes == ("rest", "run")
    labels = [*data.train.labels.tolist(), *data.held_out.labels.tolist()]
    assert labels == [int(name.startswith("run")) for name in names]


def test_classes_of_a_table(tmp_path):
    _, _, write_folder = member()
    write_folder(tmp_path)
    files = ["rest/a.csv", "rest/b.csv", "run/c.csv", "run/d.csv", "run/e.csv"]
    (tmp_path / "labels.csv").write_text("name,label\n" + "".join(f"{name},{name[-5]}\n" for name in files))
    data = Series().load(tmp_path)
    assert data.classes == tuple("abcde")
    assert not Series().load(tmp_path / "run" / "c.csv").labelled


def test_files_that_are_added_move_no_other(tmp_path):
    _, _, write_folder = member()
    write_folder(tmp_path)
    before = Series().load(tmp_path, held_out_fraction=0.5)
    Series(names=("x", "y")).write(tmp_path / "run" / "0.csv", [torch.randn(2, 40)])
    after = Series().load(tmp_path, held_out_fraction=0.5)
    assert set(before.held_out.names) <= set(after.held_out.names)
    assert set(before.train.names) <= set(after.train.names)


def test_a_folder_where_nothing_can_be_read(put):
    path = put("data/a.csv", "x\n")
    with pytest.raises(ValueError, match=r"No series in .* a header and no rows"):
        Series().load(path.parent)


# Gaps


def test_short_gaps_are_filled_along_lines(put):
    text = table(100, cell=lambda step, channel: "" if (channel, step) in {(0, 0), (0, 50), (1, 51), (1, 52)} else step)
    with pytest.warns(UserWarning, match=r"Filled 4 of 200 values of .* in short gaps\."):
        data = Series().load(put("t.csv", text))
    whole = torch.cat([data.train[0], data.held_out[0]], 1)
    expected = torch.arange(100.0).repeat(2, 1)
    expected[0, 0] = 1  # the nearest
    assert torch.equal(whole, expected)


def test_a_gap_at_the_border_does_not_see_the_other_side(put):
    text = table(100, cell=lambda step, channel: "" if 88 <= step < 92 and channel == 0 else step)
    with pytest.warns(UserWarning, match="Filled 4 of 200"):
        data = Series().load(put("t.csv", text))
    assert data.train[0][0, 87:].tolist() == [87, 87, 87]
    assert data.held_out[0][0, :3].tolist() == [92, 92, 92]


def test_a_series_is_cut_at_long_gaps(put):
    text = table(200, cell=lambda step, channel: "NaN" if 40 < step < 75 and channel == 1 else step)
    with pytest.warns(UserWarning, match="left out 34 of 200 steps in and between longer ones"):
        data = Series().load(put("t.csv", text))
    assert data.train.names == ["t 0-40", "t 75-179"]
    assert data.train[1][0, 0] == 75
    assert data.held_out.names == ["t 180-199"]


def test_gaps_of_two_channels():
    values = np.arange(200, dtype=np.float32).reshape(2, 100)
    values[0, 10:30] = values[1, 25:30] = values[1, 33:36] = np.nan
    stretches, filled = without_gaps(values, 10)
    assert [(start, stretch.shape) for start, stretch in stretches] == [(0, (2, 10)), (30, (2, 70))]
    assert filled == 3
    assert stretches[1][1][1].tolist() == list(range(130, 200))
    # between the gaps of both channels 10 steps are left, of which the first has none but gaps
    values = np.zeros((2, 100), np.float32)
    values[0, 20:40] = values[0, 50:70] = values[1, 40:50] = np.nan
    assert [(start, stretch.shape[1]) for start, stretch in without_gaps(values, 10)[0]] == [(0, 20), (70, 30)]


def test_a_channel_of_gaps_alone_is_named(put):
    with pytest.raises(ValueError, match="column 'b' is all gaps"):
        Series().load(put("t.csv", table(50, cell=lambda step, channel: "" if channel else step)))
    text = table(50, cell=lambda step, channel: "" if channel and step > 30 else step)
    with pytest.raises(ValueError, match="left on one side where gaps are cut out"):
        Series().load(put("t.csv", text))


# Known settings


def test_a_known_series_loads_other_data_by_its_channels(put):
    path = put("t.csv", table(50, "date,OT", lambda step, channel: step if channel else f"2020-01-01T00:{step:02d}"))
    known = Series(names=("OT",), rate=1 / 60)
    assert known.load(path).modality == known
    with pytest.raises(ValueError, match="no column 'load'"):
        Series(names=("load",)).load(path)
    with pytest.raises(ValueError, match=r"times are 0\.0166667 Hz instead of 50; resample"):
        Series(names=("OT",), rate=50.0).load(path)


def test_settings_are_checked():
    for settings in ({"names": ()}, {"names": "OT"}, {"names": ("a", "a")}, {"rate": 0.0}, {"rate": float("nan")}):
        with pytest.raises(ValueError, match=f"'{next(iter(settings))}' must be"):
            Series(**settings)
    with pytest.raises(ValueError, match="'names' of the channels must be known"):
        _ = Series().signal


# The other verbs


def test_windows_are_pure():
    modality, item, _ = member()
    before, chance = item.clone(), np.array([0.999999, 0.0, 0.0])
    window = modality.window(item, 96, chance)
    assert torch.equal(window, item[:, -96:])
    assert torch.equal(modality.window(item, 96, np.array([0.0, 1.0, 1.0])), item[:, :96])
    assert torch.equal(window, modality.window(item, 96, chance))
    assert torch.equal(item, before)
    for size in (None, 120, 500):
        assert torch.equal(modality.window(item, size, chance), item)


@pytest.mark.parametrize("name", ["made.csv", "made.npy"])
def test_what_is_written_is_loaded(tmp_path, name):
    modality, item, _ = member()
    item = item * torch.tensor([[1e-30], [1e30]])
    modality.write(tmp_path / name, [item])
    data = modality.load(tmp_path / name)
    assert torch.equal(torch.cat([data.train[0], data.held_out[0]], 1), item)
    assert data.modality == modality


def test_one_series_a_file(tmp_path):
    modality, item, _ = member()
    with pytest.raises(ValueError, match="must be one series"):
        modality.write(tmp_path / "two.csv", [item, item])


def test_exhibits():
    modality, item, _ = member()
    exhibit = modality.exhibit("walk", item, item + 0.5, torch.arange(60).reshape(30, 2))
    assert exhibit.note == "squared error 0.25"
    for part in (*exhibit.real, *exhibit.made, *exhibit.codes):
        with Image.open(BytesIO(part.data)) as picture:
            assert (part.kind, picture.format, picture.width) == ("png", "PNG", 2 * part.width)
    assert exhibit.made[0].text == "walk, reconstructed: x, y"
    assert exhibit == modality.exhibit("walk", item, item + 0.5, torch.arange(60).reshape(30, 2))
    alone = Series(names=("$x$", "b", "c", "d", "e", "f")).exhibit("long", torch.randn(6, 1000))
    assert (alone.made, alone.codes, alone.note) == ((), (), "")
    assert alone.real[0].text.endswith("and 2 channels that are not shown, the first 256 of 1000 steps")
    assert Series(names=("x",)).exhibit("a step", torch.ones(1, 1), torch.ones(1, 1), torch.tensor([3])).codes


def test_what_it_recognizes():
    known = {
        "a.csv": True,
        "a.ts": True,
        "a.CSV.gz": True,
        "a.npy": True,
        "a_TRAIN.txt": True,
        "a.txt": False,
        "a.png": False,
    }
    assert {name: Series().recognizes(Path(name)) for name in known} == known


# Real data


def test_the_bundled_stocks():
    data = Series().load("bundled:stocks")
    assert sizes(data) == [[351], [39]]
    assert data.modality.names[0] == "IBM"
    assert data.train[0][0, 0] == pytest.approx(10.970438)  # January 1990
    assert data.held_out[0][0, -1] == pytest.approx(141.86)  # June 2022
    assert Series(names=("MSFT",)).load("bundled:stocks").signal.channels == 1
    with pytest.raises(ValueError, match="bundled:membrane, bundled:stocks"):
        Series().load("bundled:weather")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize(
    ("name", "channels", "lengths", "classes"),
    [
        ("ETTh1.csv.xz", 7, [[15678], [1742]], 0),
        ("exchange_rate.txt.gz", 8, [[6829], [759]], 0),
        ("ECG5000_TRAIN.txt.xz", 1, [[140] * 448, [140] * 52], 5),
        ("ucr/GunPoint_TRAIN.ts", 1, [[150] * 50, [150] * 150], 2),
        ("ucr/BasicMotions_TEST.ts", 6, [[100] * 40, [100] * 40], 4),
        ("ucr/ItalyPowerDemand_TRAIN.ts", 1, [[24] * 67, [24] * 1029], 2),
        ("ucr/ArrowHead_TRAIN.ts", 1, [[251] * 32, [251] * 4], 3),
    ],
)
def test_real_files(name, channels, lengths, classes):
    data = Series().load(SHARED / name)
    assert (data.signal.channels, sizes(data), len(data.classes)) == (channels, lengths, classes)
    assert data.labelled == (classes > 0)


def test_the_bundled_membrane():
    data = Series().load("bundled:membrane")
    assert data.train.sizes == [(8400,), (2400,)]
    assert data.held_out.sizes == [(1200,)]
    assert data.modality == Series(names=("potential",))
    # spikes on both sides, from the resting potential up to about 0
    assert data.held_out[0].max() > -0.05 > -0.6 > data.train[0].min()
    with pytest.raises(ValueError, match="'names' of the membrane"):
        Series(names=("b",)).load("bundled:membrane")

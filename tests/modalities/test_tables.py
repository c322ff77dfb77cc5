import gzip
import lzma
import sys

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gmvq.modalities.delimited import TableError
from gmvq.modalities.tables import classes_of, columns, read_table, stem_of, suffix_of, write_numbers

TEXTS = {
    "commas": "a,b\n1,2\n3,4.5\n",
    "semicolons and decimal commas": "a;b\n1;2\n3;4,5\n",
    "tabs": "a\tb\n1\t2\n3\t4.5\n",
    "spaces": "  a   b\n  1.0 2\n3 4.5\n",
    "quotes": '"a","b"\n"1","2"\n"3","4.5"\n',
    "Windows": "a,b\r\n1,2\r\n3,4.5\r\n",
    "comments": "# of a balance\n\na,b\n1,2\n3,4.5\n",
    "a comma ends each line": "a,b,\n1,2,\n3,4.5,\n",
    "blank lines": "a,b\n1,2\n\n3,4.5\n\n",
    "spaces after commas": "a, b\n1, 2\n3, 4.5\n",
    "a mark of the order of bytes": "\ufeffa,b\n1,2\n3,4.5\n",
}


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path, names=None, **options):
    return columns(read_table(path, **options), path, names)


@pytest.mark.parametrize("form", TEXTS)
def test_forms_of_text(put, form):
    found = read(put("table.csv", TEXTS[form]))
    assert found.names == ("a", "b")
    assert found.values.dtype == np.float32
    assert found.values.tolist() == [[1, 2], [3, 4.5]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_encodings(put, encoding):
    assert read(put("t.csv", "T (°C),µV\n1,2\n".encode(encoding))).names == ("T (°C)", "µV")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_text_is_known_by_its_content(put, pack):
    assert read(put("t.csv", pack(b"a,b\n1,2\n"))).values.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,2,7\n3,4,8\n", ("column_1", "column_2", "column_3")),
        ("a,b\n1,2\n", ("a", "b")),
        ("a,b\n1,\n,2\n", ("a", "b")),
        ("2020,b\n1,2\n", ("2020", "b")),
        (",0,1\n0,5,6\n1,7,8\n", ("column_1", "0", "1")),
        ("0,1,2\n5,6,7\n", ("0", "1", "2")),
        ("nan,2\n3,4\n", ("column_1", "column_2")),
        ("5\n6\n", ("column_1",)),
        ("x\n5\n6\n", ("x",)),
        ("a,a,b\n1,2,3\n", ("a", "a_column_2", "b")),
        ("a\x1b[31mb,c\n1,2\n", ("a [31mb", "c")),
    ],
)
def test_headers(put, text, names):
    assert read(put("t.csv", text)).names == names


def test_gaps_of_any_name_are_nan(put):
    cells = ["", "?", "NA", "n/a", "NaN", "null", "None", "-", "-nan", "<NA>", " "]
    values = read(put("t.csv", "a,b\n" + "".join(f"{cell},1\n" for cell in cells) + "2,1\n")).values
    assert np.isnan(values[:-1, 0]).all()
    assert values[-1, 0] == 2
    assert len({row.tobytes() for row in values[:-1]}) == 1  # equal rows have equal bytes


def test_long_tables_are_read_in_parts(put, monkeypatch):
    monkeypatch.setattr("gmvq.modalities.delimited._CELLS", 8)
    rows = [(row, row / 4, f"name{row}") for row in range(23)]
    table = read_table(put("t.csv", "a,b,Kind\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)), keep=("kind",))
    assert table.values[:, :2].tolist() == [[a, b] for a, b, _ in rows]
    assert table.texts == {2: [c for _, _, c in rows]}
    assert (table.strange[2].number, table.strange[2].row) == (23, 1)
    with pytest.raises(TableError, match=r"row 12 has 1 cells instead of 2"):
        read_table(put("ragged.csv", "a,b\n" + "1,2\n" * 11 + "1\n"))


def test_columns_of_text_are_left_out_and_named(put):
    found = read(put("t.csv", "name,a,b\nx,1,2\ny,3,4\n"))
    assert (found.names, found.left_out) == (("a", "b"), ("name",))


def test_columns_are_found_by_name(put):
    path = put("t.csv", "a,b,c\n1,2,3\n")
    assert read(path, ("c", "a")).values.tolist() == [[3, 1]]
    with pytest.raises(TableError, match="no column 'd' among a, b, c"):
        read(path, ("a", "d"))
    with pytest.raises(TableError, match="no column 'd'"):  # as many, but others
        read(path, ("d", "e", "f"))
    assert read(put("plain.csv", "1,2\n3,4\n"), ("d", "e")).names == ("d", "e")
    assert read(path, ("column_1", "column_2", "column_3")).names == ("column_1", "column_2", "column_3")
    with pytest.raises(TableError, match="2 columns of numbers instead of 3"):
        read(put("plain.csv", "1,2\n3,4\n"), ("d", "e", "f"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("\n \n", "it is empty"),
        ("a,b\n", "a header and no rows"),
        ("a,b\n1,2\n3\n", "row 2 has 1 cells instead of 2"),
        ("a,b\n1,2\n3,oops\n4,5\n", "column 'b' has 'oops' in row 2"),
        ("a,b\n1,2\n1_000,3\n4,5\n", "column 'a' has '1_000' in row 2"),
        ("a,b\n1,2\n1e308,3\n", r"column 'a' has 1e\+308 in row 2, and float32 ends at"),
        ("a,b\n1,2\n1e400,3\n", "column 'a' has inf in row 2"),
        ("a,b\n1,2\n-inf,3\n", "column 'a' has -inf in row 2"),
        ("a,b\n1,\n2,\n", "column 'b' is all gaps"),
        ("a,b\nx,y\n", "no column of numbers: a, b"),
        ("1,y\n2,z\n3,w\n", None),
        ("name,kind\nx,y\nz,w\n", "no column of numbers: name, kind"),
        (b"\0\1\2\3", "it is not text"),
        (b"PK\3\4rest", "it is not text"),
        (b"\xfd7zXZ\0garbage", "cannot be unpacked"),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 9999, mtime=0)[:-9], "cannot be unpacked"),
        ('a,b\n"' + "1" * 200_000 + '",2\n', "field larger than field limit"),
    ],
)
def test_ruined_text(put, content, message):
    path = put("t.csv", content)
    if message is None:
        assert read(path).left_out == ("column_2",)
        return
    with pytest.raises(TableError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_what_unpacks_without_end_is_refused(put, monkeypatch):
    monkeypatch.setattr("gmvq.modalities.delimited._UNPACKED", 1 << 16)
    with pytest.raises(TableError, match=r"unpack to more than \d+ characters"):
        read(put("t.csv.xz", lzma.compress(b"0,0\n" * (1 << 20))))
    monkeypatch.setattr("gmvq.modalities.delimited._LONGEST_LINE", 1 << 10)
    with pytest.raises(TableError, match="a line of 1024 characters"):
        read(put("t.csv.xz", lzma.compress(b"0" * (1 << 14))))
    monkeypatch.setattr("gmvq.modalities.delimited.MOST_VALUES", 100)
    with pytest.raises(TableError, match="more than 100 values"):
        read(put("t.csv", "1,2\n" * 60))


def test_wide_rows(put):
    wide = ",".join(["0.25"] * 30_000)  # no cell is long, but all would be one where nothing parts them
    assert read(put("wide.csv", f"{wide}\n{wide}\n")).values.shape == (2, 30_000)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(TableError, match=r"No such file|Is a directory"):
            read_table(path)


def test_npy(put, tmp_path):
    path = tmp_path / "t.npy"
    for kind in (np.int16, np.float64, np.float16, np.bool_):
        np.save(path, np.eye(3, 2).astype(kind))
        assert read(path).values.tolist() == [[1, 0], [0, 1], [0, 0]]
    for array, message in (
        (np.array([{}], object), "Python objects"),
        (np.zeros((2, 3), complex), "real numbers, got complex128"),
        (np.zeros((0, 3)), "1 to 536870912 real numbers"),
        (np.zeros(3), "an axis of rows and one of columns"),
        (np.array(["a"]), "real numbers"),
    ):
        np.save(path, array)
        with pytest.raises(TableError, match=message):
            read(path)
    whole = put("cut.npy", b"")
    np.save(whole, np.zeros((100, 100)))
    for content in (whole.read_bytes()[:-1], b"\x93NUMPY junk", b"", b"a,b\n1,2\n"):
        with pytest.raises(TableError, match=r"not a \.npy file of numbers"):
            read(put("bad.npy", content))


def test_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    table = pyarrow.table(
        {
            "when": pyarrow.array([0, 3_600_000_000_123], pyarrow.timestamp("ns")),
            "a": pyarrow.array([1, None], pyarrow.int64()),
            "flag": [True, False],
            "kind": ["x", None],
            "embedding": pyarrow.array([[1.0, 2.0], [3.0, 4.0]], pyarrow.list_(pyarrow.float32())),
            "ragged": [[1.0], [3.0, 4.0]],
        }
    )
    parquet.write_table(table, path)
    found = read_table(path, keep=("kind",), lists=True)
    assert found.names == ("when", "a", "flag", "kind", "embedding_1", "embedding_2", "ragged")
    chosen = columns(found, path, None)
    assert chosen.left_out == ("when", "kind", "ragged")
    np.testing.assert_array_equal(chosen.values, np.array([[1, 1, 1, 2], [np.nan, 0, 3, 4]], np.float32))
    assert found.texts[0][0].startswith("1970-01-01 00:00:00")
    assert found.texts[3] == ["x", ""]
    assert columns(read_table(path), path, None).left_out == ("when", "kind", "embedding", "ragged")
    parquet.write_table(table.slice(0, 0), path)
    with pytest.raises(TableError, match="must hold 1 to"):
        read_table(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(TableError, match="not a Parquet file, or damaged"):
        read_table(path)


def test_parquet_without_pyarrow(put, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pyarrow"):
        read_table(put("t.parquet", b"PAR1"))


def test_names_without_their_endings(tmp_path):
    cases = {"a.CSV.xz": (".csv", "a"), "b.1.npy": (".npy", "b.1"), "c": ("", "c"), "d_TRAIN.ts": (".ts", "d_TRAIN")}
    assert {name: (suffix_of(tmp_path / name), stem_of(tmp_path / name)) for name in cases} == cases


def test_classes_are_in_the_order_of_numbers():
    assert classes_of(["10", "2", "-1", "2"]) == ("-1", "2", "10")
    assert classes_of(["b", "10", "2"]) == ("10", "2", "b")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_written_float32_are_read_exactly(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("numbers") / "t.csv"
    rows = torch.tensor(values)[:, None]
    write_numbers(path, rows, ["a, b"], rows)
    found = read(path)
    assert found.names == ("a, b",)
    assert torch.equal(torch.from_numpy(found.values), rows)


def test_numbers_are_written_by_the_name(tmp_path):
    rows = torch.tensor([[1.0, 2.5]])
    write_numbers(tmp_path / "a.npy", rows, ["x", "y"], rows[None])
    assert np.load(tmp_path / "a.npy").tolist() == [[[1, 2.5]]]
    with pytest.raises(ValueError, match=r"written as \.csv or \.npy"):
        write_numbers(tmp_path / "a.png", rows, ["x", "y"], rows)
    with pytest.raises(ValueError, match="must have 1 channels, got 2"):
        write_numbers(tmp_path / "a.csv", rows, ["x"], rows)

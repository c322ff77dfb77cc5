import lzma
from itertools import chain

import numpy as np
import pytest

from gmvq.modalities.base import fingerprint
from gmvq.modalities.series import Series


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def sizes(data):
    return [[size for (size,) in side.sizes] for side in (data.train, data.held_out)]


def test_collections_of_npy(tmp_path):
    path, array = tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 2, 50))
    np.save(path, array)
    data = Series().load(path, held_out_fraction=0.2)
    assert len(data.train) + len(data.held_out) == 30
    assert set(data.train.names).isdisjoint(data.held_out.names)
    for side in (data.train, data.held_out):
        for index, name in enumerate(side.names):
            np.testing.assert_array_equal(side[index].numpy(), array[int(name[-5:])].astype(np.float32))
    array[3, :, 41:] = np.nan  # shorter than the others
    np.save(path, array)
    assert sorted(chain(*sizes(Series().load(path))))[:2] == [41, 50]


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ((50,), None, (1, 1, 50)),
        ((50, 3), ("a", "b", "c"), (1, 3, 50)),
        ((50, 30), ("a",), (50, 1, 30)),
        ((50, 1), ("a",), (1, 1, 50)),
        ((20, 3, 30), ("a", "b", "c"), (20, 3, 30)),
        ((20, 3, 4), None, (20, 3, 4)),
        ((50, 3), None, r"may be \(N, T\) or \(T, C\)"),
        ((50, 30), ("a", "b"), r"is not \(T, 2\)"),
        ((20, 30, 3), None, r"looks like \(N, T, C\)"),
        ((20, 30, 9), tuple("abcdefghi"), r"looks like \(N, T, C\)"),
        ((20, 4, 30), ("a", "b"), r"have 4 channel\(s\) instead of 2"),
        ((2, 3, 4, 5), None, r"must have shape \(N, C, T\)"),
    ],
)
def test_axes_of_npy(tmp_path, shape, names, expected):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=shape))
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            Series(names=names).load(path)
        return
    data = Series(names=names).load(path)
    count, channels, steps = expected
    found = sizes(data)
    assert data.modality.signal.channels == channels
    if count == 1:
        assert sum(map(sum, found)) == steps
    else:
        assert sorted(chain(*found)) == [steps] * count


def test_text_files_of_the_ucr_archive(put):
    rows = ["2.0e+00 0.5 1.5 2.5 3.5", "1.0e+00 1 2 3 4", "2 5 6 NaN NaN", "1 3 4 5 6"]
    put("Toy_TRAIN.txt.xz", lzma.compress("\n".join(rows).encode()))
    alone = Series().load(put("Toy_TRAIN.txt", "\n".join(rows)), held_out_fraction=0.3)
    assert (alone.classes, alone.labelled) == (("1", "2"), True)
    path = put("Toy_TEST.txt", "1 9 8 7 6\n-1 9 8 7 5\n1 9 8 7 4\n-1 2 2 2 2\n")
    data = Series().load(path)
    assert (data.name, sizes(data)) == ("Toy", [[4, 4, 2, 4], [4, 4, 4, 4]])
    assert data.classes == ("-1", "1", "2")
    assert (data.train.labels.tolist(), data.held_out.labels.tolist()) == ([2, 1, 2, 1], [1, 0, 1, 0])
    assert data.train[2].tolist() == [[5, 6]]


TS = """# A comment
@problemName Toy
@timeStamps false
@univariate false
@classLabel true run rest
@data
1,2,3:4,?,6:run
1,2:3,4:rest
5,6,7,8:5,6,7,8:rest
"""


def test_files_of_sktime(put):
    put("Toy_TEST.ts", TS)
    with pytest.warns(UserWarning, match="Filled 2 of 36 values"):
        data = Series().load(put("Toy_TRAIN.ts", TS))
    assert (data.name, data.classes, sizes(data)) == ("Toy", ("run", "rest"), [[3, 2, 4], [3, 2, 4]])
    assert data.train[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert data.train.labels.tolist() == [0, 1, 1]
    assert fingerprint(data) == fingerprint(data)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@data\n", "", "comes before '@data'"),
        (TS[TS.index("@data") :], "@data\n", "no series after a line '@data'"),
        ("timeStamps false", "timeStamps true", "a time for each value"),
        ("4,?,6", "4,x,6", "line 7 has a value that is not a number"),
        ("4,?,6", "4,6", "line 7 has channels of 2, 3 values"),
        ("1,2:3,4:rest", "1,2:rest", r"line 8 has 1 channel\(s\) and the first 2"),
        ("1,2:3,4:rest", "1,2:3,4:walk", "class 'walk' is not among run, rest"),
        ("4,?,6", "4,inf,6", "'column_2' has inf in step 2 of series 1"),
    ],
)
def test_ruined_files_of_sktime(put, old, new, message):
    with pytest.raises(ValueError, match=message):
        Series().load(put("toy.ts", TS.replace(old, new)))


def test_a_target_of_regression_is_no_class(put):
    text = "@classLabel false\n@targetlabel true\n@data\n1,2,3:0.5\n4,5,6:0.25\n"
    data = Series().load(put("toy.ts", text))
    assert (data.labelled, data.signal.channels) == (False, 1)

from io import BytesIO

import numpy as np
import pyarrow
import pytest
import torch
from modality_members import vectors as member
from PIL import Image
from pyarrow import parquet
from sklearn import datasets

from gmvq.data.splitting import digest_of, held_out
from gmvq.modalities.vectors import Vectors


@pytest.fixture
def put(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def everything(data):
    """Rows of both sides in the order of their names, with their classes."""
    rows = {}
    for side in (data.train, data.held_out):
        labels = [None] * len(side) if side.labels is None else [data.classes[label] for label in side.labels]
        rows |= {name: (side[index].tolist(), labels[index]) for index, name in enumerate(side.names)}
    return [rows[name] for name in sorted(rows)]


# Files


def test_tables_have_features_and_classes(put):
    path = put("t.csv", "Width,Class,height\n" + "".join(f"{i},{'ab'[i % 2]},{i / 4}\n" for i in range(40)))
    data = Vectors().load(path, held_out_fraction=0.25)
    assert (data.name, data.classes, data.modality.names) == ("t", ("a", "b"), ("Width", "height"))
    assert everything(data) == [([i, i / 4], "ab"[i % 2]) for i in range(40)]
    assert (data.signal.axes, data.signal.channels, data.train.sizes[0]) == (0, 2, ())
    assert 0 < len(data.held_out) < 40


def test_equal_rows_are_on_one_side(put):
    data = Vectors().load(put("t.csv", "a,b\n" + "".join(f"{i % 10},{i % 10}\n" for i in range(100))))
    sides = [{tuple(side[index].tolist()) for index in range(len(side))} for side in (data.train, data.held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert len(data.held_out) % 10 == 0


def test_rows_that_are_added_move_no_other(put):
    text = "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(50))
    before = Vectors().load(put("t.csv", text), held_out_fraction=0.3)
    after = Vectors().load(put("u.csv", text.replace("a,b\n", "a,b\n-1,3\n-2,5\n")), held_out_fraction=0.3)

    def rows(side):
        return {tuple(side[index].tolist()) for index in range(len(side))}

    assert rows(before.held_out) <= rows(after.held_out)
    assert rows(before.train) <= rows(after.train)


@pytest.mark.parametrize(
    ("column", "message", "names"),
    [
        ("target,0.5,1.25,2.5,3.5", "labels: 'target' has fractions", ("target", "a")),
        ("target,3,1,4,2", "labels: 'target' has fractions or nearly as many values as rows", ("target", "a")),
        ("target,0,1,,1", "labels: 'target' has gaps", ("a",)),
        ("label,u,v,w,z", r"labels: 'label' has .* column\(s\) of text: label", ("a",)),
    ],
)
def test_a_column_that_has_no_classes_is_none_of_labels(put, column, message, names):
    head, *cells = column.split(",")
    path = put("t.csv", f"{head},a\n" + "".join(f"{cell},{row}\n" for row, cell in enumerate(cells)))
    with pytest.warns(UserWarning, match=message):
        data = Vectors().load(path)
    assert not data.labelled
    assert data.modality.names == names


def test_the_column_of_classes_can_be_named(put):
    path = put("t.csv", "kind,target,a\n" + "".join(f"{i % 3},{i / 8},{i}\n" for i in range(30)))
    data = Vectors(label="kind").load(path)
    assert (data.classes, data.modality.names) == (("0", "1", "2"), ("target", "a"))
    assert everything(data) == [([i / 8, i], str(i % 3)) for i in range(30)]
    for label, message in (("sort", "no column 'sort' of classes"), ("target", "must have a class in each row")):
        with pytest.raises(ValueError, match=message):
            Vectors(label=label).load(path)


def test_an_index_is_no_feature(put):
    for name in ("", "id", "Unnamed: 0"):
        path = put("t.csv", f"{name},a,b\n" + "".join(f"{i},{i * i},1\n" for i in range(20)))
        assert Vectors().load(path).modality.names == ("a", "b")
    assert Vectors().load(put("t.csv", "id,a\n7,1\n3,2\n9,3\n")).modality.names == ("id", "a")


def test_text_is_left_out_and_named(put):
    path = put("t.csv", "a,town,b\n1,Kiel,2\n3,Ulm,4\n5,Kiel,6\n")
    with pytest.warns(UserWarning, match=r"Left out of .*: column\(s\) of text: town"):
        assert Vectors().load(path).modality.names == ("a", "b")


def test_gaps_are_filled_by_means_of_training(put):
    rows = [[float(i), float(i % 7)] for i in range(60)]
    cells = [["" if i % 9 == 4 else str(a), str(b)] for i, (a, b) in enumerate(rows)]
    path = put("t.csv", "a,b\n" + "".join(",".join(row) + "\n" for row in cells))
    with pytest.warns(UserWarning, match="Filled 7 of 120 values .* by the mean of their column over the training"):
        data = Vectors().load(path, held_out_fraction=0.3)
    there = [rows[int(name)][0] for name in data.train.names if int(name) % 9 != 4]
    assert data.modality.fill[0] == pytest.approx(np.mean(there))
    assert len(there) < len(data.train)
    for side in (data.train, data.held_out):
        for index, name in enumerate(side.names):
            expected = data.modality.fill[0] if int(name) % 9 == 4 else rows[int(name)][0]
            assert side[index][0] == pytest.approx(expected)
    with pytest.warns(UserWarning, match="Filled"):  # other data are filled by what the model has learned from
        other = data.modality.load(put("u.csv", "a,b\n,1\n2,3\n4,5\n"))
    assert everything(other)[0][0][0] == pytest.approx(data.modality.fill[0])
    assert other.modality == data.modality


def test_a_feature_without_values_to_learn_from_is_named(put):
    with pytest.raises(ValueError, match="column 'b' is all gaps"):
        Vectors().load(put("t.csv", "a,b\n1,\n3,\n"))

    def is_held_out(value):
        rows = np.array([[value, np.nan], [3, 4]], np.float32)
        return held_out([digest_of(row) for row in rows], 0.1) == [1]

    other = next(value for value in range(100) if is_held_out(value))
    with pytest.raises(ValueError, match=r"'b' of .* has only gaps in the rows to learn from"):
        Vectors().load(put("t.csv", f"a,b\n{other},\n3,4\n"))


def test_embeddings_of_npy(tmp_path):
    path, array = tmp_path / "e.npy", np.random.default_rng(0).normal(size=(50, 8))
    np.save(path, array)
    data = Vectors().load(path)
    np.testing.assert_array_equal([row for row, _ in everything(data)], array.astype(np.float32))
    assert data.modality.names[:2] == ("column_1", "column_2")
    assert Vectors(names=tuple("abcdefgh")).load(path).modality.names == tuple("abcdefgh")
    with pytest.raises(ValueError, match="8 columns of numbers instead of 1"):
        Vectors(names=("a",)).load(path)
    np.save(path, array[None])
    with pytest.raises(ValueError, match="an axis of rows and one of columns"):
        Vectors().load(path)


def test_embeddings_of_parquet(tmp_path):
    rows = [[i, i + 0.5] for i in range(20)]
    path = tmp_path / "e.parquet"
    parquet.write_table(pyarrow.table({"embedding": rows, "label": ["a", "b"] * 10}), path)
    data = Vectors().load(path)
    assert data.modality.names == ("embedding_1", "embedding_2")
    assert everything(data) == [(row, "ab"[i % 2]) for i, row in enumerate(rows)]


def test_a_folder_of_tables(tmp_path):
    _, _, write_folder = member()
    write_folder(tmp_path)
    np.save(tmp_path / "left" / "one.npy", np.arange(3.0))
    (tmp_path / "right" / "odd.csv").write_text("x,y\n1,2\n")
    with pytest.warns(UserWarning, match=r"Skipped 1 file.*no column 'z'"):
        data = Vectors().load(tmp_path, held_out_fraction=0.2)
    assert len(data.train) + len(data.held_out) == 61
    assert data.classes == ("left", "right")
    assert "right/c-00003" in {*data.train.names, *data.held_out.names}
    assert [label for _, label in everything(data)] == ["left"] * 41 + ["right"] * 20


def test_files_are_sides(put):
    put("test.csv", "b,a,class\n20,10,v\n")
    data = Vectors().load(put("train.csv", "a,b,class\n1,2,u\n3,4,v\n5,6,u\n"))
    assert (len(data.train), len(data.held_out), data.classes) == (3, 1, ("u", "v"))
    assert data.held_out[0].tolist() == [10, 20]
    assert (data.train.labels.tolist(), data.held_out.labels.tolist()) == ([0, 1, 0], [1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("a,b\n", "a header and no rows"),
        ("a,b\n1,2\n3\n", "row 2 has 1 cells instead of 2"),
        ("a,b\n1,2\n3,oops\n4,5\n", "column 'b' has 'oops' in row 2"),
        ("a,b\n1,2\n1e308,3\n", "float32 ends at"),
        ("a\nx\ny\n", "no column of numbers: a"),
    ],
)
def test_ruined_tables(put, text, message):
    with pytest.raises(ValueError, match=message):
        Vectors().load(put("t.csv", text))


# The other verbs


def test_settings_are_checked():
    for settings, name in (
        ({"names": ()}, "names"),
        ({"names": ("a",), "fill": (1.0, 2.0)}, "fill"),
        ({"fill": ()}, "fill"),
    ):
        with pytest.raises(ValueError, match=f"'{name}' must"):
            Vectors(**settings)
    with pytest.raises(ValueError, match="'names' of the features must be known"):
        _ = Vectors().signal


def test_windows_are_the_vector():
    modality, item, _ = member()
    assert torch.equal(modality.window(item, None, np.zeros(3)), item)
    assert torch.equal(modality.window(item, 2, np.zeros(3)), item)


@pytest.mark.parametrize("name", ["made.csv", "made.npy"])
def test_what_is_written_is_loaded(tmp_path, name):
    modality, _, _ = member()
    items = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-30, 1.0, 1e30])
    modality.write(tmp_path / name, list(items))
    data = modality.load(tmp_path / name)
    assert torch.equal(torch.tensor([row for row, _ in everything(data)]), items)
    assert data.modality == modality
    with pytest.raises(ValueError, match="at least one vector"):
        modality.write(tmp_path / name, [])


def test_exhibits():
    modality, item, _ = member()
    exhibit = modality.exhibit("row 3", item, item * 2, torch.tensor([3, 50]))
    assert exhibit.note.endswith("cosine 1.0000")
    for part in (*exhibit.real, *exhibit.made, *exhibit.codes):
        with Image.open(BytesIO(part.data)) as picture:
            assert (part.kind, picture.format, picture.width) == ("png", "PNG", 2 * part.width)
    assert exhibit.made[0].text == "row 3, reconstructed: x, y, z"
    wide = Vectors(names=tuple(f"${i}" for i in range(40))).exhibit("wide", torch.zeros(40), None, torch.tensor(7))
    assert wide.real[0].text.endswith("and 28 features that are not shown")
    assert (wide.made, wide.note) == ((), "")


# Real data


@pytest.mark.parametrize("name", ["breast-cancer", "wine", "iris"])
def test_bundled_tables_are_those_of_scikit_learn(name):
    expected = getattr(datasets, f"load_{name.replace('-', '_')}")()
    data = Vectors().load(f"bundled:{name}")
    assert [row for row, _ in everything(data)] == expected.data.astype(np.float32).tolist()
    assert [label for _, label in everything(data)] == expected.target_names[expected.target].tolist()
    assert len(data.modality.names) == len(expected.feature_names)
    assert data.held_out.labels.unique().tolist() == list(range(len(data.classes)))
    assert 0.1 < len(data.held_out) / len(expected.data) < 0.3


def test_names_of_bundled_features():
    names = Vectors().load("bundled:wine").modality.names
    assert names == tuple(datasets.load_wine().feature_names)
    names = Vectors().load("bundled:breast-cancer").modality.names
    theirs = [name.replace(" ", "_") for name in datasets.load_breast_cancer().feature_names]
    assert [name.replace("error_", "").replace("mean_", "") for name in names[:3]] == ["radius", "texture", "perimeter"]
    assert set(names[20:]) == set(theirs[20:])


def test_the_bundled_diabetes():
    expected = datasets.load_diabetes(scaled=False)
    data = Vectors().load("bundled:diabetes")
    assert [row for row, _ in everything(data)] == expected.data.astype(np.float32).tolist()
    assert (data.modality.names, data.labelled) == (tuple(expected.feature_names), False)
    with pytest.raises(ValueError, match="names and labels of their own"):
        Vectors(label="age").load("bundled:diabetes")

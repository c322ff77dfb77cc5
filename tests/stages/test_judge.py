"""Classifiers of the images at hand."""

import pytest
import torch
from rich.console import Console

from gmvq.data import ArrayItems, ListItems
from gmvq.modalities import Audio, Data, Image, Vectors
from gmvq.stages import classifier_of, exemplars, learned_classifier


def of(items):
    return Data("images", items, items, Image(3))


def colored_textures(images=96):
    """Items of two classes that differ in their color and, less plainly, in their texture."""
    torch.manual_seed(0)
    labels = torch.arange(images) % 2
    coarse = torch.randn(images, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    texture = torch.where(labels.bool()[:, None, None, None], torch.randn(images, 1, 16, 16), coarse)
    color = torch.tensor([[0.04, 0.0, -0.04], [-0.04, 0.0, 0.04]])[labels][..., None, None]
    pixels = (255 * (0.5 + 0.1 * texture + color)).clamp(0, 255).byte()
    half = images // 2
    return Data(
        "textures", ArrayItems(pixels[:half], 2, labels[:half]), ArrayItems(pixels[half:], 2, labels[half:]), Image(3)
    )


def told_by_color(folder, tint):
    """How much less often a judge is right about images in the colors of the other class."""
    data = colored_textures()
    judge = classifier_of(data, folder, 60, Console(quiet=True), tint=tint)
    images, labels = data.train.array.float() / 255, data.train.labels
    swapped = images.flip(1)  # the colors of the other class
    with torch.no_grad():
        right = [float((judge(some).argmax(1) == labels).float().mean()) for some in (images, swapped)]
    return right[0] - right[1]


def test_a_judge_that_saw_tints_does_not_go_by_colors(tmp_path):
    assert told_by_color(tmp_path / "tinted", 0.3) < 0.1 < 0.3 < told_by_color(tmp_path / "plain", 0.0)


def test_a_judge_of_another_tint_is_another(tmp_path):
    data, quiet = colored_textures(16), Console(quiet=True)
    first, again, other = (classifier_of(data, tmp_path, 2, quiet, tint=tint) for tint in (0.3, 0.3, 0.1))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("tint", [-0.1, float("nan"), float("inf")])
def test_a_tint_that_is_none_gets_a_reason(tmp_path, tint):
    with pytest.raises(ValueError, match="'tint' must be a finite number of at least 0"):
        classifier_of(colored_textures(16), tmp_path, 2, Console(quiet=True), tint=tint)
    assert not list(tmp_path.iterdir())


def test_exemplars_are_tiles_labelled_by_their_image():
    images = torch.arange(3 * 3 * 64 * 96).remainder(251).byte().reshape(3, 3, 64, 96)
    found = exemplars(of(ArrayItems(images, 2, names=["a/b", "c", "d"])))
    assert (len(found.train), len(found.held_out), found.signal.channels) == (16, 2, 3)
    assert set(found.train.sizes) == {(32, 32)}
    for part in (found.train, found.held_out):
        for tile, place, name in zip(part.array, part.labels, part.names, strict=True):
            top, left = (int(start) for start in name.rpartition("/")[2].split("-"))
            assert torch.equal(tile, images[place, :, top : top + 32, left : left + 32])
    assert set(exemplars(of(ArrayItems(images[..., :28], 2))).train.sizes) == {(12, 12)}
    assert set(exemplars(of(ArrayItems(images, 2)), 16).train.sizes) == {(16, 16)}


def test_exemplars_are_of_so_many_images_at_most(monkeypatch):
    monkeypatch.setattr("gmvq.stages.classifier.MOST", 4)
    found = exemplars(of(ArrayItems(torch.randint(256, (9, 1, 16, 16), dtype=torch.uint8), 2)))
    assert {int(name.partition("/")[0]) for name in found.train.names} == {0, 2, 4, 6}


def test_exemplars_are_so_many_at_most(monkeypatch):
    monkeypatch.setattr("gmvq.stages.classifier.MANY", 12)
    found = exemplars(of(ArrayItems(torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8), 2)), 16)
    assert [len(found.train), len(found.held_out)] == [10, 2]
    assert found.train.labels.bincount().tolist() == [5, 5]


def test_an_image_that_is_smaller_than_a_tile_is_left_out():
    sizes = ((64, 64), (80, 70), (9, 5), (64, 100))
    found = exemplars(of(ListItems([torch.zeros(1, *size, dtype=torch.uint8) for size in sizes], 2, list("abcd"))))
    assert {name.partition("/")[0] for name in found.train.names} == {"a", "b", "d"}


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((0, 1, 64, 64), "must have sides of at least 8 pixels"),
        ((1, 1, 64, 64), r"at least 2 images of 2 tiles each .* 4 tile\(s\) of 1\."),
        ((5, 1, 64, 7), "must have sides of at least 8 pixels"),
    ],
)
def test_images_that_make_no_exemplars_get_a_reason(shape, reason):
    with pytest.raises(ValueError, match=reason):
        exemplars(of(ArrayItems(torch.zeros(shape, dtype=torch.uint8), 2)))


def test_items_without_tiles_must_have_labels():
    table = ArrayItems(torch.zeros(9, 3), 0)
    with pytest.raises(ValueError, match="'data' must have labels for a judge of vectors, which have no tiles"):
        exemplars(Data("table", table, table, Vectors(names=("x", "y", "z"))))


def test_images_without_labels_are_learned_by_exemplars(tmp_path):
    data, quiet = colored_textures(8), Console(quiet=True)
    assert learned_classifier(data, tmp_path / "labels", 2, quiet).config.classes == 2
    data.train.labels = None
    assert learned_classifier(data, tmp_path / "exemplars", 2, quiet).config.classes == len(data.train)


def test_labelled_images_of_odd_or_several_sizes_are_cut(tmp_path):
    whole = ArrayItems(torch.zeros(4, 1, 33, 33, dtype=torch.uint8), 2, torch.arange(4) % 3)
    odd = learned_classifier(Data("odd", whole, whole, Image(1)), tmp_path / "odd", 2, Console(quiet=True))
    assert odd.config.classes == 3
    sizes = ((64, 64), (40, 70), (64, 100), (64, 64))
    parts = [
        ListItems([torch.zeros(1, *size, dtype=torch.uint8) for size in sizes], 2, list("abcd"), torch.arange(4) % 3)
        for _ in range(2)
    ]
    assert (
        learned_classifier(Data("mixed", *parts, Image(1)), tmp_path / "mixed", 2, Console(quiet=True)).config.classes
        == 3
    )


@pytest.mark.parametrize(("samples", "halvings"), [(512, 3), (96, 2), (520, 3), (6, 1)])
def test_features_of_sequences_cover_more_than_a_few_samples(tmp_path, samples, halvings):
    items = ArrayItems(torch.rand(8, 1, samples) - 0.5, 1, torch.arange(8) % 2)
    judge = classifier_of(Data("noise", items, items, Audio(8000, 1)), tmp_path, 1, Console(quiet=True))
    assert judge.config.halvings == halvings
    assert judge.eval()(items.array).shape == (8, 2)

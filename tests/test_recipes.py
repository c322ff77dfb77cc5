import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from gmvq import recipes, stages
from gmvq.data import ArrayItems, ListItems
from gmvq.modalities import Data, Image
from gmvq.models import Autoencoder


def images(*sizes, channels=3):
    return ListItems(
        [torch.zeros(channels, *size, dtype=torch.uint8) for size in sizes], 2, [str(i) for i in range(len(sizes))]
    )


@pytest.mark.parametrize("name", [name for name in recipes.RECIPES if name != "folder"])
def test_every_recipe_makes_a_model(name):
    recipe = recipes.make(name, "somewhere")
    assert recipe.name == name
    assert recipe.data.source == "somewhere"
    model = replace(recipe.model, width=4, modality=recipe.model.modality or Image(3))
    assert Autoencoder(model).downsampling == recipe.model.downsampling


def test_tokens_are_those_of_the_protocol():
    photos, fashion, digits = recipes.photos(), recipes.fashion_mnist("x"), recipes.digits()
    assert photos.data.size // photos.model.downsampling == 8
    assert (photos.model.codebook_size, fashion.model.codebook_size, digits.model.codebook_size) == (512, 512, 64)
    assert -(-28 // fashion.model.downsampling) == 7
    assert 8 // digits.model.downsampling == 4
    celeba = recipes.celeba("x")
    assert celeba.data.size is None
    assert celeba.data.modality.face_side == 64
    assert celeba.data.modality.face_side // celeba.model.downsampling == 16


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10", ["--data PATH", "data_batch_1", "test_batch", recipes.CIFAR10_URL]),
        ("fashion-mnist", ["--data PATH", "t10k-images-idx3-ubyte.gz", recipes.FASHION_MNIST_URL]),
        ("celeba", ["--data PATH", "img_align_celeba.zip", recipes.CELEBA_URL]),
        ("folder", ["--data PATH", "images, recordings, texts"]),
    ],
)
def test_a_recipe_without_its_data_says_what_is_wanted(name, words):
    with pytest.raises(ValueError, match=name) as error:
        recipes.make(name)
    assert all(word in str(error.value) for word in words)


def test_an_unknown_recipe():
    with pytest.raises(ValueError, match="must be one of photos"):
        recipes.make("imagenet")


def test_bundled_data_have_their_channels():
    assert stages.load_data(recipes.digits().data).signal.channels == 1
    with pytest.raises(ValueError, match="must be 1, as the images have, got 3"):
        stages.load_data(replace(recipes.digits().data, modality=Image(3)))


def test_a_path_is_loaded_in_the_channels_asked_for(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(640, dtype=np.uint8).reshape(10, 8, 8))
    assert stages.load_data(stages.DataConfig(str(tmp_path / "x.npy"), Image(3))).signal.channels == 3


def write_faces(path, count):
    face = io.BytesIO()
    PIL.Image.new("RGB", (89, 109), (200, 100, 50)).save(face, "JPEG")
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            archive.writestr(f"{index:06d}.jpg", face.getvalue())
    return path


def test_faces_are_brought_to_the_side_of_the_recipe(tmp_path):
    data = stages.load_data(recipes.celeba(write_faces(tmp_path / "celeba_89x109.zip", 20)).data)
    assert (len(data.train), len(data.held_out), data.train.sizes[0]) == (18, 2, (64, 64))
    with pytest.raises(ValueError, match="'face_side' is for CelebA alone, got 64"):
        stages.load_data(stages.DataConfig("bundled:digits", Image(face_side=64)))


def test_the_first_training_images_alone():
    whole = stages.load_data(recipes.digits().data)
    data = stages.load_data(replace(recipes.digits().data, train_limit=7))
    assert data.train.names == whole.train.names[:7]
    assert all(torch.equal(data.train[i], whole.train[i]) for i in range(7))
    assert data.held_out.names == whole.held_out.names
    count = len(whole.train)
    assert len(stages.load_data(replace(recipes.digits().data, train_limit=count)).train) == count
    with pytest.raises(ValueError, match=rf"'data.train_limit' must be at most the {count:,} .*got {count + 1:,}\."):
        stages.load_data(replace(recipes.digits().data, train_limit=count + 1))


def test_the_limit_of_a_path_and_of_faces(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(640, dtype=np.uint8).reshape(10, 8, 8))
    assert len(stages.load_data(stages.DataConfig(str(tmp_path / "x.npy"), train_limit=3)).train) == 3
    faces = recipes.celeba(write_faces(tmp_path / "faces.zip", 10)).data
    assert stages.load_data(replace(faces, train_limit=4)).train.names == [f"{i:06d}.jpg" for i in range(4)]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [("size", 0, "an integer of at least 1"), ("train_limit", 0, "an integer of at least 1"), ("train_limit", -1, "")],
)
def test_data_are_checked_before_they_are_loaded(name, value, rule):
    with pytest.raises(ValueError, match=rf"'data.{name}' must be {rule}.*got {value}\."):
        stages.DataConfig("x", **{name: value})


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([(100, 200)] * 3, 64),
        ([(40, 300), (41, 50), (500, 500)], 40),  # the median of 40, 41 and 500, in whole tokens
        ([(20, 20), (300, 300), (400, 400)], 64),  # one small image does not make all crops small
        ([(3, 3)], 8),  # two tokens at least
    ],
)
def test_the_window_fits_most_images(sizes, size):
    data = Data("x", images(*sizes), images(*sizes), Image(3))
    recipe = recipes.changed(recipes.photos(), size=64)
    assert stages.fitted(recipe, data).data.size == size


def test_fitted_takes_channels_and_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gray = ArrayItems(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 2)
    recipe = stages.fitted(recipes.cifar10("data"), Data("x", gray, gray, Image(1)))
    assert recipe.model.signal.channels == 1
    assert recipe.data.source == str(Path.cwd() / "data")
    assert stages.fitted(recipes.digits(), Data("x", gray, gray, Image(1))).data.source == "bundled:digits"
    assert recipe.data.size is None


def test_changed_finds_the_part():
    recipe = recipes.changed(recipes.photos(), steps=7, width=8, size=16, batch_size=None)
    assert (recipe.training.steps, recipe.model.width, recipe.data.size) == (7, 8, 16)
    assert recipe.training.batch_size == recipes.photos().training.batch_size
    with pytest.raises(ValueError, match="'stpes'"):
        recipes.changed(recipe, stpes=1)

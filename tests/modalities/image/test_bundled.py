from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_image

from gmvq.modalities import Data
from gmvq.modalities import Image as ImageModality
from gmvq.modalities.image import bundled


def photographs() -> Data:
    return ImageModality().load("bundled:photographs")


def digits() -> Data:
    return ImageModality().load("bundled:digits")


def test_photographs_are_there_and_split_whole() -> None:
    data = photographs()
    assert data.skipped == ()
    assert data.train.names == list(bundled.TRAIN_PHOTOGRAPHS)
    assert data.held_out.names == ["astronaut.png", "chelsea.png", "coffee.png"]
    assert data.signal.channels == 3
    for side in (data.train, data.held_out):
        for index, (height, width) in enumerate(side.sizes):
            assert side[index].shape == (3, height, width)
            assert min(height, width) >= 300
            assert max(height, width) <= 1024
            assert side[index].float().std() > 3  # a picture, not a blank


def test_photographs_are_those_of_the_wheels() -> None:
    data = photographs()
    china = data.train[data.train.names.index("china.jpg")]
    assert np.array_equal(china.permute(1, 2, 0).numpy(), load_sample_image("china.jpg"))
    brick = data.train[data.train.names.index("brick.png")]
    assert np.array_equal(brick[0], brick[2])
    assert data.train.sizes[data.train.names.index("retina.jpg")] == (706, 706)


def test_a_photograph_that_a_wheel_lacks_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bundled.TRAIN_PHOTOGRAPHS, "absent.png", bundled.TRAIN_PHOTOGRAPHS["brick.png"])
    with pytest.warns(UserWarning, match=r"Skipped 1 bundled photograph.*absent\.png"):
        data = photographs()
    assert len(data.train) == 14
    assert data.skipped[0].path.name == "absent.png"


def test_no_photographs_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundled, "package_folder", lambda package, distribution: tmp_path)
    with pytest.raises(ValueError, match="At least one of the photographs brick"):
        photographs()
    with pytest.raises(ValueError, match="Reinstall scikit-learn"):
        digits()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-image"):
        photographs()


def test_digits_are_those_of_scikit_learn() -> None:
    data = digits()
    assert (len(data.train), len(data.held_out), data.signal.channels, data.train.sizes[0]) == (1438, 359, 1, (8, 8))
    oracle: Any = load_digits()
    images = np.concatenate([np.stack([side[i][0].numpy() for i in range(len(side))]) for side in data[1:3]])
    assert np.array_equal(images, np.rint(oracle.images * 255 / 16 + 1e-9))
    assert data.train.labels is not None
    assert np.array_equal(data.train.labels, oracle.target[:1438])
    assert images.max() == 255

import numpy as np
import PIL.Image
import pytest
import torch

from gmvq import hub
from gmvq.data import ArrayItems, FileItems, ListItems
from gmvq.modalities import Data, Image
from gmvq.models import Autoencoder, AutoencoderConfig
from gmvq.tokenization import TokenFile, detokenize, join, tokenize


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"modality": Image(1), "codebook_size": 300, "code_dim": 2, "width": 8, "blocks": 1, "downsampling": 4}
    return Autoencoder(AutoencoderConfig(**{**settings, **changes})).eval()


def pixels(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def mixed():
    sizes = [(8, 8), (9, 5), (8, 8), (3, 17)]
    return ListItems(
        [pixels(1, *size, seed=i) for i, size in enumerate(sizes)], 2, ["a.jpg", "b.png", "sub/a.jpg", "c"]
    )


def test_tokens_are_the_models_codes(tmp_path, model, mixed):
    done = []
    info = tokenize(model, mixed, tmp_path / "t", batch_size=2, on_progress=done.append)
    file = TokenFile(tmp_path / "t")
    assert file.info == info
    assert info.tokenizer == hub.fingerprint(model)
    assert done == [2, 3, 4]
    for index in range(len(mixed)):
        assert torch.equal(file[index], model.encode(mixed[index][None])[0])


def test_joined_items_let_go_where_they_are_kept(tmp_path):
    files = FileItems([tmp_path / name for name in "ab"], 2, lambda path: pixels(1, 4, 4, seed=ord(path.name)))
    sides = (files.subset([1]), files.subset([0]))
    items = join(Data("pair", *sides, Image(1)))
    first, second = items[0], items[1]
    assert items[0] is first
    items.let_go(0)
    assert items[0] is not first
    assert torch.equal(items[0], first)
    assert items[1] is second


def test_images_come_back_under_their_names_and_sizes(tmp_path, model, mixed):
    tokenize(model, mixed, tmp_path / "t")
    done = []
    paths = detokenize(model, tmp_path / "t", tmp_path / "out", on_progress=done.append)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == ["a.png", "b.png", "sub/a.png", "c.png"]
    assert done[-1] == 4
    for index, path in enumerate(paths):
        expected = (model.reconstruct(mixed[index][None])[0, 0] * 255).round()
        with PIL.Image.open(path) as image:
            found = np.asarray(image)
        # a batch may round otherwise than a single image
        assert np.abs(found - expected.numpy()).max() <= 1


def test_codes_of_several_scales_are_refused(tmp_path, mixed):
    with pytest.raises(ValueError, match="codes of several scales"):
        tokenize(make_model(quantizer="hierarchical"), mixed, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_model_in_training_stays_so(tmp_path, mixed):
    model = make_model(normalization="batch").train()
    tokenize(model, mixed, tmp_path / "t")
    assert model.training
    detokenize(model, tmp_path / "t", tmp_path / "out")
    assert model.training


def test_a_vae_has_no_codes(tmp_path, mixed):
    with pytest.raises(ValueError, match="VAE"):
        tokenize(make_model(quantizer="none"), mixed, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_channels_must_fit(tmp_path, model):
    with pytest.raises(ValueError, match="must have shape"):
        tokenize(model, ArrayItems(pixels(2, 3, 8, 8), 2), tmp_path / "t")


def test_another_tokenizer_is_refused_unless_forced(tmp_path, model, mixed):
    tokenize(model, mixed, tmp_path / "t")
    other = make_model(seed=1)
    with pytest.raises(ValueError, match="--force"):
        detokenize(other, tmp_path / "t", tmp_path / "out")
    assert len(detokenize(other, tmp_path / "t", tmp_path / "out", force=True)) == 4
    with pytest.raises(ValueError, match=r"codebooks of \(300,\), tokens of 4 samples"):
        detokenize(make_model(codebook_size=16), tmp_path / "t", tmp_path / "out", force=True)


def test_nothing_is_written_if_a_name_escapes(tmp_path, model):
    images = ListItems([pixels(1, 8, 8)] * 2, 2, ["fine.png", "../escaped.png"])
    tokenize(model, images, tmp_path / "t")
    with pytest.raises(ValueError, match="would lead out"):
        detokenize(model, tmp_path / "t", tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_join_sorts_a_split_back():
    everything = ArrayItems(pixels(5, 1, 4, 4), 2)
    joined = join(Data("x", everything.subset([0, 2, 4]), everything.subset([1, 3]), Image(1)))
    assert joined.names == everything.names
    assert all(torch.equal(joined[index], everything[index]) for index in range(5))
    assert joined.sizes == everything.sizes
    assert joined.subset([3, 0]).names == ["00003", "00000"]


def test_join_sorts_numbers_as_numbers():
    images = ArrayItems(pixels(2, 1, 4, 4), 2, names=["99999", "100000"])
    assert join(Data("x", images.subset([1]), images.subset([0]), Image(1))).names == ["99999", "100000"]


def test_join_tells_sides_with_the_same_names_apart():
    side = ArrayItems(pixels(2, 1, 4, 4), 2)
    other = ArrayItems(pixels(1, 1, 4, 4), 2)
    assert join(Data("x", side, other, Image(1))).names == ["train/00000", "train/00001", "held_out/00000"]
    assert join(Data("x", side, side, Image(1))) is side

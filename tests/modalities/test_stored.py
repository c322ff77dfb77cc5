"""Items as a model returns them and as they are stored are written alike."""

import weakref
from threading import get_ident

import pytest
import torch
from modality_members import MEMBERS, worsened
from PIL import Image as Pillow

from gmvq.data.items import FileItems
from gmvq.modalities import Audio, Image
from gmvq.modalities.image import decoding, folders, pictures
from gmvq.modalities.image.decoding import read_image

members = pytest.mark.parametrize("name", MEMBERS)


@members
def test_what_is_checked_and_stored_is_the_same(name):
    modality, item, _ = MEMBERS[name]()
    signal = modality.signal
    checked = signal.checked(item[None])
    stored = signal.stored(checked)
    assert torch.equal(signal.stored(stored), stored)
    if name != "audio":  # 16 bits hold less than the floats of its items
        assert stored.dtype == item.dtype
        assert torch.equal(stored[0], item)
    assert (signal.checked(stored).double() - checked.double()).abs().max() <= 0.5 / 32768


@members
def test_stored_items_are_written_as_those_of_a_model(tmp_path, name):
    modality, item, _ = MEMBERS[name]()
    made = worsened(modality.signal.checked(item[None])[0], 0.3)
    for folder, each in (("floats", made), ("stored", modality.signal.stored(made[None])[0])):
        (tmp_path / folder).mkdir()
        modality.write(tmp_path / folder / f"item{modality.suffix}", [each])
        if modality.holds_several:
            modality.write(tmp_path / folder / f"items{modality.suffix}", [each] * 3)
    for file in (tmp_path / "floats").iterdir():
        assert file.read_bytes() == (tmp_path / "stored" / file.name).read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".npy"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_pass_through_pillow_some_rows_at_a_time(tmp_path, monkeypatch, channels, suffix):
    pixels = torch.randint(0, 256, (channels, 23, 9), dtype=torch.uint8)
    Image(channels=channels).write(tmp_path / f"whole{suffix}", [pixels])
    for module in (decoding, pictures):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 40)  # four rows
    Image(channels=channels).write(tmp_path / f"rows{suffix}", [pixels])
    assert (tmp_path / f"rows{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    if suffix == ".png" and channels != 2:
        assert torch.equal(read_image(tmp_path / "rows.png", channels), pixels)


def test_an_image_of_which_pillow_only_warns_is_read(tmp_path, monkeypatch):
    Pillow.new("RGB", (15, 10), (1, 2, 3)).save(tmp_path / "large.png")
    Pillow.new("RGB", (15, 14), (1, 2, 3)).save(tmp_path / "larger.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
    assert decoding.most_pixels() == 200
    assert read_image(tmp_path / "large.png").flatten(1)[:, -1].tolist() == [1, 2, 3]
    with pytest.raises(decoding.ImageError, match=r"more than 2 \* PIL.Image.MAX_IMAGE_PIXELS = 200"):
        read_image(tmp_path / "larger.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", None)
    assert read_image(tmp_path / "larger.png").shape == (3, 14, 15)


def test_pictures_of_large_images_are_reduced(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_SHOWN", 128)
    image = (torch.arange(300) / 299).expand(3, 200, 300)
    exhibit = Image(channels=3).exhibit("ramp", image, image, torch.arange(600 * 10).reshape(600, 10) % 7)
    for part in (*exhibit.real, *exhibit.made):
        assert part.width == 128
    assert exhibit.codes[0].width == pictures.SHOWN // 120 * 2


@pytest.mark.parametrize("modality", [Image(channels=3), Audio(rate=8000, channels=1)])
def test_no_more_decoded_files_are_in_memory_than_may_be_kept(tmp_path, monkeypatch, modality):
    item = torch.full((3, 20, 20), 0.5) if modality.kind == "image" else torch.full((1, 1200), 0.5)
    for index in range(40):
        modality.write(tmp_path / f"{index}{modality.suffix}", [item * (1 - index / 100)])
    alive, most, read = 0, 0, FileItems.__getitem__

    def counted(self, index):
        nonlocal alive, most
        tensor = read(self, index)

        def gone():
            nonlocal alive
            alive -= 1

        alive += 1
        most = max(most, alive)
        weakref.finalize(tensor, gone)
        return tensor

    monkeypatch.setattr(FileItems, "__getitem__", counted)
    data = modality.load(tmp_path, memory_bytes=0)
    assert len(data.train) + len(data.held_out) == 40
    assert 0 < most <= 20


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    for index in range(12):
        Pillow.new("L", (9, 9 + index)).save(tmp_path / f"{index}.png")
    threads, read = set(), FileItems.__getitem__
    monkeypatch.setattr(folders, "LARGE", 9 * 14)
    monkeypatch.setattr(
        FileItems, "__getitem__", lambda self, i: threads.add((self.sizes[i][0] > 14, get_ident())) or read(self, i)
    )
    assert len(Image().load(tmp_path, held_out_fraction=0).train) == 12
    assert {thread for large, thread in threads if large} == {get_ident()}
    assert {thread for large, thread in threads if not large} - {get_ident()}

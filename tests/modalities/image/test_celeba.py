import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from loading_images import load
from numpy.typing import NDArray
from PIL import Image

from gmvq.data import ArrayItems
from gmvq.modalities import Data, fingerprint
from gmvq.modalities.image.celeba import read_celeba

FULL, HALF = (218, 178), (109, 89)
Pixels = NDArray[np.uint8]


def jpeg(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def decoded(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_folder(folder: Path, members: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in members.items():
        (folder / name).write_bytes(data)
    return folder


def pixels_of(data: Data) -> torch.Tensor:
    assert isinstance(data.train, ArrayItems)
    assert isinstance(data.held_out, ArrayItems)
    return torch.cat([data.train.array, data.held_out.array])


@pytest.fixture
def faces(random_pixels: Callable[..., Pixels]) -> Callable[..., dict[str, bytes]]:
    def make(ids: Iterable[int] = range(1, 11), size: tuple[int, ...] = HALF) -> dict[str, bytes]:
        return {f"{i:06d}.jpg": jpeg(random_pixels(*size, 3)) for i in ids}

    return make


Faces = Callable[..., dict[str, bytes]]


@pytest.mark.parametrize(
    ("size", "side", "rows", "columns"),
    # the crop of torchvision's CenterCrop(140), and of half of that in ../shared/data/README.md
    [(FULL, 140, slice(39, 179), slice(19, 159)), (HALF, 70, slice(19, 89), slice(9, 79))],
)
def test_the_center_is_cropped(
    size: tuple[int, int], side: int, rows: slice, columns: slice, faces: Faces, tmp_path: Path
) -> None:
    members = faces(size=size)
    data = load(write_zip(tmp_path / "faces.zip", members), face_side=side)
    expected = np.stack([decoded(member)[rows, columns].transpose(2, 0, 1) for member in members.values()])
    assert torch.equal(pixels_of(data), torch.from_numpy(expected))


@pytest.mark.parametrize(("size", "side"), [(FULL, 128), (FULL, 64), (HALF, 64)])
def test_the_crop_is_scaled_by_areas(size: tuple[int, int], side: int, tmp_path: Path) -> None:
    # red grows from left to right and green from top to bottom, so that scaling the center is known
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([columns, rows, np.full_like(rows, 40)], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=100, subsampling=0)
    data = load(write_zip(tmp_path / "faces.zip", dict.fromkeys(("1.jpg", "2.jpg"), file.getvalue())), face_side=side)
    image = data.train[0].to(torch.float64)
    assert image.shape == (3, side, side)
    (left, top), crop = ((19, 39), 140) if size == FULL else ((9, 19), 70)
    ramp = (torch.arange(side, dtype=torch.float64) + 0.5) * crop / side - 0.5
    # a level for each of: the loss of JPEG, its color space, rounding
    inner = slice(2, -2)  # the outermost pixels average over fewer
    assert ((image[0, :, inner] - (left + ramp)[None, inner]).abs() <= 3).all()
    assert ((image[1, inner] - (top + ramp)[inner, None]).abs() <= 3).all()
    assert ((image[2] - 40).abs() <= 3).all()


def test_every_form_is_the_same_data(faces: Faces, tmp_path: Path) -> None:
    members = faces(size=FULL)
    nested = {f"img_align_celeba/{name}": data for name, data in members.items()}
    noise = {"img_align_celeba/": b"", "__MACOSX/img_align_celeba/._000001.jpg": b"x", "readme.txt": b"x"}
    own = write_folder(tmp_path / "a" / "img_align_celeba", {**members, ".hidden.jpg": b"x", "notes.txt": b"x"})
    write_folder(tmp_path / "b" / "img_align_celeba" / "img_align_celeba", members)
    (tmp_path / "c").mkdir()
    (tmp_path / "d").mkdir()
    archive = write_zip(tmp_path / "c" / "img_align_celeba.zip", {**noise, **nested})
    write_zip(tmp_path / "d" / "celeba_89x109.zip", members)
    sources = [tmp_path / "a", own, tmp_path / "b", archive, tmp_path / "c", str(tmp_path / "d")]
    loaded = [load(source, face_side=32) for source in sources]
    assert not any(data.skipped for data in loaded)
    assert len({fingerprint(data) for data in loaded}) == 1
    assert [data.name for data in loaded] == ["a", "img_align_celeba", "b", "img_align_celeba", "c", "d"]


def test_the_full_size_is_taken_before_the_half(faces: Faces, tmp_path: Path) -> None:
    write_zip(tmp_path / "celeba_89x109.zip", faces())
    write_zip(tmp_path / "img_align_celeba.zip", faces(size=FULL))
    assert load(tmp_path, face_side=128).train.sizes[0] == (128, 128)


def test_the_last_tenth_is_held_out_by_name(faces: Faces, tmp_path: Path) -> None:
    members = faces(range(1, 21))
    backwards = dict(reversed(members.items()))
    data = load(write_zip(tmp_path / "faces.zip", backwards), face_side=16)
    assert [*data.train.names, *data.held_out.names] == list(members)
    assert data.held_out.names == ["000019.jpg", "000020.jpg"]
    assert len(load(tmp_path / "faces.zip", face_side=16, held_out_fraction=0.5).train) == 10
    assert len(load(tmp_path / "faces.zip", face_side=16, held_out_fraction=0.001).held_out) == 1


def test_both_parts_share_one_tensor(faces: Faces, tmp_path: Path) -> None:
    data = load(write_zip(tmp_path / "faces.zip", faces()), face_side=16)
    assert isinstance(data.train, ArrayItems)
    assert isinstance(data.held_out, ArrayItems)
    assert data.train.array.untyped_storage().data_ptr() == data.held_out.array.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("name", "line", "header"),
    [("list_eval_partition.txt", "{} {}\n", ""), ("list_eval_partition.csv", "{},{}\n", "image_id,partition\n")],
)
@pytest.mark.parametrize("form", ["folder", "zip", "images"])
def test_the_official_partition(name: str, line: str, header: str, form: str, faces: Faces, tmp_path: Path) -> None:
    members = faces(range(1, 9))
    parts = dict(zip(members, "20011202", strict=True))
    (tmp_path / name).write_text(header + "".join(line.format(*item) for item in parts.items()))
    source = tmp_path
    if form == "zip":
        source = write_zip(tmp_path / "any.zip", members)
    else:
        folder = write_folder(tmp_path / "img_align_celeba", members)
        source = folder if form == "images" else tmp_path
    data = load(source, face_side=70)
    assert data.train.names == ["000002.jpg", "000003.jpg", "000007.jpg"]
    assert data.held_out.names == ["000001.jpg", "000006.jpg", "000008.jpg"]
    for images in (data.train, data.held_out):
        for image, key in zip(images, images.names, strict=True):
            assert np.array_equal(image.numpy().transpose(1, 2, 0), decoded(members[key])[19:89, 9:79])


def test_an_image_that_the_partition_lacks_is_skipped(faces: Faces, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "faces.zip", faces(range(1, 4)))
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n000003.jpg 2\n")
    with pytest.warns(UserWarning, match="the official partition lacks it"):
        data = load(source, face_side=16)
    assert (data.train.names, data.held_out.names) == (["000001.jpg"], ["000003.jpg"])
    assert [skipped.path for skipped in data.skipped] == [source / "000002.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000001.jpg 0\n000002.jpg 0\n", r"for training and for testing, got 2 and 0\. .*remove"),
        ("000001.jpg 2\n000002.jpg 2\n", "got 0 and 2"),
        ("000001.jpg 1\n", "got 0 and 0"),
        ("", "got 0 and 0"),
        ("000001.jpg 0\n000002.jpg 3\n", r"Line 2 of '.*txt' must hold .* got '000002.jpg 3'"),
        ("000001.jpg\n", "Line 1"),
        ("\x00\xff 0 0", "Line 1"),
    ],
)
def test_partitions_that_cannot_be_used(text: str, message: str, faces: Faces, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "faces.zip", faces(range(1, 3)))
    (tmp_path / "list_eval_partition.txt").write_text(text, encoding="latin1")
    with pytest.raises(ValueError, match=message):
        load(source, face_side=16)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_what_is_no_face_is_skipped(
    form: str, faces: Faces, random_pixels: Callable[..., Pixels], tmp_path: Path
) -> None:
    members = faces(range(2, 8))
    broken = {
        "000001.jpg": b"",
        "000008.jpg": members["000002.jpg"][:800],
        "000009.jpg": b"no image",
        "000010.jpg": jpeg(random_pixels(*FULL, 3)),
        "000011.jpg": bytes((1 << 24) + 1),
    }
    source = tmp_path / "img_align_celeba"
    source = write_folder(source, members | broken) if form == "folder" else write_zip(source, members | broken)
    with pytest.warns(UserWarning, match=r"Skipped 5 file\(s\)"):
        data = load(source, face_side=64)
    assert [*data.train.names, *data.held_out.names] == list(members)
    assert not pixels_of(data).sum((1, 2, 3)).eq(0).any()
    reasons = {skipped.path.name: skipped.reason for skipped in data.skipped}
    assert reasons.keys() == broken.keys()
    assert reasons["000001.jpg"] == reasons["000009.jpg"] == "its content is not an image of a known format"
    assert "truncated" in reasons["000008.jpg"]
    assert reasons["000010.jpg"] == "it has 178 x 218 pixels instead of 89 x 109"
    assert "too many for a face" in reasons["000011.jpg"]


def test_a_damaged_member_is_skipped(faces: Faces, tmp_path: Path) -> None:
    members = faces(range(1, 4))
    path = write_zip(tmp_path / "faces.zip", members)
    data = bytearray(path.read_bytes())
    start = data.index(members["000002.jpg"])
    data[start + 500] ^= 255  # the sum in the zip tells, whether or not the JPEG still decodes
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"000002\.jpg \(it is damaged .*Bad CRC-32"):
        assert load(path, face_side=16).train.names == ["000001.jpg"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice_is_read_once(faces: Faces, tmp_path: Path) -> None:
    members = faces(range(1, 4))
    twice = {**members, "other/000001.jpg": members["000002.jpg"]}
    with pytest.warns(UserWarning, match="its name occurs twice"):
        data = load(write_zip(tmp_path / "faces.zip", twice), face_side=70)
    assert [*data.train.names, *data.held_out.names] == list(members)
    assert np.array_equal(data.train[0].numpy().transpose(1, 2, 0), decoded(members["000001.jpg"])[19:89, 9:79])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(faces: Faces, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "img_align_celeba", faces(range(1, 4)))
    os.mkfifo(folder / "000004.jpg")
    with pytest.warns(UserWarning, match="no regular file"):
        assert len(load(tmp_path, face_side=16).skipped) == 1


@pytest.mark.parametrize(
    ("size", "side", "message"),
    [
        (HALF, 128, r"'face_side' must be at most 70, .* 89 x 109 .*got 128\. Take 64, or pass .* 178 x 218"),
        (HALF, 71, "at most 70"),
        (FULL, 141, r"at most 140, .* 178 x 218 .*got 141\. Take 64 or 128"),
        (FULL, 7, "'face_side' must be at least 8 pixels, got 7"),
    ],
)
def test_sides_that_cannot_be_had(size: tuple[int, int], side: int, message: str, faces: Faces, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(write_zip(tmp_path / "faces.zip", faces(range(1, 3), size)), face_side=side)


def test_where_there_are_no_faces(faces: Faces, random_pixels: Callable[..., Pixels], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"No images of CelebA in '.*empty'\. Pass a folder with img_align_celeba"):
        load(tmp_path / "empty", face_side=64)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a\.txt' must be a zip"):
        load(tmp_path / "a.txt", face_side=64)
    with pytest.raises(ValueError, match="No image of CelebA in"):
        load(write_zip(tmp_path / "none.zip", {"a.txt": b"x"}), face_side=64)
    others = {"1.jpg": b"x", "2.jpg": jpeg(random_pixels(64, 64, 3))}
    with pytest.raises(ValueError, match=r"The first, 1\.jpg: its content is not an image .*178 x 218"):
        load(write_zip(tmp_path / "others.zip", others), face_side=64)
    with pytest.raises(ValueError, match=r"No face in .* can be read: .*truncated"):
        load(write_zip(tmp_path / "cut.zip", {"1.jpg": faces([1])["000001.jpg"][:900]}), face_side=64)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere", face_side=64)


def test_a_single_face_stands_on_both_sides(faces: Faces, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "faces.zip", faces([1]))
    with pytest.warns(UserWarning, match="one image, used for training"):
        assert len(load(source, face_side=16).held_out) == 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(channels: int, tmp_path: Path) -> None:
    # gray files among colored ones, as people save them
    gray, red = np.full(HALF, 90, np.uint8), np.zeros((*HALF, 3), np.uint8)
    red[..., 0] = 255
    data = load(
        write_zip(tmp_path / "f.zip", {"1.jpg": jpeg(gray), "2.jpg": jpeg(red)}), face_side=8, channels=channels
    )
    assert data.signal.channels == data.train[0].shape[0] == channels
    assert data.train[0][0].unique().tolist() == [90]
    wanted = {1: [76], 3: [255, 0, 0], 4: [255, 0, 0, 255]}[channels]
    # JPEG keeps pure red within two levels
    assert (data.held_out[0][:, 4, 4].to(int) - torch.tensor(wanted)).abs().max() <= 2


def test_without_a_side_nothing_is_prepared(faces: Faces, tmp_path: Path) -> None:
    write_folder(tmp_path / "img_align_celeba", faces())
    assert load(tmp_path).train.sizes[0] == HALF


def test_many_faces_keep_their_order(random_pixels: Callable[..., Pixels], tmp_path: Path) -> None:
    # more than one batch of the threads; the brightness of a face is its number
    members = {f"{i:06d}.jpg": jpeg(np.full((*HALF, 3), i % 251, np.uint8)) for i in range(1100)}
    members["000500.jpg"] = b"x"
    parts = read_celeba(write_zip(tmp_path / "faces.zip", members), 8)
    assert parts.held_out is not None
    found = torch.cat([parts.train.array, parts.held_out.array])[:, 0, 0, 0]
    assert found.tolist() == [i % 251 for i in range(1100) if i != 500]
    assert [skipped.path.name for skipped in parts.skipped] == ["000500.jpg"]

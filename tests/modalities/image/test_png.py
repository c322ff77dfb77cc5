import io

import numpy as np
import pytest
from PIL import Image

from gmvq.modalities.image.decoding import ImageError, read_header, read_image


@pytest.fixture
def picture(tmp_path):
    """A PNG of noise, whose bytes are nearly all of pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40)).astype(np.uint8)).save(buffer, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_flipped_bit_of_the_pixels_is_noticed(picture, place):
    whole = bytearray(picture.read_bytes())
    whole[int(place * len(whole))] ^= 4
    picture.write_bytes(whole)
    assert read_header(picture).width == 40
    with pytest.raises(ImageError, match="its chunk IDAT differs from its checksum"):
        read_image(picture)


def test_what_follows_the_last_chunk_is_ignored(picture):
    expected = read_image(picture)
    picture.write_bytes(picture.read_bytes() + b"more")
    assert read_image(picture).equal(expected)

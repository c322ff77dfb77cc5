"""Mutations of files: what disks, copies and hostile hands make of bytes. A seed always makes the same."""

import random
import re
import struct

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63)
WORDS = (
    *(b"-1", b"0", b"1", b"2", b"64", b"1e308", b"1e999", b"NaN", b"Infinity", b"null", b"true", b"[]", b"{}", b'""'),
    *(b"0.5", b"-0.0", b"9223372036854775808", b"1000000", b'"x"', b"[1]", b"[[[[1]]]]", b'{"a": 1}', b"'", b","),
    b"\0",
)
HEAD = 1024


def flip(data, rng):
    """Bits of one to eight bytes."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def flip_head(data, rng):
    """A bit of the first bytes, which say what the others mean."""
    made = bytearray(data)
    made[rng.randrange(min(len(made), 64))] ^= 1 << rng.randrange(8)
    return bytes(made)


def flip_tail(data, rng):
    """A bit of the last bytes: where zip, Parquet and TIFF keep their directory."""
    made = bytearray(data)
    made[-1 - rng.randrange(min(len(made), 256))] ^= 1 << rng.randrange(8)
    return bytes(made)


def truncate(data, rng):
    """The end is lost: a copy was stopped."""
    return data[: rng.choice((0, 1, len(data) - 1, rng.randrange(len(data)), rng.randrange(min(len(data), 256))))]


def extend(data, rng):
    """Something follows."""
    # not the whole file again, which is a valid file of gzip
    more = rng.choice((b"\0", bytes(512), rng.randbytes(97), data[1:], b"\n", data[: len(data) // 2]))
    return data + more


def swap(data, rng):
    """Two blocks in each other's place."""
    length = min(rng.choice((4, 64, 512, 4096)), max(1, len(data) // 2))
    first, second = sorted(rng.sample(range(max(2, len(data) - length + 1)), 2))
    second = max(second, first + length)
    one, other = data[first : first + length], data[second : second + length]
    return data[:first] + other + data[first + length : second] + one + data[second + length :]


def zero(data, rng):
    """A page that never reached the disk."""
    page = rng.choice((16, 512, 4096))
    start = rng.randrange(0, len(data), page)
    end = min(start + page, len(data))
    return data[:start] + bytes(end - start) + data[end:]


def cut_out(data, rng):
    """A block is missing."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 8, 512)) :]


def repeat(data, rng):
    """A block is there twice."""
    start = rng.randrange(len(data))
    end = start + rng.choice((1, 8, 512))
    return data[:end] + data[start:]


def number(data, rng):
    """An integer of the first bytes is another one: lengths, counts and offsets."""
    form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    width = struct.calcsize(form)
    if len(data) < width:
        return b""
    start = rng.randrange(min(len(data) - width + 1, HEAD))
    value = struct.pack(form, rng.choice(EXTREMES) % (1 << 8 * width))
    return data[:start] + value + data[start + width :]


def word(data, rng):
    """A number or a name in text is another one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e[+-]?\d+)?|\"[^\"]*\"|\w+", data[: 1 << 16]))
    if not found:
        return flip(data, rng)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(WORDS) + data[match.end() :]


def foreign_part(data, rng, others):
    """A block of another file, as after a crash of the file system."""
    other = rng.choice(others)
    start, length = rng.randrange(len(data)), rng.choice((8, 512, 4096))
    place = rng.randrange(max(1, len(other)))
    return data[:start] + other[place : place + length] + data[start + length :]


def foreign(data, rng, others):
    """Another file under this name."""
    return rng.choice(others)


ALONE = (flip, flip, flip_head, flip_tail, truncate, extend, swap, zero, cut_out, repeat, number, number, word, word)
WITH_OTHERS = (foreign_part, foreign)


def mutation(data, seed, others=()):
    """One mutation of a file's bytes.

    Args:
        data: The bytes.
        seed: What identifies the mutation: any text.
        others: Bytes of other files.

    Returns:
        Name and bytes, which may by chance be the same.
    """
    rng = random.Random(seed)
    how = rng.choice((*ALONE, *(WITH_OTHERS if others else ())))
    return how.__name__, how(data, rng, others) if how in WITH_OTHERS else how(data, rng)

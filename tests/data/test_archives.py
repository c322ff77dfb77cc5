import io
import struct
import tarfile
import zipfile

import pytest

from gmvq.data import archives

FILES = {"a.txt": b"first" * 20, "b.txt": b"second" * 20}


def write_tar(path, mode):
    with tarfile.open(path, mode) as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)


def read(path):
    return {name: content() for name, _, content in archives.members(path)}


@pytest.mark.parametrize("suffix", archives.ARCHIVES)
def test_members_are_those_that_were_packed(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    kind = {"tgz": "gz", "tbz2": "bz2", "txz": "xz", "tar": ""}.get(suffix.split(".")[-1], suffix.split(".")[-1])
    write_zip(path) if suffix == ".zip" else write_tar(path, f"w:{kind}")
    assert read(path) == FILES


def test_the_checksum_behind_the_last_member_counts(tmp_path):
    path = tmp_path / "a.tar.gz"
    write_tar(path, "w:gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    with pytest.raises(archives.DAMAGED, match="CRC"):
        read(path)


def test_a_directory_that_hides_members_is_damaged(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path)
    whole = bytearray(path.read_bytes())
    entry = whole.index(b"PK\1\2")
    whole[entry + 32 : entry + 34] = struct.pack("<H", 46 + 5)  # a comment as long as the second entry
    path.write_bytes(whole)
    with pytest.raises(archives.DAMAGED, match="holds 1 of 2 files"):
        read(path)


def test_a_member_that_was_renamed_in_the_directory_is_damaged(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path)
    whole = path.read_bytes()
    place = whole.rindex(b"b.txt")
    path.write_bytes(whole[:place] + b"b.txd" + whole[place + 5 :])
    with pytest.raises(archives.DAMAGED, match="differ"):
        read(path)


def test_reasons_are_short_lines():
    assert archives.reason_of(ValueError("one\ntwo \x1b three")) == r"one two \x1b three"
    assert len(archives.reason_of(ValueError("x" * 5000))) <= 200
    assert archives.reason_of(EOFError()) == "EOFError"

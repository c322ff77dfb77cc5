import errno
import os
from pathlib import Path

import pytest

from gmvq.data.writing import replacing, write_atomically


def test_the_name_is_synchronized_after_the_file(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
    write_atomically(tmp_path / "file", b"1")
    assert [path.parent for path in done] == [tmp_path, tmp_path.parent]


@pytest.mark.parametrize("has_links", [True, False])
def test_the_former_file_is_kept(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    path, former = tmp_path / "file", tmp_path / "former"
    for text, before in ((b"1", None), (b"2", b"1"), (b"3", b"2")):
        with replacing(path, former) as file:
            file.write(text)
        assert path.read_bytes() == text
        assert (former.read_bytes() if former.exists() else None) == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "former"]

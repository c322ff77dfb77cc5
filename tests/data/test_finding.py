import os

from gmvq.data.finding import find_files


def test_files_in_order_without_what_is_hidden(tmp_path):
    for name in ("b/2.x", "b/1.x", "a.x", ".hidden.x", ".git/1.x", "__MACOSX/a.x", "c.y", "Z/3.x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.x").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.x")
    (tmp_path / "folder.x").mkdir()
    skipped = []
    found = find_files(tmp_path, lambda path: path.suffix == ".x", skipped)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["Z/3.x", "a.x", "b/1.x", "b/2.x", "gone.x"]
    assert [(each.path.name, each.reason) for each in skipped] == [("pipe.x", "it is no regular file")]

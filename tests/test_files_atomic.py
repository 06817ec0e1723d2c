"""Files and folders that take their place whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import tree

from edgecnn.files import folder_atomic, write_atomic


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A file is replaced by new content, its folders are made, and no temporary stays."""
    path = tmp_path / "deep" / "er" / "file.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two" * 1000)
    assert tree(tmp_path) == {"deep/er/file.bin": b"two" * 1000}


def test_readers_never_see_a_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the old file open keeps all of it, and a disk that is full leaves the old file in its place."""
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"newer")
        assert reader.read() == b"old"

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"newest")
    assert tree(tmp_path) == {"file.bin": b"newer"}


def test_a_file_that_cannot_be_placed_leaves_no_temporary(tmp_path: Path) -> None:
    """Where the new file cannot take its place, the error gets out, the old stays and no temporary does."""
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_atomic(tmp_path / "taken", b"data")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "inside"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    """A block that raises leaves the old folder as it was and no temporary beside it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")

    def fail() -> None:
        with folder_atomic(tmp_path / "folder") as temporary:
            assert temporary.parent == tmp_path
            (temporary / "new").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert tree(tmp_path) == {"folder/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("target", ["old", "nothing"])
def test_a_link_is_replaced_by_the_folder(tmp_path: Path, target: str) -> None:
    """A link in the folder's place, also one to nothing, gives way to it; where it led to stays and nothing else does."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old")
    (tmp_path / "latest").symlink_to(target)
    with folder_atomic(tmp_path / "latest") as temporary:
        (temporary / "file").write_text("new")
    assert tree(tmp_path) == {"old/file": b"old", "latest/file": b"new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "old"]


def test_a_finished_folder_replaces_the_old_one(tmp_path: Path) -> None:
    """A block that ends well puts its folder in place of the old one, of which nothing stays."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with folder_atomic(tmp_path / "folder") as temporary:
        assert list(temporary.iterdir()) == []
        (temporary / "in").mkdir()
        (temporary / "in" / "new").write_text("new")
        assert tree(tmp_path / "folder") == {"old": b"old"}
    assert tree(tmp_path) == {"folder/in/new": b"new"}


def test_a_folder_that_cannot_be_placed_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the last rename fails, the old folder that was moved aside comes back."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise PermissionError("not today")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError, match="not today"), folder_atomic(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("new")
    assert tree(tmp_path) == {"folder/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]

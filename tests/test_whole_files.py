"""Files and folders that are there whole or not at all, on file systems that know less and on disks that are full."""

import errno
import os
import shutil
import stat

import pytest

from evomerge.storage.patience import full_disk
from evomerge.whole_files import folder_in_place, write_whole


def test_a_folder_with_folders_is_written_where_directories_cannot_be_flushed(tmp_path, monkeypatch):
    flushed = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flushed(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with folder_in_place(tmp_path / "out") as folder:
        (folder / "masks" / "a").mkdir(parents=True)
        (folder / "masks" / "a" / "text").write_text("whole")
    assert (tmp_path / "out" / "masks" / "a" / "text").read_text() == "whole"


def _text(folder):
    (folder / "text").write_text("x" * 9000)


def _copy(folder):
    shutil.copyfile(__file__, folder / "copy")


@pytest.mark.parametrize("write", [_text, _copy])
def test_a_folder_that_has_no_room_is_said_to_lie_on_a_full_disk_and_vanishes(write, room_for, tmp_path):
    with (
        room_for(100),
        pytest.raises(OSError, match="File too large") as raised,
        folder_in_place(tmp_path / "out") as to,
    ):
        write(to)
    assert f"the disk of {tmp_path}" in str(full_disk(raised.value))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_no_room_is_named_and_the_earlier_one_stays(room_for, tmp_path):
    path = tmp_path / "text"
    write_whole(path, b"earlier")
    with room_for(100), pytest.raises(OSError, match="File too large") as raised:
        write_whole(path, b"x" * 9000)
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]

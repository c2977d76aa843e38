"""Files and folders that are there whole or not at all, also on file systems that know less."""

import errno
import os
import stat

from evomerge.whole_files import folder_in_place


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

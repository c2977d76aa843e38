"""Tensors that the workers of a machine share: the first one that needs them writes a file, and all of them map it.

The files of a run are in one folder of the machine's temporary folder, which no other user can read. Whoever uses it
holds a lock on it, which the kernel drops with the process: a folder that nobody holds is what an ended run has left.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import torch

logger = logging.getLogger(__name__)

PREFIX: Final = "evomerge-shared-"
ALIGNMENT: Final = 64
_LENGTH: Final = 8  # bytes of the length of the directory, at the end of a file

Named = Iterable[tuple[str, torch.Tensor]]


class SharedTensors:
    """The shared tensors of one run on this machine.

    Args:
        run: a name that the workers of the run have in common, and no other run.
        parent: the folder of the run's folder, by default the temporary one of the system. Nothing is written there
            before something is shared.
    """

    def __init__(self, run: str, parent: Path | None = None) -> None:
        self._path = (parent or temporary_folder()) / f"{PREFIX}{run}"
        self._held: int | None = None

    def tensors(self, key: str, make: Callable[[], Named]) -> dict[str, torch.Tensor]:
        """The tensors of a key, mapped. Where no file has them yet, what `make` gives, one after another, is written.

        Nobody may write to them: the file would not change, but this process would read what was written. Where there
        is no room for a file they are in memory of this process.
        """
        try:
            path = self._folder() / hashlib.sha256(key.encode()).hexdigest()[:32]
            with _locked(path.with_suffix(".lock")):  # made once, however many workers ask at the same time
                if not path.exists():
                    _write(path, make())
                return _read(path)
        except OSError as error:
            logger.warning("not shared with the other workers of this machine: %s", error)
            return dict(make())

    def forget(self, key: str) -> None:
        """Remove the file of a key. Whoever has it mapped keeps it, and who asks for it later makes it again."""
        if self._held is not None:
            (self._folder() / hashlib.sha256(key.encode()).hexdigest()[:32]).unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the folder; the last process that does so removes it. What is mapped stays."""
        if self._held is not None:
            self._finalizer()

    def _folder(self) -> Path:
        if self._held is None:
            remove_left(self._path.parent)
            self._held = _hold(self._path)
            self._finalizer = weakref.finalize(self, _release, self._path, self._held)
        return self._path


def temporary_folder() -> Path:
    """The folder of shared tensors where nothing else was said."""
    return Path(tempfile.gettempdir())


def remove_left(parent: Path | None = None) -> None:
    """Remove the folders of this user that no process uses any more."""
    for path in (parent or temporary_folder()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or removed by another process
            _remove_unused(path)


def _hold(path: Path) -> int:
    """Make the folder where there is none, and take a shared lock on it.

    Raises:
        OSError: there can be none.
    """
    while True:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = _open(path)
        except FileNotFoundError:  # removed by who has just given it up
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:  # nobody has removed it between these two steps
            return descriptor
        os.close(descriptor)


def _open(path: Path) -> int:
    """The folder itself.

    Raises:
        OSError: it is a link, or another user's, who could read or exchange what is in it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(f"{path} belongs to another user")
    return descriptor


def _release(path: Path, descriptor: int) -> None:
    os.close(descriptor)
    with suppress(OSError):
        _remove_unused(path)


def _remove_unused(path: Path) -> None:
    """Remove a folder that no process holds.

    Raises:
        OSError: it is held, another user's, or gone.
    """
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, tensors: Named) -> None:
    """Tensors one after another, their directory, and its length. The file is there whole or not at all."""
    aside = path.with_suffix(f".{secrets.token_hex(4)}")
    directory, at = {}, 0
    try:
        with aside.open("wb") as file:
            for name, tensor in tensors:
                plain = tensor.detach().to("cpu").contiguous()
                directory[name] = (at, list(plain.shape), str(plain.dtype).removeprefix("torch."))
                file.write(memoryview(plain.reshape(-1).view(torch.uint8).numpy().data))
                file.write(bytes(-plain.nbytes % ALIGNMENT))
                at += plain.nbytes + -plain.nbytes % ALIGNMENT
            text = json.dumps(directory).encode()
            file.write(text)
            file.write(len(text).to_bytes(_LENGTH, "little"))
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, torch.Tensor]:
    size = path.stat().st_size
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    end = size - _LENGTH
    length = int.from_bytes(bytes(content[end:].tolist()), "little")
    directory = json.loads(bytes(content[end - length : end].tolist()))
    return {name: _tensor(content, *entry) for name, entry in directory.items()}


def _tensor(content: torch.Tensor, at: int, shape: list[int], dtype: str) -> torch.Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    stop = at + kind.itemsize * torch.Size(shape).numel()
    return content[at:stop].view(kind).view(shape)

"""Loops in C++ that torch and numpy have no operation for, as functions of Python, and the threads that share them."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Contraction would round otherwise than numpy does.
_LIBRARY_FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared")

WIDE = {torch.float32: 1, torch.bfloat16: 0}
"""Types of the tensors that loops over models take."""

Signatures = Mapping[str, tuple[Any, Sequence[Any]]]
"""Name of a function -> the ctypes of its result and of its arguments."""


class LoopTensor(ctypes.Structure):
    """A model's tensor, contiguous and on the CPU, as `Model` of models_in_memory.hpp."""

    _fields_ = [("data", ctypes.c_void_p), ("is_wide", ctypes.c_int64)]


def loop_tensor(tensor: Tensor | None) -> LoopTensor:
    """A tensor of a type in `WIDE`, or none, for a loop. The caller keeps the tensor."""
    return LoopTensor(None, 0) if tensor is None else LoopTensor(tensor.data_ptr(), WIDE[tensor.dtype])


def is_covered(*tensors: Tensor) -> bool:
    """Whether loops over models take these tensors."""
    return all(each.device.type == "cpu" and each.dtype in WIDE and each.is_contiguous() for each in tensors)


def load_loops(path: Path, signatures: Signatures) -> ctypes.CDLL:
    """The functions of a compiled library.

    Raises:
        OSError, AttributeError: it is no library, or another one.
    """
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def loops_of_this_machine(source: Path, signatures: Signatures, without: str) -> ctypes.CDLL | None:
    """The functions of a C++ file, compiled unless they are in the cache folder.

    Args:
        without: the consequence where there is no compiler, for a warning.

    Returns:
        None where there is none.
    """
    try:
        return load_loops(compiled_library(source), signatures)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        logger.warning("%s: their loops cannot be compiled here (%s)", without, error)
        return None


def default_folder() -> Path:
    """The user's cache folder for kernels, by the XDG rule."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge" / "kernels"


def library_path(source: Path, folder: Path | None = None) -> Path:
    """Path of the shared library of a C++ file; it need not exist.

    Args:
        folder: by default `default_folder()`.
    """
    return (folder or default_folder()) / _library_name(source)


@cache  # asked for by every rule of every candidate as long as there is none
def _library_name(source: Path) -> str:
    """The name depends on the file, the headers beside it and the processor."""
    content = b"".join(file.read_bytes() for file in (source, *sorted(source.parent.glob("*.hpp"))))
    content += repr((_LIBRARY_FLAGS, target_machine())).encode()
    return f"{source.stem}-{hashlib.sha256(content).hexdigest()[:24]}.so"


def loop_source(name: str) -> Path:
    """The C++ file of that name in this folder."""
    return Path(__file__).with_name(name)


def compiled_library(source: Path, folder: Path | None = None) -> Path:
    """Path of the shared library of a C++ file, compiled here, in a second or two, unless the folder has it already.

    Args:
        folder: by default `default_folder()`; it need not exist.

    Raises:
        OSError: there is no compiler, or the folder cannot be written to.
        subprocess.SubprocessError: the compiler refuses.
    """
    path = library_path(source, folder)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.writing-{secrets.token_hex(4)}")  # another process may compile it as well
        try:
            command = [*_compiler(), *_LIBRARY_FLAGS, "-o", str(aside), str(source)]
            subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=300)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return path


def share(work: Callable[[int, int], Result], count: int, *, worthwhile: int) -> list[Result]:
    """Have `work(start, stop)` done for all of `range(count)`, by as many threads as torch has.

    Args:
        worthwhile: number that is worth a thread.

    Returns:
        The result of each part.
    """
    threads = min(torch.get_num_threads(), max(1, count // max(1, worthwhile)))
    if threads == 1:
        return [work(0, count)]
    ends = [count * part // threads for part in range(threads + 1)]
    return list(_pool(threads).map(work, ends[:-1], ends[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="compiled-loops")


def _compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if found is None:
        raise FileNotFoundError("there is no C++ compiler")
    return [found]


@cache
def target_machine() -> str:
    """The target of machine code: compilers are told to compile for the processor that they run on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{torch.__version__} {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags}"

"""Linear algebra whose bits do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs its body on one thread of the CPU.

    Products and decompositions of matrices divide their sums among the threads, so that a candidate that is scored with
    one thread would differ from the same candidate exported with eight.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

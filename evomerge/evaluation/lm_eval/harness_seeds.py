"""The seeds of lm-eval for the code of its tasks, which may draw random numbers from the global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def harness_seeds() -> Iterator[None]:
    """The global generators as lm-eval seeds them before it loads tasks; put back afterwards.

    Those of a GPU are left alone: documents and metrics are computed on the CPU.
    """
    own, of_numpy, of_torch = random.getstate(), numpy.random.get_state(), torch.default_generator.get_state()
    random.seed(0)
    numpy.random.seed(1234)
    torch.default_generator.manual_seed(1234)
    try:
        yield
    finally:
        random.setstate(own)
        numpy.random.set_state(of_numpy)
        torch.default_generator.set_state(of_torch)

"""Kernels of a device, where each is compiled in this process before its first use."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from evomerge.passes.kernels import DTYPES, KernelKind, Kernels
from evomerge.tensors.plans import Formula


def test_as_many_kinds_are_compiled_as_a_search_has(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile

    def traced(run: Callable[..., Any], *, options: Any, **given: Any) -> Any:
        return compiled(run, backend="eager", **given)

    monkeypatch.setattr(torch, "compile", traced)  # all of it but the machine code
    kernels = Kernels(torch.device("meta"))
    kinds = [
        KernelKind(formula=Formula(kind="average"), base=None, sources=("float32",) * sources, out=out)
        for sources, out in product((1, 2, 3), DTYPES)
    ]
    assert len(kinds) > torch._dynamo.config.recompile_limit
    assert all(kernels.find(kind, compile_missing=True) is not None for kind in kinds)

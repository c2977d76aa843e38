"""The table of merge methods, written out by hand."""

from __future__ import annotations

from evomerge.errors import unknown_name
from evomerge.methods.column_linear import COLUMN_LINEAR
from evomerge.methods.dare import DARE_LINEAR, DARE_TIES
from evomerge.methods.info import MethodInfo, OptionValue
from evomerge.methods.linear import LINEAR
from evomerge.methods.slerp import SLERP
from evomerge.methods.task_arithmetic import TASK_ARITHMETIC
from evomerge.methods.ties import TIES

METHODS: dict[str, MethodInfo] = {
    info.name: info for info in (LINEAR, COLUMN_LINEAR, SLERP, TASK_ARITHMETIC, TIES, DARE_LINEAR, DARE_TIES)
}

MERGEKIT_SEMANTICS: dict[str, dict[str, OptionValue]] = {
    name: dict(info.mergekit.semantics) if info.mergekit else {} for name, info in METHODS.items()
}


def method_info(name: str) -> MethodInfo:
    """The description of a method.

    Raises:
        InvalidInput: there is no such method; the message offers the nearest names.
    """
    if name not in METHODS:
        raise unknown_name("merge method", str(name), METHODS)
    return METHODS[name]

"""Merge methods as data: parameters, options, needs, traits and papers. Their arithmetic is in `evomerge.merging`.

- Holds: one file per family with a `MethodInfo` per method, and the checks of what is given against them.
- Does not hold: arithmetic. Nothing here imports torch; a `MethodInfo` names its functions as text.
- Start reading at: `info.py`, then `linear.py` as an example and `table.py`.

The names and values of options are those that recipes, search spaces and `evomerge methods` use. The first choice of an
option is the default: the definition of the method's own authors. `MERGEKIT_SEMANTICS` holds mergekit's choices, which
differ from the authors' in almost every option and change the result without any error message.
"""

from evomerge.methods.info import (
    MergekitMethod,
    MethodInfo,
    MissingParameter,
    Option,
    OptionValue,
    Parameter,
    SourceOption,
    Statistics,
    TensorParameter,
)
from evomerge.methods.resolve import resolve_options, resolve_parameters, resolve_statistics, validate
from evomerge.methods.table import MERGEKIT_SEMANTICS, METHODS, method_info

__all__ = [
    "MERGEKIT_SEMANTICS",
    "METHODS",
    "MergekitMethod",
    "MethodInfo",
    "MissingParameter",
    "Option",
    "OptionValue",
    "Parameter",
    "SourceOption",
    "Statistics",
    "TensorParameter",
    "method_info",
    "resolve_options",
    "resolve_parameters",
    "resolve_statistics",
    "validate",
]

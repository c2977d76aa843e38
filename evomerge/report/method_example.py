"""An example of a merge method, generated from its description: a search space, or a call of the library."""

from __future__ import annotations

from typing import Any

import yaml

from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.methods import MethodInfo, Parameter
from evomerge.spaces.space import SearchSpace
from evomerge.spaces.space_checks import check_space, weights_are_ratios

__all__ = ["example_of"]


def example_of(info: MethodInfo) -> dict[str, str]:
    """The example as text under "text", and its kind under "kind".

    A "space" is a file that `space:` of a search.yaml may name. A "call" is Python, for what a search cannot choose: it
    takes `sources` and `base` as `{tensor name: tensor}`, and `statistics` and tensors that are parameters as lists of
    such dictionaries.
    """
    content = _space(info)
    try:
        if all(parameter.fixed for parameter in info.parameters):
            raise InvalidInput("a method without numbers to choose leaves nothing to search")
        check_space(validate(SearchSpace, content, "example"))
    except InvalidInput:
        return {"kind": "call", "text": _call(info)}
    return {"kind": "space", "text": yaml.safe_dump(content, sort_keys=False, default_flow_style=None)}


def _space(info: MethodInfo) -> dict[str, Any]:
    parameters = {
        parameter.name: parameter.default if parameter.fixed else _range(info, parameter)
        for parameter in info.parameters
    }
    depth = {"blocks": 2} if info.plan is not None else "global"  # those with a formula take any group of tensors
    return {
        "name": f"my-{info.name.replace('_', '-')}",
        "groups": {"depth": depth},
        "methods": {info.name: {"parameters": parameters}},
    }


def _range(info: MethodInfo, parameter: Parameter) -> dict[str, float]:
    defaults = {option.name: option.default for option in info.options}
    if parameter.name == "weight" and weights_are_ratios(info.name, defaults):
        return {"log_ratio": 3.0}
    return {"low": parameter.low, "high": parameter.high}


def _call(info: MethodInfo) -> str:
    arguments = [f'"{info.name}"', "sources"]
    if "base" in info.needs:
        arguments.append("base")
    if info.tensors:
        arguments.append(f"parameters={{{', '.join(f'{each.name!r}: {each.name}' for each in info.tensors)}}}")
    if info.source_options:
        arguments.append(f"options={{{', '.join(f'{each.name!r}: 0' for each in info.source_options)}}}")
    if info.statistics is not None:
        arguments.append("statistics=statistics")
    call = f"merged = merge_state_dicts({', '.join(arguments)})".replace("'", '"')
    return f"from evomerge.merging import merge_state_dicts\n\n{call}\n"

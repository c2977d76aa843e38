"""The reference table of merge methods as Markdown, generated from their descriptions."""

from __future__ import annotations

import re

from evomerge.methods import METHODS, MethodInfo, Parameter

__all__ = ["method_table"]

_HEAD = """\
# Merge methods

Written by `evomerge methods --markdown`; `evomerge methods NAME` has options, ranges and an example of each method.

**Begin with task arithmetic.** On real language models it is what gains most reliably; methods that trim, elect or
decompose win more often on vision models than there. Which coefficients a merge has, and how good its base is, matter
more than its method.

theta_0 is the base, theta_i source i of n, tau_i = theta_i - theta_0. *Parameters* are numbers, with default and range
of a search; those in italics have one for each source. *Evidence* is on language models, from abstracts and from the
examples of this repository; "-" where none was checked.

| method | formula | parameters | cost | evidence | not for |
|---|---|---|---|---|---|
"""


def method_table() -> str:
    """The page: a row for each method of the table, in alphabetical order."""
    return _HEAD + "".join(_row(METHODS[name]) for name in sorted(METHODS))


def _row(info: MethodInfo) -> str:
    cells = (
        f"**{info.name}**<br>{_text(info.title)}<br>{_paper(info.paper)}",
        "<br>".join(f"`{_cell(line)}`" for line in info.formula.splitlines()),
        "<br>".join(map(_parameter, info.parameters)) or "-",
        _text(info.cost),
        _text(info.evidence) or "-",
        _text(info.unsuited) or "-",
    )
    return f"| {' | '.join(cells)} |\n"


def _parameter(parameter: Parameter) -> str:
    name = f"*{_text(parameter.name)}*" if parameter.per_source else _text(parameter.name)
    return f"{name}: {parameter.default:g}, {parameter.low:g} to {parameter.high:g}"


def _paper(paper: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", _text(paper))


def _text(words: str) -> str:
    """Words with what Markdown would read as emphasis."""
    return re.sub(r"([*_<])", r"\\\1", _cell(words))


def _cell(words: str) -> str:
    return words.replace("|", "\\|")

"""Every sampler proposes what it proposed when the file was written, so that studies of earlier versions go on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pinned_proposals import CASES, COUNT, FILE, propose, rows

from evomerge.samplers import SAMPLERS

PINNED: dict[str, list[list[Any]]] = json.loads(FILE.read_text(encoding="utf-8"))


def same(one: Any, other: Any, rounding: float) -> bool:
    """Floats but for rounding; choices, integers and absent parameters exactly."""
    if type(one) is float and type(other) is float:
        return one == pytest.approx(other, rel=rounding, abs=rounding)
    return type(one) is type(other) and one == other


def differing(name: str, pinned: list[list[Any]], now: list[list[Any]], rounding: float = 1e-9) -> str:
    """What to do about the rows that are not as they were, "" where all are."""
    numbers = [
        number
        for number, (old, new) in enumerate(zip(pinned, now, strict=True))
        if len(old) != len(new) or not all(same(one, other, rounding) for one, other in zip(old, new, strict=True))
    ]
    if not numbers:
        return ""
    lines = [
        f"{name}: proposals {numbers} are not what is pinned in {FILE.name}; studies that were begun before would "
        "go on as other searches. If that is meant, say so in the CHANGELOG and replace"
    ]
    for number in numbers:
        lines += [f"row {number}: {json.dumps(pinned[number])}", f"     by: {json.dumps(now[number])}"]
    return "\n".join(lines)


@pytest.mark.parametrize("name", CASES)
def test_the_first_proposals_are_the_pinned_ones(name: str) -> None:
    case = CASES[name]
    message = differing(name, PINNED[name], rows(case, propose(case)), case.rounding)
    assert not message, message


def test_every_sampler_has_pinned_proposals_and_every_case_all_of_its_rows() -> None:
    assert {case.sampler for case in CASES.values()} == set(SAMPLERS)
    assert {name: len(pinned) for name, pinned in PINNED.items()} == dict.fromkeys(CASES, COUNT)


def test_a_difference_prints_the_row_to_update() -> None:
    pinned = [[0.25, "a", None], [0.5, "b", 3]]
    assert differing("x", pinned, [[0.25 + 1e-12, "a", None], [0.5, "b", 3]]) == ""
    message = differing("x", pinned, [[0.25, "a", None], [0.5, "b", 4]])
    assert 'row 1: [0.5, "b", 3]\n     by: [0.5, "b", 4]' in message
    assert "row 0" not in message
    assert differing("x", [[3]], [[3.0]])

"""Names of experts inside one checkpoint: patterns tell which tensors are copies of one shared tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from evomerge.errors import InvalidInput, unknown_name

PLACEHOLDER = "{expert}"


def find_experts(names: Iterable[str], patterns: Sequence[str], experts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Shared name -> the full names of its copies, in the order of the experts. As `find_copies`."""
    return {key: tuple(copies.values()) for key, copies in find_copies(names, patterns, experts).items()}


def find_copies(names: Iterable[str], patterns: Sequence[str], experts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Shared name -> expert -> the full name of its copy, in the order of the experts.

    Args:
        names: all tensors of the checkpoint.
        patterns: globs with one `{expert}` each, such as "blocks.*.attn.{expert}.*". `*` matches any characters, dots
            included; `{expert}` is a whole segment between dots. The shared name is the name without that segment and
            one dot.
        experts: the names of the experts, in order.

    Raises:
        InvalidInput: a pattern or an expert's name is none; a pattern matches nothing; a tensor matches in two ways;
            or a shared name would be that of another tensor.
    """
    names = list(names)
    pieces = [_split(pattern) for pattern in _listed("patterns", patterns)]
    order = _order(experts)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        matches = {}
        for expert, before, after in _placements(name, order):
            for head, tail in pieces:
                if fnmatchcase(before, head) and fnmatchcase(after, tail):
                    matches[_without_segment(before, after)] = expert
        if len(matches) > 1:
            raise InvalidInput(
                f"tensor {name!r} matches in more than one way: its shared name could be "
                f"{' or '.join(map(repr, sorted(matches)))}; make the patterns narrower"
            )
        for key, expert in matches.items():
            if other := found[key].get(expert):
                raise InvalidInput(f"{other!r} and {name!r} would both be {expert!r} of {key!r}; change the patterns")
            found[key][expert] = name
    if not found:
        raise InvalidInput(
            f"no tensor of the experts {', '.join(order)} matches {' or '.join(map(repr, patterns))}; "
            f"{PLACEHOLDER} is a whole segment between dots, and the tensors are named like "
            f"{', '.join(map(repr, names[:3])) or 'nothing'}"
        )
    shared = {key: {each: copies[each] for each in order if each in copies} for key, copies in found.items()}
    _refuse_collisions(names, shared)
    return shared


def refuse_idle(names: Iterable[str], patterns: Sequence[str], experts: Sequence[str]) -> None:
    """Refuse a pattern or an expert that matches no tensor, of which `find_experts` has only to know others.

    Raises:
        InvalidInput: one of them; names the experts that there are.
    """
    names = list(names)
    present = {pattern: _segments(names, pattern) for pattern in _listed("patterns", patterns)}
    for pattern, found in present.items():
        if not found:
            raise InvalidInput(
                f"pattern {pattern!r} matches no tensor; {PLACEHOLDER} is a whole segment between dots, and "
                f"the tensors are named like {', '.join(map(repr, names[:3])) or 'nothing'}"
            )
    known = sorted(set().union(*present.values()))
    for expert in _order(experts):
        if expert not in known:
            raise unknown_name(f"expert of {' or '.join(map(repr, patterns))}:", expert, known)


def _segments(names: Sequence[str], pattern: str) -> set[str]:
    """The segments of names that are in the place of the expert in a pattern."""
    head, tail = _split(pattern)
    return {
        segment
        for name in names
        for segment, before, after in _placements(name, name.split("."))
        if fnmatchcase(before, head) and fnmatchcase(after, tail)
    }


def _placements(name: str, experts: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(expert, what is before it, what is after it) for each segment of a tensor's name that names an expert."""
    segments = name.split(".")
    for index, segment in enumerate(segments):
        if segment in experts:
            before, after = ".".join(segments[:index]), ".".join(segments[index + 1 :])
            yield segment, before + "." * bool(index), "." * (index + 1 < len(segments)) + after


def _without_segment(before: str, after: str) -> str:
    return before + after[1:] if after else before[:-1]


def _refuse_collisions(names: Sequence[str], shared: Mapping[str, Mapping[str, str]]) -> None:
    others = set(names).difference(*(copies.values() for copies in shared.values()))
    for key, copies in shared.items():
        if not key or key in others:
            raise InvalidInput(
                f"{', '.join(map(repr, copies.values()))} would become {key!r}, "
                f"{'a tensor that is there already' if key else 'which is no name'}; change the patterns"
            )


def _split(pattern: str) -> tuple[str, str]:
    head, *tail = pattern.split(PLACEHOLDER) if isinstance(pattern, str) else (pattern,)
    if len(tail) != 1:
        raise InvalidInput(
            f"a pattern names the expert once, as in 'blocks.*.attn.{PLACEHOLDER}.*', but got {pattern!r}"
        )
    return head, tail[0]


def _order(experts: Sequence[str]) -> list[str]:
    order = _listed("experts", experts)
    if any(not isinstance(each, str) or not each or "." in each for each in order) or len(set(order)) < len(order):
        raise InvalidInput(f"experts are different names without dots, but got {order!r}")
    return order


def _listed(what: str, given: Sequence[str]) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise InvalidInput(f"{what} is a list with at least one name, but got {given!r}")
    return list(given)

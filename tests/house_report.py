"""The shape of the code in numbers: `python tests/house_report.py`.

- calls that go back up: a small search is followed from `run_search` to the verdict; counted is every place where the
  spec, or a value that carries it, is passed to a file that imports the caller's, be it by way of others,
- imports that run upward,
- the largest room in lines,
- names of types and of files that stand for two things,
- docstrings that begin with a question word, and calls with five or more positional arguments.
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from test_floors import FILES, PACKAGE, imports_of, unit_of, upward

from evomerge.search.run import run_search
from evomerge.spec import SearchSpec, load_spec

TOY = PACKAGE.parent / "examples" / "toy"
QUESTION = re.compile(r"(What|Which|Where|Who|Whose|Whom|How)\b")
TWINS = ("methods", "statistics")  # a merge method has its data, arithmetic and statistics under one name


def climbs() -> list[str]:
    """The places of a search at which the spec is passed upward, from the trace of a real one."""
    found: set[str] = set()
    needs = imported_files()

    def follow(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not _is_ours(frame):
            return
        caller = frame.f_back
        while caller is not None and not _is_ours(caller):
            caller = caller.f_back
        if caller is None:
            return
        above, below = _file(frame), _file(caller)
        if below in needs[above] and any(map(_carries_spec, _arguments(frame))):
            found.add(f"{_name(caller)} -> {_name(frame)}")

    _small_search(lambda spec: _traced(follow, spec))
    return sorted(found)


def _traced(follow: Callable[[FrameType, str, object], None], spec: SearchSpec) -> None:
    sys.setprofile(follow)
    try:
        run_search(spec, ray="none")
    finally:
        sys.setprofile(None)


def _small_search(run: Callable[[SearchSpec], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "name": "walk",
            "sources": [{"name": name, "location": str(TOY / "models" / name)} for name in ("base", "reverse", "sort")],
            "space": "task-arithmetic-per-block",
            "evaluator": {"name": "synthetic", "items": 40},
            "budget": {"trials": 4},
            "baselines": ["uniform-soup", "greedy-soup", "ties"],
            "storage": f"sqlite:///{folder}/study.db",
        }
        path = Path(folder) / "search.yaml"
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")
        run(load_spec(path))


def _is_ours(frame: FrameType) -> bool:
    return _file(frame).is_relative_to(PACKAGE)


def _file(frame: FrameType) -> Path:
    return Path(frame.f_code.co_filename)


def _name(frame: FrameType) -> str:
    return f"{_file(frame).relative_to(PACKAGE)}:{frame.f_code.co_qualname}"


def _arguments(frame: FrameType) -> Iterator[Any]:
    code = frame.f_code
    for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        yield frame.f_locals.get(name)


def _carries_spec(value: object) -> bool:
    """Whether a value is the spec, or a plain value that has it as a field."""
    if isinstance(value, SearchSpec):
        return True
    try:
        fields = vars(value)
    except TypeError:
        return False
    return isinstance(fields.get("spec"), SearchSpec) or any(
        isinstance(getattr(inner, "spec", None), SearchSpec) for inner in fields.values()
    )


def imported_files() -> dict[Path, set[Path]]:
    """File -> the files of the package that it imports, directly or by way of others, itself not included."""
    modules = {".".join(("evomerge", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    direct = {
        path: {modules[name] for name in imports_of(path) if name in modules and modules[name] != path}
        for path in FILES
    }
    needs = {}
    for path in FILES:
        found: set[Path] = set()
        waiting = set(direct[path])
        while waiting:
            found.add(file := waiting.pop())
            waiting |= direct[file] - found
        needs[path] = found - {path}
    return needs


def imports_upward() -> list[str]:
    return [f"{path.relative_to(PACKAGE)} imports {module}" for path in FILES for module in upward(path)]


def rooms() -> Counter[str]:
    """Room -> its lines."""
    lines: Counter[str] = Counter()
    for path in FILES:
        lines[unit_of(path)] += len(path.read_text(encoding="utf-8").splitlines())
    return lines


def types_with_two_meanings() -> dict[str, list[str]]:
    """Name of a type, private ones included -> the files that define it, where there are several."""
    places = defaultdict(list)
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(str(path.relative_to(PACKAGE)))
    return {name: files for name, files in sorted(places.items()) if len(files) > 1}


def files_with_two_meanings() -> dict[str, list[str]]:
    """Name of a file -> its places, where there are several."""
    places = defaultdict(list)
    for path in FILES:
        if path.stem != "__init__":
            places[path.stem].append(path.relative_to(PACKAGE))
    twins = {name: [each for each in each_place if each.parts[0] not in TWINS] for name, each_place in places.items()}
    return {name: list(map(str, places[name])) for name, rest in sorted(twins.items()) if len(rest) > 1}


def docstrings() -> tuple[list[str], int]:
    """Those that begin with a question word, and the number of all."""
    asking, count = [], 0
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                count += text is not None
                if text and QUESTION.match(text):
                    asking.append(f"{path.relative_to(PACKAGE)}: {text.splitlines()[0]}")
    return asking, count


def long_calls() -> tuple[list[str], int]:
    """Calls with five or more positional arguments, and the number of all."""
    found, count = [], 0
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                count += 1
                if sum(not isinstance(argument, ast.Starred) for argument in node.args) >= 5:
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)[:90]}")
    return found, count


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    return ((path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES)


def main() -> None:
    up = climbs()
    print(f"calls that go back up: {len(up)}", *up, sep="\n  ")
    upwards = imports_upward()
    print(f"imports that run upward: {len(upwards)}", *upwards, sep="\n  ")
    room, lines = rooms().most_common(1)[0]
    print(f"largest room: {room}, {lines} lines")
    for kind, names in (("types", types_with_two_meanings()), ("files", files_with_two_meanings())):
        print(
            f"{kind} with two meanings: {len(names)}",
            *(f"{name}: {places}" for name, places in names.items()),
            sep="\n  ",
        )
    asking, texts = docstrings()
    print(f"docstrings that begin with a question word: {len(asking)} of {texts}, {100 * len(asking) / texts:.1f} %")
    calls, count = long_calls()
    print(f"calls with five or more positional arguments: {len(calls)}, {1000 * len(calls) / count:.1f} per 1,000")


if __name__ == "__main__":
    main()

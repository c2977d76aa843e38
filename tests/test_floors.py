"""The floors of the architecture: imports go down, heavy things stay at the edges."""

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "evomerge"

# On one floor a name may import what stands to its left. A file that is read on a lower floor than its room is named
# with the room.
FLOORS = (
    (
        "errors",
        "clock",
        "seeding",
        "messages",
        "plain_table",
        "forms",
        "documents",
        "shipped",
        "whole_files",
        "code_digest",
        "interjection",
        "logs",
    ),
    ("storage.optuna_internals", "trial_store", "storage", "object_store", "leases", "evolution", "samplers"),
    (
        "methods",
        "recipe",
        "catalogue",
        "genomes",
        "spaces",
        "recipe_spaces",
        "packs",
        "baselines.info",
        "observers",
        "spec",
    ),
    ("prefix_tree", "engine"),
    (
        "native",
        "tensors",
        "alignment",
        "elementwise",
        "merging",
        "elementwise_method",
        "spectral",
        "conversion",
        "licenses",
        "checkpoints",
        "fitting",
        "adapters",
        "artefacts",
        "mergekit",
        "mergekit_evolve",
    ),
    (
        "passes",
        "bank",
        "vllm_engine",
        "evaluation",
        "document_evaluator",
        "sanity",
        "static_merges.given_merge",
    ),
    ("statistics", "optimisation", "training", "learned", "trainers"),
    (
        "objective",
        "evaluation_checkpoints",
        "jobs",
        "job_faults",
        "job_meter",
        "worker",
        "cluster",
        "requests",
        "trial_note",
        "study",
        "opening",
        "telemetry",
    ),
    ("racing", "loop", "baselines", "verdict", "charts", "search"),
    (
        "importance",
        "leaderboard",
        "new_spec",
        "source_licenses",
        "source_figures",
        "source_divergence",
        "preflight",
        "doctor",
        "search_card",
        "export_probe",
        "export",
        "hub",
        "static_merges",
        "orphans",
        "weight_distances",
        "shared_tower",
        "extended_vocabulary",
        "remote_control",
        "study_list",
        "study_copy",
        "asked_trial",
        "report",
        "page",
    ),
    ("commands", "cli", "__main__"),
    ("testing",),
)
PLACES = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names)}

FILES = sorted(PACKAGE.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The file or folder of the architecture that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module)
    return found


def place_of(module: str) -> tuple[int, int]:
    """Floor and place of a file or module, given as "room" or "room.file"; a file without a place has its room's."""
    return PLACES.get(".".join(module.split(".")[:2]), PLACES[module.partition(".")[0]])


def upward(path: Path) -> list[str]:
    """What a file imports of evomerge that does not stand below it.

    The package itself is above everything but the command line: its names reach into every floor, so that a file that
    imports it depends on all of them.
    """
    unit = unit_of(path)
    own = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    if unit == "__init__":
        return []  # the library contract: it may reach everywhere, and loads nothing until it is used
    found = []
    for module in sorted(imports_of(path)):
        package, _, rest = module.partition(".")
        if package != "evomerge" or (not rest and unit == "cli"):
            continue
        is_own_room = rest.partition(".")[0] == unit and own not in PLACES
        if not rest or (not is_own_room and place_of(rest) >= place_of(own)):
            found.append(module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_stands_below_it(path):
    assert upward(path) == []


def test_no_import_of_the_package_runs_upward():
    climbs = [f"{path.relative_to(PACKAGE)} imports {module}" for path in FILES for module in upward(path)]
    assert len(climbs) == 0, "; ".join(climbs)


@pytest.mark.parametrize(
    ("file", "text", "climbs"),
    [
        ("shipped.py", "import evomerge", ["evomerge"]),
        ("shipped.py", "from evomerge import load_spec", ["evomerge"]),
        ("search/run.py", "def late():\n    import evomerge as house", ["evomerge"]),
        ("shipped.py", "import evomerge.search.run", ["evomerge.search.run"]),
        ("storage/opening.py", "from evomerge.study.trials import best_trials", ["evomerge.study.trials"]),
        (
            "bank/weight_bank.py",
            "from evomerge.errors import InvalidInput\nfrom evomerge.passes.fused_rule import FusedRule",
            [],
        ),
        ("spec.py", "from evomerge.baselines.info import BASELINES", []),
        ("spec.py", "from evomerge.baselines.runner import POINTS", ["evomerge.baselines.runner"]),
        ("baselines/info.py", "from evomerge.baselines.runner import POINTS", ["evomerge.baselines.runner"]),
        ("baselines/runner.py", "from evomerge.baselines.info import BASELINES", []),
        ("cli.py", "from evomerge import __version__", []),
        ("__init__.py", "from evomerge.search.run import run_search", []),
    ],
)
def test_imports_that_run_upward_are_found(monkeypatch, tmp_path, file, text, climbs):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert upward(path) == climbs


def test_every_file_has_a_floor():
    assert {unit_of(path) for path in FILES} - {"__init__"} <= set(PLACES)


@pytest.mark.parametrize(
    ("library", "place"),
    [
        ("ray", "cluster/ray_executor"),
        ("lm_eval", "evaluation/lm_eval"),
        ("cma", "evolution/cma_strategy.py"),
        ("sklearn", "samplers/forest.py"),
        ("optuna_dashboard", "study/dashboard.py"),
        ("matplotlib", "page"),
        ("vllm", "vllm_engine"),
        ("mlflow", "telemetry/mlflow_tracker.py"),
        ("wandb", "telemetry/wandb_tracker.py"),
    ],
)
def test_n36_a_library_with_private_handles_is_imported_in_one_file_or_folder(library, place):
    users = [
        path.relative_to(PACKAGE)
        for path in FILES
        if any(module.split(".")[0] == library for module in imports_of(path))
    ]
    assert users
    assert all(Path(place) in (user, *user.parents) for user in users)


def private_names_of_optuna(path: Path) -> list[str]:
    """Names with an underscore that a file takes from Optuna or from objects that are not its own.

    Attributes of `self` and `super()` are the class's own, and those of its base class.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "optuna":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [name for name in names if name.startswith("_")]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own = ("self", "cls", "super()")
            found += [node.attr] if ast.unparse(node.value) not in own else []
    return found


def test_n36_private_names_of_optuna_are_used_in_one_file():
    rooms = ("storage", "samplers", "study", "opening", "verdict", "search", "loop", "racing", "baselines")
    users = {
        str(path.relative_to(PACKAGE)): names
        for path in FILES
        if unit_of(path) in rooms and (names := private_names_of_optuna(path))
    }
    assert set(users) == {"storage/optuna_internals.py"}, users


def test_optuna_stays_with_spaces_and_study_and_what_reads_them():
    users = {unit_of(path) for path in FILES if any(module.split(".")[0] == "optuna" for module in imports_of(path))}
    assert users <= {
        "genomes",
        "spaces",
        "recipe_spaces",
        "trial_store",
        "storage",
        "object_store",
        "leases",
        "evolution",
        "samplers",
        "requests",
        "study",
        "opening",
        "telemetry",
        "verdict",
        "charts",
        "search",
        "importance",
        "leaderboard",
        "export",
        "orphans",
        "remote_control",
        "study_copy",
        "study_list",
        "asked_trial",
        "report",
        "testing",
    }


def test_only_the_contract_tests_import_pytest_and_nothing_imports_them():
    users = {unit_of(path) for path in FILES if any(module.split(".")[0] == "pytest" for module in imports_of(path))}
    assert users == {"testing"}
    others = [path for path in FILES if unit_of(path) != "testing"]
    assert [path for path in others if any("evomerge.testing" in module for module in imports_of(path))] == []


@pytest.mark.parametrize("unit", ["recipe", "spec", "merging", "engine.transformers_engine", "bank", "worker"])
def test_arithmetic_and_workers_load_neither_optuna_nor_ray(unit):
    code = f"import sys, evomerge.{unit}; print(sorted({{'optuna', 'ray', 'lm_eval'}} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_n34_importing_the_package_changes_nothing_and_loads_nothing_heavy():
    code = (
        "import os, sys; before = dict(os.environ); import evomerge; "
        "assert dict(os.environ) == before; "
        "print(sorted({'torch', 'ray', 'optuna', 'transformers', 'lm_eval', 'numpy'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_help_page_takes_less_than_half_a_second_of_processor_time():
    command = [sys.executable, "-m", "evomerge.cli", "--help"]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append((after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime))
    assert "leaderboard" in done.stdout
    assert min(seconds) < 0.5  # a neighbour on the machine can slow one of them down


def test_a_function_on_tensors_is_defined_once():
    places: dict[str, list[str]] = {}
    for path in (PACKAGE / "tensors").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.name)
    assert len(places) > 20
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_helper_of_the_tests_has_the_name_of_another_or_of_a_folder():
    """The folders of helpers stand on one import path, where the first of two equal names hides the second."""
    tests = Path(__file__).parent
    folders = {path.parent for path in tests.rglob("*.py")} - {tests}
    helpers = [path for path in tests.rglob("*.py") if not path.stem.startswith(("test_", "conftest", "__init__"))]
    places: dict[str, list[str]] = {}
    for path in (*helpers, *folders):
        places.setdefault(path.stem, []).append(str(path.relative_to(tests)))
    assert len(helpers) > 20
    assert {name: found for name, found in places.items() if len(found) > 1} == {}

"""The pages for contributors name every benchmark with what runs it, and all that a change has to pass."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)\.py` \|.*\| (?:`make ([a-z-]+)`|by hand) \|$", re.MULTILINE)
OTHERS = {"architectures", "peer_mergekit", "peer_commands"}  # tables of what runs, as their page says, and their part


def run_by(target):
    """The benchmarks that a target of the Makefile runs."""
    recipe = MAKEFILE.partition(f"\n{target}:")[2].partition("\n\n")[0]
    looped = [name for names in re.findall(r"for name in ([a-z_ ]+);", recipe) for name in names.split()]
    return {*looped, *re.findall(r"benchmarks/(\w+)\.py", recipe)}


def listed(page):
    """Benchmark -> the target that the table of a page has for it, an empty text for those that are run by hand."""
    return dict(ROW.findall((ROOT / "benchmarks" / page).read_text(encoding="utf-8")))


def test_the_tables_of_benchmarks_say_which_target_runs_each():
    rows = [*listed("README.md").items(), *listed("search.md").items()]
    for target in ("bench", "bench-search"):
        assert {name for name, said in rows if said == target} == run_by(target)
    by_hand = {name for name, said in rows if not said}
    assert not by_hand & (run_by("bench") | run_by("bench-search"))


def test_every_benchmark_is_in_a_table():
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text("utf-8")}
    assert {*listed("README.md"), *listed("search.md")} == programs - OTHERS


def test_the_guide_names_all_that_a_change_has_to_pass():
    commands = re.findall(r"^make .*$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), flags=re.MULTILINE)
    (row,) = re.findall(r"^\| `\.ci/run` \|.*$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), flags=re.MULTILINE)
    assert re.findall(r"`(make [^`]*)`", row) == commands

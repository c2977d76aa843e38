"""`evomerge methods NAME`: everything about a method on one page, with an example that works."""

import re
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from evomerge.catalogue import build_catalogue
from evomerge.cli import run_command
from evomerge.methods import METHODS, method_info
from evomerge.recipe import ModelRef
from evomerge.report.inventory import describe_methods, inventory_text
from evomerge.report.method_table import method_table
from evomerge.spaces import load_space
from evomerge.spaces.bound import bind

OURS = [name for name in METHODS if not name.startswith("toy_")]  # other tests add methods of another package
EXPERTS = [ModelRef(name, "none") for name in ("red", "green", "blue")]
TENSORS = {
    f"model.layers.{layer}.{module}.weight": ((4, 4), "float32")
    for layer in range(2)
    for module in ("self_attn.q_proj", "mlp.up_proj")
}


def described(name):
    (entry,) = describe_methods(name)["methods"]
    return entry


def page(name, width):
    console = Console(width=width, record=True, file=StringIO())
    console.print(inventory_text(describe_methods(name)))
    return console.export_text()


@pytest.mark.parametrize("name", OURS)
def test_the_page_has_all_that_the_description_has(name):
    info, text = method_info(name), " ".join(page(name, 120).split())
    assert info.formula
    assert info.cost
    assert info.unsuited
    wanted = [info.title, info.paper, info.cost, info.evidence, info.unsuited, *info.formula.splitlines()]
    wanted += [parameter.description for parameter in info.parameters]
    wanted += [option.description for option in (*info.options, *info.source_options)]
    wanted += [f"search {each.low:g} to {each.high:g}" for each in info.parameters]
    wanted += [
        " | ".join(str(choice).lower() if isinstance(choice, bool) else choice for choice in option.choices)
        for option in info.options
    ]
    assert [each for each in wanted if " ".join(each.split()) not in text] == []


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", OURS)
def test_every_line_fits_and_names_are_whole(name, width):
    lines = page(name, width).splitlines()
    assert max(map(len, lines)) <= width
    info = method_info(name)
    starts = {line.split()[0] for line in lines if line.strip()}
    assert {*(each.name for each in info.parameters), *info.option_names, "formula", "cost", "paper"} <= starts


def plain(info):
    return info.formula + info.cost + info.evidence + info.unsuited


def test_formulas_are_plain_letters():
    assert [name for name in OURS if not plain(method_info(name)).isascii()] == []


@pytest.mark.parametrize("name", [name for name in OURS if described(name)["example"]["kind"] == "space"])
def test_the_example_is_a_space_that_can_be_searched(name, tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(described(name)["example"]["text"], encoding="utf-8")
    experts = EXPERTS[: method_info(name).sources or 3]
    space = bind(load_space(str(path)), build_catalogue(TENSORS), ModelRef("base", "none"), experts, dtype="x", seed=1)
    assert {rule.method for rule in space.decode(space.centre).rules} == {name}
    searched = {param.rsplit(".", 1)[-1] for param in space.distributions}
    names = {each.name for each in method_info(name).parameters if not each.fixed}
    assert searched in (names, names - {"weight"} | {"log_ratio"})


@pytest.mark.parametrize("name", [name for name in OURS if described(name)["example"]["kind"] == "call"])
def test_the_example_is_a_call_that_merges(name):
    generator = torch.Generator().manual_seed(1)

    def model():
        return {"fc.weight": torch.randn(3, 3, generator=generator)}

    count, ones = method_info(name).sources or 2, {"fc.weight": torch.ones(3, 3)}
    names = {"base": model(), "sources": [model() for _ in range(count)]}
    names |= {"coefficients": [ones] * count, "weights": [ones] * count}
    names["statistics"] = [{"fc.weight": torch.eye(3) + 0.5}] * count  # a Fisher, and a Gram that is not singular
    exec(described(name)["example"]["text"], names)
    assert names["merged"]["fc.weight"].shape == (3, 3)
    assert bool(names["merged"]["fc.weight"].isfinite().all())


def test_the_reference_table_in_the_documentation_is_that_of_the_methods(monkeypatch):
    monkeypatch.setattr("evomerge.report.method_table.METHODS", {name: METHODS[name] for name in OURS})
    written = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == method_table(), "run: evomerge methods --markdown > docs/methods.md"


def test_every_row_of_the_reference_table_has_its_cells_and_all_of_its_formula():
    rows = [line for line in method_table().splitlines() if line.startswith("| **")]
    assert len(rows) == len(METHODS)
    for row, name in zip(rows, sorted(METHODS), strict=True):
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 6
        assert cells[0].split("**")[1] == name
        for line in method_info(name).formula.splitlines():
            assert f"`{line}`" in cells[1].replace("\\|", "|")
        for parameter in method_info(name).parameters:
            assert f"{parameter.default:g}, {parameter.low:g} to {parameter.high:g}" in cells[2]


def test_the_reference_table_is_printed_and_takes_no_name(capsys):
    assert run_command(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out == method_table()
    assert run_command(["methods", "ties", "--markdown"]) == 2
    assert "table of all methods" in capsys.readouterr().err


def test_the_list_of_all_methods_is_still_a_table():
    console = Console(width=80, record=True, file=StringIO())
    console.print(inventory_text(describe_methods(None)))
    assert "Base plus a weighted sum of task vectors" in console.export_text()

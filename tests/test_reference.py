"""`evomerge reference`: every key of every file and every setting, with values, default, meaning and an example."""

import json
from pathlib import Path

import pytest
import yaml

from evomerge.baselines.info import BASELINES
from evomerge.baselines.training_settings import FILLED_IN, training_settings
from evomerge.cli import run_command
from evomerge.documents import validate
from evomerge.packs.pack import Pack
from evomerge.report import setting_sections
from evomerge.report.setting_page import describe_settings, setting_page
from evomerge.report.setting_sections import PARTS, find_section
from evomerge.samplers import SAMPLERS
from evomerge.samplers.settings import read
from evomerge.spaces.space import SearchSpace
from evomerge.spaces.space_checks import check_space
from evomerge.spec import BaselineSpec, SearchSpec
from evomerge.trainers import SETTINGS
from evomerge.vllm_engine.engine_settings import EngineSettings

OUR_SAMPLERS = {name: info for name, info in SAMPLERS.items() if info.build.__module__ == "evomerge.samplers"}
OUR_BASELINES = {name: info for name, info in BASELINES.items() if info.sampler or info.plan.startswith("evomerge.")}
MODELS = {
    *(SearchSpec, Pack, SearchSpace, EngineSettings, *SETTINGS.values()),
    *(info.settings for info in OUR_SAMPLERS.values()),
    *(info.settings for info in OUR_BASELINES.values()),
}
ROWS = [row for section in describe_settings(None)["sections"] for row in section["settings"]]
EXAMPLES = [section for sections in PARTS.values() for section in sections]


def properties(model):
    """(model, key, description) of each key in the JSON schema of a model, and in those of the models inside."""
    schema = model.model_json_schema()
    for each in (schema, *schema.get("$defs", {}).values()):
        for key, description in each.get("properties", {}).items():
            yield each["title"], key, description


@pytest.mark.parametrize("model", sorted(MODELS, key=lambda model: model.__name__), ids=lambda model: model.__name__)
def test_every_field_is_a_row_with_its_default(model):
    for title, key, description in properties(model):
        rows = [row for row in ROWS if row["key"].split(".")[-1] == key]
        if title.startswith(("Learned", "FineTune")) and key in FILLED_IN:
            expected = "from the search"
        elif "default" not in description:
            expected = "required"
        elif description["default"] is None:
            expected = ""
        elif "$ref" in description or (isinstance(description["default"], dict) and description["default"]):
            expected = "those of its keys"
        else:
            expected = description["default"]
        found = [yaml.safe_load(row["default"]) if row["default"] else "" for row in rows]
        assert expected in found, (title, key, found)


def test_every_row_has_values_and_a_meaning():
    assert [row["key"] for row in ROWS if not row["values"] or not row["meaning"]] == []
    assert len(ROWS) > 200


def test_the_page_in_the_documentation_is_that_of_the_settings(monkeypatch):
    monkeypatch.setattr(setting_sections, "SAMPLERS", OUR_SAMPLERS)
    monkeypatch.setattr(setting_sections, "BASELINES", OUR_BASELINES)
    written = (Path(__file__).parent.parent / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == setting_page(), "run: evomerge reference --markdown > docs/reference.md"


@pytest.mark.parametrize("section", EXAMPLES, ids=lambda section: section.name)
def test_the_example_of_a_section_has_settings_that_exist(section):
    content = yaml.safe_load(section.example)
    assert 2 <= len(section.example.splitlines()) <= 6
    if "groups" in content:
        check_space(validate(SearchSpace, content, section.name))
    if "sampler" in content:
        name = content["sampler"].pop("name")
        assert read(name, content["sampler"], SAMPLERS[name].settings).model_fields_set
    for entry in content.get("baselines", ()):
        baseline = BaselineSpec(**(entry if isinstance(entry, dict) else {"name": entry}))
        info = BASELINES[baseline.name]
        if info.trained:
            assert training_settings(baseline)
        elif info.method is None:
            assert validate(info.settings, baseline.settings, section.name) is not None


def test_values_are_words_with_their_bounds():
    values = {row.key: row.values for row in setting_sections.section_rows(find_section("fidelity"))}
    assert values["name"] == "`full`, `race`, `successive_halving` or `hyperband`"
    assert (values["block"], values["eta"]) == ("whole number, 1 or more", "whole number, 2 or more")
    assert values["alpha"] == "number, above 0, below 0.5"
    top = {row.key: row for row in setting_sections.section_rows(find_section("search.yaml"))}
    assert top["sampler"].values == "text or mapping"
    assert (top["sampler"].section, top["budget"].section) == ("sampler", "budget")


def test_all_sections_are_listed_with_what_they_describe(capsys):
    assert run_command(["reference"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {each.name} " in shown for sections in setting_sections.PARTS.values() for each in sections)
    assert "The limits of a search" in shown
    assert "evomerge reference SECTION" in shown


def test_a_section_is_shown_for_people_and_for_programs(capsys):
    assert run_command(["reference", "budget"]) == 0
    assert "items scored by trials" in " ".join(capsys.readouterr().out.split())
    assert run_command(["reference", "budget", "--json"]) == 0
    (section,) = json.loads(capsys.readouterr().out)["sections"]
    assert section["name"] == "budget"
    assert {"key", "values", "default", "meaning", "section"} == section["settings"][0].keys()


def test_an_unknown_section_is_answered_with_the_nearest(capsys):
    assert run_command(["reference", "budgets"]) == 2
    assert "did you mean 'budget'" in capsys.readouterr().err
    assert run_command(["reference", "budget", "--markdown"]) == 2
    assert "leave the section" in capsys.readouterr().err

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
SECTIONS = {model.__name__ for section in EXAMPLES for model in section.models}


def fields(schema, definitions, prefix=""):
    """(key, title of the model, description) of each field in a JSON schema, but of models that have a section."""
    for name, description in schema.get("properties", {}).items():
        key = prefix + name
        yield key, schema["title"], description
        for model, place in dict(references(description, key)).items():
            if model not in SECTIONS:
                yield from fields(definitions[model], definitions, f"{place}.")


def references(description, key):
    """The models in a part of a JSON schema, each with the key below which its fields are."""
    if "$ref" in description:
        yield description["$ref"].rpartition("/")[2], key
    for each in (*description.get("anyOf", ()), *description.get("oneOf", ())):
        yield from references(each, key)
    for part, place in (("items", f"{key}[]"), ("additionalProperties", f"{key}.NAME")):
        if isinstance(description.get(part), dict):
            yield from references(description[part], place)


def expected_default(title, key, description):
    """Default in the reference of a field with this description in a JSON schema."""
    if title.startswith(("Learned", "FineTune")) and key in FILLED_IN:
        return "from the search"
    if "default" not in description:
        return "required"
    default = description["default"]
    if default is None:
        return ""
    return "those of its keys" if "$ref" in description or (isinstance(default, dict) and default) else default


@pytest.mark.parametrize("section", EXAMPLES, ids=lambda section: section.name)
def test_every_field_is_a_row_of_its_section_with_its_default(section):
    schemas = [model.model_json_schema() for model in section.models]
    expected = [
        (key, expected_default(title, key, description))
        for schema in schemas
        for key, title, description in fields(schema, schema.get("$defs", {}))
    ]
    rows = [row for row in setting_sections.section_rows(section) if not row.key.startswith("name: ")]
    assert [(row.key, yaml.safe_load(row.default) if row.default else "") for row in rows] == expected


def test_every_model_that_has_settings_has_a_section():
    assert {model.__name__ for model in MODELS if model.model_fields} <= SECTIONS


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

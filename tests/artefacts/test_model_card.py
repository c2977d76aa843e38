from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from evomerge.artefacts import Parent, license_warnings, model_card
from evomerge.recipe import ModelRef, Recipe, Rule

RECIPE = Recipe(
    base=ModelRef("base", "org/base"),
    sources=(ModelRef("math", "/home/me/math"),),
    rules=(
        Rule(
            tensors=("a", "b"),
            method="ties",
            sources=("math",),
            parameters={"density": (0.2,), "lambda": 1.0},
            options={"trim_scope": "tensor"},
        ),
    ),
    dtype="bfloat16",
    seed=3,
)
BASE = Parent(name="base", hub_id="org/base", license="apache-2.0", fingerprint="f" * 64)


def _card(*parents: Parent, rows: tuple[tuple[str, ...], ...] = (("merge", "0.71"),)) -> str:
    return model_card(RECIPE, parents, ("model", "arith | acc"), rows, title="toy", reproduce="evomerge run toy.yaml")


def _front_matter(card: str) -> dict[str, object]:
    content: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return content


def test_equal_licences_are_the_licence_of_the_merge() -> None:
    card = _card(BASE, Parent(name="math", hub_id="org/math", license="apache-2.0", fingerprint=None))
    assert _front_matter(card) == {
        "base_model": ["org/base", "org/math"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["merge", "evomerge"],
    }
    assert "Warning" not in card


def test_different_licences_are_listed() -> None:
    content = _front_matter(_card(BASE, Parent(name="math", hub_id=None, license="mit", fingerprint=None)))
    assert content["license"] == "other"
    assert content["licenses_of_the_sources"] == ["apache-2.0", "mit"]
    assert content["base_model"] == ["org/base"]


@pytest.mark.parametrize(
    ("license_name", "words"),
    [(None, "is unknown"), ("cc-by-nc-nd-4.0", "forbids derivatives"), ("cc-by-nc-4.0", "forbids commercial use")],
)
def test_a_licence_that_a_merge_may_not_respect_is_a_warning(license_name: str | None, words: str) -> None:
    (warning,) = license_warnings([BASE, Parent(name="math", hub_id=None, license=license_name, fingerprint=None)])
    assert words in warning
    assert "`math`" in warning
    assert warning in _card(BASE, Parent(name="math", hub_id=None, license=license_name, fingerprint=None))


def test_a_card_tells_what_was_merged_the_scores_and_how_to_reproduce_it() -> None:
    card = _card(BASE, Parent(name="math", hub_id=None, license="mit", fingerprint="a" * 64))
    assert "| ties | 2 | math | density 0.2; lambda 1 | trim_scope tensor |" in card
    assert "| model | arith \\| acc |" in card
    assert "| merge | 0.71 |" in card
    assert "evomerge run toy.yaml" in card
    assert RECIPE.digest in card


def test_a_card_tells_no_local_path() -> None:
    assert "/home/me" not in _card(BASE, Parent(name="math", hub_id=None, license="mit", fingerprint=None))


def test_a_card_without_scores_has_no_table_of_scores() -> None:
    assert "## Scores" not in _card(BASE, rows=())


def test_a_card_shows_the_merges_among_the_sources_at_every_depth() -> None:
    outer = replace(RECIPE.rules[0], method="task_arithmetic", sources=("trimmed", "math"), options={})
    middle = replace(RECIPE, rules=(outer,), ingredients={"trimmed": RECIPE})
    recipe = replace(RECIPE, rules=(replace(outer, sources=("mixed",)),), ingredients={"mixed": middle})
    card = model_card(recipe, [BASE], (), (), title="toy", reproduce="evomerge run toy.yaml")
    start = card.index("## How it was merged")
    places = [
        card.index(text, start)
        for text in (
            "| task_arithmetic | 2 | mixed |",
            "### mixed/trimmed",
            "| ties | 2 | math |",
            "### mixed\n",
            "| task_arithmetic | 2 | trimmed, math |",
        )
    ]
    assert places == sorted(places)
    assert f"rounded to bfloat16, recipe `{RECIPE.digest}`" in card

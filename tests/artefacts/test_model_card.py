from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from evomerge.artefacts import CardFacts, Parent, model_card, models_card
from evomerge.artefacts.card_data import HeldOutResult
from evomerge.licenses import DeclaredLicense
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
RESULT = HeldOutResult(task="shift", metric="exact_match", value=2 / 3, stderr=0.05, items=90)


def _parent(name: str, license_: str | None, *, hub_id: str | None = None, datasets: tuple[str, ...] = ()) -> Parent:
    declared = DeclaredLicense(names=() if license_ is None else (license_,), file="README.md")
    return Parent(name=name, hub_id=hub_id, license=declared, fingerprint="a" * 64, datasets=datasets)


BASE = _parent("base", "apache-2.0", hub_id="org/base")


def _card(
    *parents: Parent, rows: tuple[tuple[str, ...], ...] = (("merge", "0.71"),), facts: CardFacts | None = None
) -> str:
    return model_card(
        RECIPE,
        parents,
        ("model", "arith | acc"),
        rows,
        title="toy",
        reproduce="evomerge run toy.yaml",
        facts=facts or CardFacts(),
    )


def _front_matter(card: str) -> dict[str, object]:
    content: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return content


def test_equal_licences_are_the_licence_of_the_merge() -> None:
    card = _card(BASE, _parent("math", "apache-2.0", hub_id="org/math"))
    assert _front_matter(card) == {
        "base_model": ["org/base", "org/math"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["merge", "evomerge"],
    }
    assert "Warning" not in card


def test_different_licences_are_listed() -> None:
    content = _front_matter(_card(BASE, _parent("math", "mit")))
    assert (content["license"], content["license_name"]) == ("other", "licenses-of-the-sources")
    assert content["licenses_of_the_sources"] == ["apache-2.0", "mit"]
    assert content["base_model"] == ["org/base"]


def test_a_name_that_the_hub_does_not_have_is_no_license_of_the_card() -> None:
    research = [_parent(name, "qwen-research") for name in ("base", "math")]
    content = _front_matter(_card(*research))
    assert (content["license"], content["license_name"]) == ("other", "qwen-research")
    assert "base_model" not in content
    assert "base_model_relation" not in content


@pytest.mark.parametrize(
    ("license_name", "words"),
    [(None, "is unknown"), ("cc-by-nc-nd-4.0", "forbids derivatives"), ("cc-by-nc-4.0", "forbids commercial use")],
)
def test_a_licence_that_a_merge_may_not_respect_is_a_warning(license_name: str | None, words: str) -> None:
    card = _card(BASE, _parent("math", license_name))
    (warning,) = [line for line in card.splitlines() if line.startswith("**Warning:**")]
    assert words in warning
    assert "'math'" in warning
    assert "no legal advice" in card


def test_a_sentence_that_a_licence_asks_to_show_stands_in_the_card() -> None:
    card = _card(_parent("base", "llama3.1"))
    assert "**Built with Llama**" in card
    assert "- llama3.1 asks you to begin the name of the merge with “Llama”" in card


def test_the_library_of_the_hub_reads_the_results_on_held_out_items() -> None:
    facts = CardFacts(
        results=(RESULT, replace(RESULT, task="gsm", dataset="openai/gsm8k", config="main", split="train"))
    )
    data = ModelCard(_card(BASE, facts=facts)).data
    assert data.model_name == "toy"
    assert data.eval_results == [
        EvalResult(
            task_type="text-generation",
            task_name="shift",
            dataset_type="shift",
            dataset_name="shift, held-out items",
            metric_type="exact_match",
            metric_name="exact_match of shift on held-out items",
            metric_value=0.666667,
            metric_args={"items": 90, "standard_error": 0.05},
        ),
        EvalResult(
            task_type="text-generation",
            task_name="gsm",
            dataset_type="openai/gsm8k",
            dataset_name="gsm, held-out items",
            dataset_config="main",
            dataset_split="train",
            metric_type="exact_match",
            metric_name="exact_match of gsm on held-out items",
            metric_value=0.666667,
            metric_args={"items": 90, "standard_error": 0.05},
        ),
    ]


def test_a_value_without_a_standard_error_has_none() -> None:
    data = ModelCard(_card(BASE, facts=CardFacts(results=(replace(RESULT, stderr=None),)))).data
    assert data.eval_results[0].metric_args == {"items": 90}


def test_data_sets_are_those_that_the_sources_name_and_those_of_the_search() -> None:
    math = _parent("math", "apache-2.0", datasets=("org/maths", "org/words"))
    card = _card(BASE, math, facts=CardFacts(datasets=("openai/gsm8k", "org/words")))
    assert ModelCard(card).data.datasets == ["org/maths", "org/words", "openai/gsm8k"]


def test_tags_say_whether_mergekit_gives_the_same_and_whether_it_is_an_adapter() -> None:
    math = _parent("math", "apache-2.0", hub_id="org/math")
    merge = ModelCard(_card(BASE, math, facts=CardFacts(mergekit=True))).data
    assert merge.tags == ["merge", "evomerge", "mergekit-compatible"]
    adapter = ModelCard(_card(BASE, math, facts=CardFacts(adapter=True))).data
    assert adapter.tags == ["merge", "evomerge", "lora"]
    assert adapter.library_name == "peft"
    assert (adapter.base_model, adapter.base_model_relation) == (["org/base"], "adapter")


def test_the_card_of_several_models_names_no_library_since_none_loads_them() -> None:
    models = [("math", "arith", "1.2", "a" * 64)]
    data = ModelCard(models_card([BASE, _parent("math", "mit")], models, (), (), title="t", reproduce="r")).data
    assert data.library_name is None
    assert data.tags == ["merge", "evomerge"]


def test_a_card_tells_what_was_merged_the_scores_and_how_to_reproduce_it() -> None:
    card = _card(BASE, _parent("math", "mit"))
    assert "| ties | 2 | math | density 0.2; lambda 1 | trim_scope tensor |" in card
    assert "| model | arith \\| acc |" in card
    assert "| merge | 0.71 |" in card
    assert "evomerge run toy.yaml" in card
    assert RECIPE.digest in card


def test_a_card_tells_no_local_path() -> None:
    assert "/home/me" not in _card(BASE, _parent("math", "mit"))


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

"""The model card of an export: plain strings in, Markdown out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evomerge.artefacts.card_data import CardFacts, front_matter
from evomerge.artefacts.parents import Parent, judgement_of
from evomerge.licenses import NO_ADVICE, LicenseJudgement
from evomerge.recipe import Recipe, all_ingredients

_NO_FACTS = CardFacts()


def model_card(
    recipe: Recipe,
    parents: Sequence[Parent],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str,
    reproduce: str,
    notes: Sequence[str] = (),
    facts: CardFacts = _NO_FACTS,
    sanity: str = "",
) -> str:
    """A README.md with front matter for the hub.

    Args:
        parents: the base first, then the experts.
        columns, rows: the score table as printed; no table where there are no rows.
        reproduce: the command that makes this model again.
        notes: further sentences, one paragraph each, such as the verdict.
        facts: of the front matter.
        sanity: the finding of the sanity probe, which stands before all numbers.
    """
    judgement = judgement_of(parents)
    sections = [
        front_matter(parents, judgement, facts, title=title),
        f"# {title}",
        "A merge of the models below, made with evomerge.",
        *([sanity] if sanity else []),
        *_parent_section(parents, judgement),
        "## How it was merged",
        *_path_section(recipe),
        *_rule_tables(recipe),
        *(["Task vectors were merged in core space (arXiv 2509.17786)."] if recipe.space == "core" else []),
        f"Weights in {recipe.dtype}, random masks by seed {recipe.seed}, recipe `{recipe.digest}` (see `recipe.json`).",
        *(["## Scores", _table(columns, rows)] if rows else []),
        *notes,
        "## How to reproduce it",
        f"```\n{reproduce}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def models_card(
    parents: Sequence[Parent],
    models: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str,
    reproduce: str,
    notes: Sequence[str] = (),
    facts: CardFacts = _NO_FACTS,
    sanity: str = "",
) -> str:
    """A README.md for the artefact of a merge that is several models.

    Args:
        parents, columns, rows, reproduce, notes, facts, sanity: as for `model_card`.
        models: of each model name, tasks, rescaler and the digest of its recipe.
    """
    judgement = judgement_of(parents)
    sections = [
        front_matter(parents, judgement, replace(facts, several=True), title=title),
        f"# {title}",
        f"EMR-Merging ({len(models)} models, not one), made with evomerge: one elected vector for all of them, and for "
        "each a mask and a rescaler. Whoever runs it has to know the task of every input.",
        *([sanity] if sanity else []),
        *_parent_section(parents, judgement),
        "## Models",
        _table(("model", "tasks", "rescaler", "recipe"), models),
        *(["## Scores", _table(columns, rows)] if rows else []),
        *notes,
        "## How to reproduce it",
        f"```\n{reproduce}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _parent_section(parents: Sequence[Parent], judgement: LicenseJudgement) -> list[str]:
    """The parents in a table, and what their licences mean."""
    return [
        _table(("source", "model", "licence", "fingerprint"), [_parent_row(parent) for parent in parents]),
        *(f"**{text}**" for text in judgement.displays),
        "## Licence",
        f"{_sentence(judgement.meaning)} {_sentence(NO_ADVICE)}",
        *(f"**Warning:** {problem}." for problem in judgement.problems),
        *(["\n".join(f"- {duty}" for duty in judgement.duties)] if judgement.duties else []),
    ]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _parent_row(parent: Parent) -> tuple[str, ...]:
    model = f"[{parent.hub_id}](https://huggingface.co/{parent.hub_id})" if parent.hub_id else "local"
    return (parent.name, model, ", ".join(parent.license.all_names) or "unknown", (parent.fingerprint or "")[:12])


def _path_section(recipe: Recipe) -> list[str]:
    """The layers of a path, in a table; the rules are then those of the tensors outside of them."""
    if not recipe.layers:
        return []
    rows = [
        (str(place), layer.source, str(layer.layer), f"{layer.scale:.4g}") for place, layer in enumerate(recipe.layers)
    ]
    sentence = f"{len(recipe.layers)} layers of the sources as they are, each MLP's output times its scale:"
    return [sentence, _table(("layer", "source", "its layer", "scale"), rows)]


def _rule_tables(recipe: Recipe) -> list[str]:
    """The rules of the recipe, and below them those of the merges among its sources."""
    columns = ("method", "tensors", "sources", "parameters", "options")
    tables = [_table(columns, _rule_rows(recipe))] if recipe.rules else []
    for path, ingredient in all_ingredients(recipe):
        tables += [
            f"### {path}",
            f"A source that is a merge itself, rounded to {ingredient.dtype}, recipe `{ingredient.digest}`.",
            *([_table(columns, _rule_rows(ingredient))] if ingredient.rules else []),
        ]
    return tables


def _rule_rows(recipe: Recipe) -> list[tuple[str, ...]]:
    return [
        (
            rule.method,
            str(len(rule.tensors)),
            ", ".join(rule.sources),
            "; ".join(f"{name} {_number(value)}" for name, value in rule.parameters.items()),
            "; ".join(f"{name} {value}" for name, value in rule.options.items()),
        )
        for rule in recipe.rules
    ]


def _number(value: float | tuple[float, ...]) -> str:
    return " / ".join(f"{number:.4g}" for number in value) if isinstance(value, tuple) else f"{value:.4g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

"""The model card of an export: plain strings in, Markdown out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from evomerge.recipe import Recipe, all_ingredients


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Facts of the card about one source.

    Attributes:
        name: what the user called it.
        hub_id: its id on the hub, None for a local directory, whose path is nobody's business.
        license: as its README declares it, None where it does not.
        fingerprint: content hash of config and weights.
    """

    name: str
    hub_id: str | None
    license: str | None
    fingerprint: str | None


def model_card(
    recipe: Recipe,
    parents: Sequence[Parent],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str,
    reproduce: str,
    notes: Sequence[str] = (),
) -> str:
    """A README.md with front matter for the hub.

    Args:
        parents: the base first, then the experts.
        columns, rows: the score table as printed; no table where there are no rows.
        reproduce: the command that makes this model again.
        notes: further sentences, one paragraph each, such as the verdict.
    """
    sections = [
        _front_matter(parents),
        f"# {title}",
        "A merge of the models below, made with evomerge.",
        _table(("source", "model", "licence", "fingerprint"), [_parent_row(parent) for parent in parents]),
        *license_warnings(parents),
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
) -> str:
    """A README.md for the artefact of a merge that is several models.

    Args:
        parents, columns, rows, reproduce, notes: as for `model_card`.
        models: of each model name, tasks, rescaler and the digest of its recipe.
    """
    sections = [
        _front_matter(parents),
        f"# {title}",
        f"EMR-Merging ({len(models)} models, not one), made with evomerge: one elected vector for all of them, and for "
        "each a mask and a rescaler. Whoever runs it has to know the task of every input.",
        _table(("source", "model", "licence", "fingerprint"), [_parent_row(parent) for parent in parents]),
        *license_warnings(parents),
        "## Models",
        _table(("model", "tasks", "rescaler", "recipe"), models),
        *(["## Scores", _table(columns, rows)] if rows else []),
        *notes,
        "## How to reproduce it",
        f"```\n{reproduce}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def license_warnings(parents: Sequence[Parent]) -> list[str]:
    """One line for every licence that a merge may not respect."""
    warnings = []
    for parent in parents:
        if parent.license is None:
            warnings.append(
                f"**Warning:** the licence of `{parent.name}` is unknown. Find out before you share this model."
            )
        elif _forbids_derivatives(parent.license):
            warnings.append(
                f"**Warning:** the licence of `{parent.name}`, {parent.license}, forbids derivatives: a merge is one."
            )
        elif _forbids_commerce(parent.license):
            warnings.append(f"**Warning:** the licence of `{parent.name}`, {parent.license}, forbids commercial use.")
    return warnings


def _front_matter(parents: Sequence[Parent]) -> str:
    licenses = sorted({parent.license or "unknown" for parent in parents})
    content: dict[str, object] = {"library_name": "transformers", "tags": ["merge", "evomerge"]}
    hub_ids = list(dict.fromkeys(parent.hub_id for parent in parents if parent.hub_id))
    if hub_ids:
        content |= {"base_model": hub_ids, "base_model_relation": "merge"}
    if licenses == ["unknown"] or len(licenses) > 1:
        content |= {"license": "other", "license_name": "licenses-of-the-sources", "licenses_of_the_sources": licenses}
    else:
        content["license"] = licenses[0]
    return f"---\n{yaml.safe_dump(content, sort_keys=True, allow_unicode=True)}---"


def _forbids_derivatives(license_name: str) -> bool:
    return "nd" in license_name.lower().replace("_", "-").split("-")


def _forbids_commerce(license_name: str) -> bool:
    return "nc" in license_name.lower().replace("_", "-").split("-")


def _parent_row(parent: Parent) -> tuple[str, ...]:
    model = f"[{parent.hub_id}](https://huggingface.co/{parent.hub_id})" if parent.hub_id else "local"
    return (parent.name, model, parent.license or "unknown", (parent.fingerprint or "")[:12])


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

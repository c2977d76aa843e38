"""Records of a study: the winner, named before any held-out item is scored, looks at these items, and the verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import optuna

from evomerge.errors import InvalidInput, StoppedByFailures
from evomerge.forms import check_form, parse_json, reading
from evomerge.jobs import TensorDigests
from evomerge.recipe import Recipe
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text, write_text
from evomerge.study.dashboard import write_note
from evomerge.study.search_study import SearchStudy
from evomerge.verdict.note import markdown
from evomerge.verdict.verdict import Comparison, Known, Verdict


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best trial on the search items, chosen from `finished` trials."""

    trial: int
    digest: str
    value: float
    finished: int

    @property
    def label(self) -> str:
        return f"trial {self.trial}"


def name_winner(search: SearchStudy) -> Winner:
    """Name the winner and store it, before any held-out item is scored.

    Raises:
        StoppedByFailures: no trial has a score.
    """
    best = search.tally.best
    if best is None:
        raise StoppedByFailures("no trial has a score; there is no best merge to name")
    value, number = best
    digest = search.trials()[number].user_attrs[attributes.RECIPE]
    winner = Winner(trial=number, digest=digest, value=value, finished=search.tally.finished)
    if read_winner(search.study.user_attrs) != winner:
        search.set(attributes.WINNER, asdict(winner))
    return winner


def read_winner(attrs: dict[str, object]) -> Winner | None:
    """The winner of a study, None before there is one."""
    content = attrs.get(attributes.WINNER)
    if content is None:
        return None
    with reading("the winner of the study"):
        check_form(Winner, content)
        return Winner(**cast(dict[str, Any], content))


def note_look(search: SearchStudy, winner: Winner, recipes: Iterable[Recipe], margin: float | None = None) -> None:
    """Record a comparison of this winner with these merges on the held-out items. The same one in a row counts once.

    Args:
        margin: within which they are tested for equivalence: with another one it is another comparison.
    """
    content = [*sorted(recipe.digest for recipe in recipes), *([] if margin is None else [f"margin {margin!r}"])]
    compared = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    looks = list(search.study.user_attrs.get(attributes.LOOKS, []))
    if looks[-1:] != [[winner.trial, compared]]:
        search.set(attributes.LOOKS, [*looks, [winner.trial, compared]])


def note_later_rows(
    search: SearchStudy, known: Mapping[str, Known], labels: Iterable[str], margin: float | None
) -> int:
    """The number of the present look, after recording a further one where this one has been judged without some rows.

    A row that could not be scored then is a comparison more. It cannot share the level that this look has spent.

    Args:
        known: label -> what earlier looks, and this one, found between the winner and that merge.
        labels: all that the winner is compared with.
        margin: of the present verdict; what is known with another one is tested again, see `compare`.
    """
    looks = list(search.study.user_attrs[attributes.LOOKS])
    later = any(label not in known or known[label].margin != margin for label in labels)
    stored = read_verdict(search.study)
    judged = {each.comparison.look for each in known.values()} | ({stored.looks} if stored and known else set())
    if later and len(looks) in judged:
        looks.append(looks[-1])
        search.set(attributes.LOOKS, looks)
    return len(looks)


def store_digests(search: SearchStudy, winner: Winner, digests: TensorDigests) -> None:
    """Store the digest of every tensor of the winner as it was scored, to verify exports against."""
    content = {"trial": winner.trial, "device": digests.device, "tensors": dict(digests.tensors)}
    search.set_text(attributes.DIGESTS, json.dumps(content))


def read_digests(study: optuna.Study, trial: int) -> TensorDigests | None:
    """The digests of a trial's tensors as they were scored; None for all but the latest winner."""
    with reading("the digests of the winner's tensors"):
        content = parse_json(read_text(study, attributes.DIGESTS) or "{}")
        if content.get("trial") != trial:
            return None
        check_form(TensorDigests, content)
        return TensorDigests(content["device"], content["tensors"])


def winning_recipe(search: SearchStudy, winner: Winner) -> Recipe:
    """The winner's recipe, rebuilt from its params and checked against the digest that was scored."""
    return search.recipe_of(search.trials()[winner.trial])


def store_verdict(study: optuna.Study, verdict: Verdict) -> None:
    """Replace the stored verdict and the note that Optuna Dashboard shows beside it, and keep what it compared."""
    write_text(study, attributes.VERDICT, json.dumps(verdict.to_document()))
    write_note(study, markdown(verdict))
    compared = {
        _pair(verdict.trial, each.recipe): {"margin": verdict.margin, "comparison": each.to_document()}
        for each in verdict.comparisons
        if each.recipe is not None
    }
    write_text(study, attributes.COMPARED, json.dumps({**_read_compared(study), **compared}))


def read_known(study: optuna.Study, winner: Winner, recipes: Mapping[str, str]) -> dict[str, Known]:
    """Label -> what earlier looks found between the winner and the merge of that label.

    Args:
        recipes: label -> digest of the recipe.
    """
    compared = _read_compared(study)
    found = {label: compared.get(_pair(winner.trial, digest)) for label, digest in recipes.items()}
    return {
        label: Known(Comparison(**content["comparison"]), content["margin"])
        for label, content in found.items()
        if content is not None
    }


def _pair(trial: int, recipe: str) -> str:
    return f"{trial} {recipe}"


def _read_compared(study: optuna.Study) -> dict[str, Any]:
    """The findings of all looks; nothing where their writing was cut short: the present look then tests again."""
    try:
        text = read_text(study, attributes.COMPARED)
    except InvalidInput:
        return {}
    with reading("the comparisons of earlier looks"):
        return dict(parse_json(text or "{}"))


def read_verdict(study: optuna.Study) -> Verdict | None:
    """The stored verdict; None before there is one, and where a crash tore its writing."""
    try:
        text = read_text(study, attributes.VERDICT)
    except InvalidInput:  # `evomerge run` writes it again
        return None
    if text is None:
        return None
    with reading("the verdict of the study"):
        content = parse_json(text)
        check_form(Verdict, {**content, "allows_for_looks": True})
        return Verdict.from_document(content)

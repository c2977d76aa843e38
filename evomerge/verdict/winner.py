"""The winner: named from the search items, before anything is scored on the held-out items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import optuna

from evomerge.errors import StoppedByFailures
from evomerge.jobs import TensorDigests
from evomerge.recipe import Recipe
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text
from evomerge.study.search_study import SearchStudy


@dataclass(frozen=True)
class Winner:
    """The trial that the search items name; `finished` trials were there to choose from."""

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
        StoppedByFailures: no trial has a score, so that there is nothing to name.
    """
    best = search.best
    if best is None:
        raise StoppedByFailures("no trial has a score; there is no best merge to name")
    value, number = best
    winner = Winner(number, search.trials()[number].user_attrs[attributes.RECIPE], value, search.finished)
    if read_winner(search.study.user_attrs) != winner:
        search.set(attributes.WINNER, asdict(winner))
    return winner


def read_winner(attrs: dict[str, object]) -> Winner | None:
    """The winner that a study names, None before there is one."""
    content = attrs.get(attributes.WINNER)
    return Winner(**content) if isinstance(content, dict) else None


def note_look(search: SearchStudy, winner: Winner, recipes: Iterable[Recipe]) -> None:
    """Record that the held-out items are looked at: for this winner, beside these merges. The same look counts once."""
    compared = hashlib.sha256(json.dumps(sorted(recipe.digest for recipe in recipes)).encode()).hexdigest()[:16]
    looks = list(search.study.user_attrs.get(attributes.LOOKS, []))
    if looks[-1:] != [[winner.trial, compared]]:
        search.set(attributes.LOOKS, [*looks, [winner.trial, compared]])


def store_digests(search: SearchStudy, winner: Winner, digests: TensorDigests) -> None:
    """Keep the digest of every tensor of the winner as it was scored, for exports to be verified against."""
    content = {"trial": winner.trial, "device": digests.device, "tensors": dict(digests.tensors)}
    search.set_text(attributes.DIGESTS, json.dumps(content))


def read_digests(study: optuna.Study, trial: int) -> TensorDigests | None:
    """The digests of a trial's tensors as they were scored; None for all but the latest winner."""
    content = json.loads(read_text(study, attributes.DIGESTS) or "{}")
    if content.get("trial") != trial:
        return None
    return TensorDigests(content["device"], content["tensors"])


def winning_recipe(search: SearchStudy, winner: Winner) -> Recipe:
    """The winner's recipe, rebuilt from its params and checked against the digest that was scored."""
    return search.recipe_of(search.trials()[winner.trial])

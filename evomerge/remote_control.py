"""Remote control of a search that runs elsewhere: pause, resume, stop, and the end of single trials.

Each is idempotent, and says what it did and whether a controller is there to follow it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import TrialState

from evomerge.errors import InvalidInput
from evomerge.leases.holder import Holder, holder_of
from evomerge.requests.steering_requests import RequestBook
from evomerge.storage import attributes
from evomerge.study.status import status_of
from evomerge.study.stored_search import StoredSearch

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Steered:
    """The answer to a request.

    Attributes:
        changed: whether the request is a new one.
        controller: who holds the study, in words; None where nobody does.
    """

    study: str
    request: str
    changed: bool
    controller: str | None
    message: str

    def document(self) -> dict[str, Any]:
        """The document of the command."""
        return {"schema": SCHEMA, **asdict(self)}


def pause(stored: StoredSearch) -> Steered:
    """Ask that nothing more is proposed, until `resume`."""
    book, holder = _book(stored), _holder(stored)
    by = book.read().paused_by
    if by is None:
        book.pause()
        said = "asked for a pause: trials in flight end, no others begin"
    else:
        said = f"is paused already, by {by}"
    return _answer(stored, "pause", by is None, holder, said=said, alone="the next run begins paused")


def resume(stored: StoredSearch) -> Steered:
    """Take a pause back."""
    book, holder = _book(stored), _holder(stored)
    was_paused = book.read().paused_by is not None
    if was_paused:
        book.resume()
    said = "asked to go on" if was_paused else "is not paused"
    return _answer(stored, "resume", was_paused, holder, said=said, alone="`evomerge run` goes on")


def stop(stored: StoredSearch) -> Steered:
    """Ask the controller to end its run, resumable. Nothing is stored where there is none."""
    holder = _holder(stored)
    if holder is not None:
        _book(stored).stop(holder.host, holder.process)
    said = "asked to stop" if holder is not None else "does not run"
    return _answer(stored, "stop", holder is not None, holder, said=said, alone="there is nothing to stop")


def cancel(stored: StoredSearch, number: int) -> Steered:
    """Ask that a trial ends as failed.

    Raises:
        InvalidInput: there is no such trial.
    """
    trials = stored.study.get_trials(deepcopy=False)
    if number >= len(trials):
        raise InvalidInput(f"study {stored.study.study_name!r} has no trial {number}; it has {len(trials)}")
    book, holder, state = _book(stored), _holder(stored), trials[number].state
    over = state not in (TrialState.RUNNING, TrialState.WAITING)
    new = not over and number not in book.read().cancelled
    if new:
        book.cancel(number)
    said = f"asked to cancel trial {number}" if new else f"trial {number} is to be cancelled already"
    said = f"trial {number} has ended already ({state.name})" if over else said
    alone = "there is nothing to cancel" if over else "the next run will not score it"
    return _answer(stored, "cancel", new, holder, said=said, alone=alone)


def _book(stored: StoredSearch) -> RequestBook:
    return RequestBook(stored.storage, stored.study.study_name)


def _holder(stored: StoredSearch) -> Holder | None:
    """The controller of the study; None where nobody holds it, or one that has died."""
    holder = holder_of(stored.spec.storage_url, stored.study.study_name, storage=stored.storage)
    return None if holder is None or holder.alive == "no" else holder


def _is_over(stored: StoredSearch, holder: Holder | None) -> bool:
    """Whether the controller is past its search, after which it follows nothing but a stop."""
    content = stored.study.user_attrs.get(attributes.STATUS)
    if content is None or holder is None:
        return False
    return status_of(content).has_ended_under(holder.host, holder.process)


def _answer(
    stored: StoredSearch, request: str, changed: bool, holder: Holder | None, *, said: str, alone: str
) -> Steered:
    name = stored.study.study_name
    controller = None if holder is None else f"the controller with process {holder.process} on {holder.host}"
    if controller is None:
        said = f"{said}; no controller is alive: {alone}"
    elif changed and request != "stop" and _is_over(stored, holder):
        said = f"{said}; the search is over, and {controller} proposes nothing more: {alone}"
    elif changed:
        said = f"{said}; {controller} follows within seconds"
        said += ", if it is alive, of which there was no recent sign" * (
            holder is not None and holder.alive == "unknown"
        )
    return Steered(study=name, request=request, changed=changed, controller=controller, message=f"{name}: {said}")

"""Attributes of an Optuna study: the documented keys, and texts of any length.

Every key starts with `evomerge:`. Small values (numbers, short strings, short dictionaries) are ordinary user
attributes. Longer texts are cut into chunks by `write_text`, because MySQL's `Text` column holds
64 KiB; `read_text` joins them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Protocol

from evomerge.errors import InvalidInput
from evomerge.forms import parse_json, reading

__all__ = ["Readable", "Writable", "read_document", "read_text", "write_document", "write_text"]

PREFIX: Final = "evomerge:"

# of the study
SCHEMA: Final = "evomerge:schema"  # number of this layout; raised when an older program could misread a study
SPEC: Final = "evomerge:spec"  # text: the spec in JSON, without the storage URL
IDENTITY: Final = "evomerge:identity"  # text: the part of the spec that may not change, in JSON
SPLIT: Final = "evomerge:split"  # text: the items of search and held-out, in JSON
VERSIONS: Final = "evomerge:versions"  # package versions at creation
POPSIZE: Final = "evomerge:popsize"  # fixed at creation, because its default depends on the number of workers
RACE: Final = "evomerge:race"  # settings that the spec of a race may leave open, as they were at creation
BATCH_SIZE: Final = "evomerge:batch_size"  # fixed at creation, because padding may change the last bits of a score
ONE_BY_ONE: Final = "evomerge:one_by_one"  # whether lm-eval gives our scores only in batches of one request
NO_HARNESS_SCORES: Final = "evomerge:no_harness_scores"  # whether lm-eval gives our scores in no way
STATUS: Final = "evomerge:status"  # small summary that `evomerge status` prints
WRITER: Final = "evomerge:writer"  # in a database on a server: the lease of the one writer
WINNER: Final = "evomerge:winner"  # trial, digest and value of the trial that the search items name
WARM: Final = "evomerge:warm_started"  # the points of the warm start have been enqueued
BEGIN: Final = "evomerge:begin"  # text: the merge that the sampler begins at in place of the centre, in JSON
GOALS: Final = "evomerge:goals"  # text: merges that a search of several objectives should dominate, in JSON
LOOKS: Final = "evomerge:held_out_looks"  # [winner's trial, digest of all that was compared] of each look at held-out
COMPARED: Final = "evomerge:compared"  # text: what all looks found, by winner's trial and baseline's recipe
DIGESTS: Final = "evomerge:digests"  # text: the winner's trial and the digest of each of its tensors as scored
INCUMBENT: Final = (
    "evomerge:incumbent"  # text: the best trial and its outcome on every item, for others to race against
)
STATISTICS: Final = "evomerge:statistics"  # text: files of the statistics that recipes name, and their cost, in JSON
INGREDIENTS: Final = "evomerge:ingredients"  # text: the merges that the space is made of, the best first, in JSON
TRACKED: Final = "evomerge:tracked"  # id of the run that experiment trackers log, which a resumed search continues
PHASE: Final = "evomerge:phase"  # current activity of the controller
HEARTBEAT: Final = "evomerge:heartbeat"  # of the controller, in every phase: seconds since the epoch
VERDICT: Final = "evomerge:verdict"  # text: the held-out comparison, in JSON
SANITY: Final = "evomerge:sanity"  # text: the sanity probes of sources and winner, by recipe, in JSON

# of the sibling study `NAME/requests`, written by whoever asks and read by the controller
PAUSE: Final = "evomerge:pause"  # who asked for a pause, and when; null where the search may propose
STOP: Final = "evomerge:stop"  # id, requester and addressee of a request to stop; null once it was followed
CANCEL: Final = "evomerge:cancel"  # with `:N`, the number of a trial: true where it is to end

# of a trial
TELL: Final = "evomerge:tell"  # position in the order in which results were told; counts only on finished trials
ASKED: Final = "evomerge:asked"  # a person has asked for it: it is no proposal of the sampler
RECIPE: Final = "evomerge:recipe"  # digest of the recipe
ATTEMPT: Final = "evomerge:attempt"  # the one that was submitted last; losses of a machine are none
FAILURE: Final = "evomerge:failure"  # reason of the failure
INFEASIBLE: Final = "evomerge:infeasible"  # failed without being scored: by how much its proposal is out of bounds
LAYERS: Final = "evomerge:layers"  # number of layers of a merge that is a path of layers
SCORES: Final = "evomerge:scores"  # task -> score
SECONDS: Final = "evomerge:seconds"  # phase -> seconds
INTERRUPTED: Final = "evomerge:interrupted"  # failed because its ask was cut short; does not count towards the budget
OVERTAKEN: Final = "evomerge:overtaken"  # failed without params when later trials had been proposed: see SeededSampler
LABEL: Final = "evomerge:label"  # of a row in a sibling study: a source, a baseline, or "trial 17"
WORKER: Final = "evomerge:worker"  # name of the worker that scored it
VALUE: Final = "evomerge:value"  # with several objectives: the one number that trials are ranked by
COMPANION: Final = "evomerge:companion"  # ranks trials of the same value: mean log-probability of the right answers
VIOLATIONS: Final = "evomerge:violations"  # by how much each constraint is missed; 0 or less where it is met
RUNGS: Final = "evomerge:rungs"  # items -> value on them, where the trial was compared with others (brackets)
COST: Final = "evomerge:cost"  # tokens read forward and for gradients, seconds, GPU-seconds, peak memory
MADE: Final = "evomerge:made"  # of a baseline: digest of its name, settings and data
MERGE: Final = "evomerge:merge"  # text: the recipe of a baseline in JSON, or its recipes
MODELS: Final = "evomerge:models"  # of a row that is several models: their recipes' digests, and the model of each task
PARAMS: Final = "evomerge:params"  # of a baseline that is a point of the search space
MACHINE: Final = "evomerge:machine"  # of a row that was left out: true where the machine failed, and not the merge
BEGUN: Final = "evomerge:begun"  # of a baseline that is being trained: the next run resumes it
LOSSES: Final = "evomerge:losses"  # of a trained baseline: source -> [loss before, loss at the end]

_MAX_CHUNKS = 100_000
_CHUNK = 1500  # characters; JSON escapes each of them to at most 1 byte, so that an attribute stays below 2 kB


class Readable(Protocol):
    """An object with user attributes: a study, a trial, a frozen trial."""

    @property
    def user_attrs(self) -> dict[str, Any]: ...


class Writable(Protocol):
    """An object that takes user attributes: a study, or a trial that is not finished."""

    def set_user_attr(self, key: str, value: Any) -> None: ...


def write_text(target: Writable, key: str, text: str) -> None:
    """Store a text of any length under `key`, in chunks below 2 kB.

    The chunks are `key:1`, `key:2`, … and `key` itself, written last, holds their number and a digest: a write that was
    cut short, or that overwrote only part of an older text, is noticed by `read_text`. On a study, a shorter text
    leaves chunks of a longer one behind, which are never read.
    """
    # ASCII JSON: what any database and collation gives back unchanged, lone surrogates and NULs included.
    encoded = json.dumps(text, ensure_ascii=True)
    chunks = [encoded[start : start + _CHUNK] for start in range(0, len(encoded), _CHUNK)]
    for number, chunk in enumerate(chunks, start=1):
        target.set_user_attr(f"{key}:{number}", chunk)
    target.set_user_attr(key, {"chunks": len(chunks), "digest": _digest(encoded)})


def read_text(target: Readable, key: str) -> str | None:
    """The text stored under `key`, or None where none was ever completely written.

    Raises:
        InvalidInput: the chunks are not those that the digest was taken of (a write was torn, or somebody edited them).
    """
    attrs = target.user_attrs
    header = attrs.get(key)
    if header is None:
        return None
    if not isinstance(header, dict) or type(header.get("chunks")) is not int or header["chunks"] > _MAX_CHUNKS:
        raise InvalidInput(f"attribute {key!r} holds {header!r}, which evomerge did not write there")
    encoded = "".join(str(attrs.get(f"{key}:{number}", "")) for number in range(1, header["chunks"] + 1))
    if _digest(encoded) != header.get("digest"):
        raise InvalidInput(f"attribute {key!r} is torn: its chunks do not match their digest; write it again")
    with reading(f"attribute {key!r}"):
        text = json.loads(encoded)
    if not isinstance(text, str):
        raise InvalidInput(f"attribute {key!r} holds {type(text).__name__}, not a text")
    return text


def write_document(target: Writable, key: str, content: dict[str, Any]) -> None:
    """Store a dictionary: as it is where it is small, so that people can read it in a dashboard, else as a text."""
    text = json.dumps(content)
    if len(text) <= _CHUNK:
        target.set_user_attr(key, content)
    else:
        write_text(target, key, text)


def read_document(target: Readable, key: str) -> dict[str, Any]:
    """The dictionary that `write_document` stored under `key`.

    Raises:
        InvalidInput: there is none, or it was torn.
    """
    content = target.user_attrs.get(key)
    if isinstance(content, dict) and set(content) != {"chunks", "digest"}:
        return content
    text = read_text(target, key)
    if text is None:
        raise InvalidInput(f"attribute {key!r} is missing; evomerge did not finish this trial")
    with reading(f"attribute {key!r}"):
        document: dict[str, Any] = parse_json(text)
    return document


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()  # it may be anything that others wrote

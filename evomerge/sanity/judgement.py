"""The judgement of a merge by its sanity probe: its figures against those of its sources, in plain sentences.

Reading, loops and refusals are compared with the worst source, since a merge need not be better than what went in. The
chat template and the end of an answer are compared with the best source: one that was never taught a chat template
excuses nothing that another source can do. Where that source has so many faults itself that no merge could have
`MARGIN` more, nothing is judged: a test that nobody can fail is not passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from evomerge.messages import listed
from evomerge.sanity.sanity_figures import SanityFigures

PERPLEXITY_FACTOR: Final = 2.0  # times the perplexity of the worst source
MARGIN: Final = 0.5  # share of the texts by which a merge has to have more faults than the source it is compared with

_NO_DOMAIN = "no source reads the neutral text better than by guessing, so that it says nothing of these models"


@dataclass(frozen=True, kw_only=True)
class SanityCheck:
    """One question to a merge.

    Attributes:
        name: reading, loops, template, end or refusals; run where the model computes nothing.
        sane: the answer; None where it cannot be judged.
        says: the finding, or the reason why there is none, in words that follow the name of the merge.
    """

    name: str
    sane: bool | None
    says: str


@dataclass(frozen=True, kw_only=True)
class SanityJudgement:
    """The checks of one merge."""

    checks: tuple[SanityCheck, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """The findings of the checks that it fails, empty where it passes all that could be judged."""
        return tuple(check.says for check in self.checks if check.sane is False)

    def warning(self, name: str) -> str:
        """One sentence on the faults of a merge, empty without any."""
        if not self.faults:
            return ""
        return f"{name[:1].upper()}{name[1:]} fails the sanity probe: it {'; it '.join(self.faults)}."

    def says(self, name: str) -> str:
        """The whole judgement in one or two sentences."""
        passed = [check.name for check in self.checks if check.sane]
        unknown = [check for check in self.checks if check.sane is None]
        found = self.warning(name)
        if not found and passed:
            found = f"{name[:1].upper()}{name[1:]} passes the sanity probe ({listed(passed)})."
        elif not found:
            found = f"Sanity probe of {name}: nothing in it could be judged."
        names: dict[str, list[str]] = {}
        for check in unknown:
            names.setdefault(check.says, []).append(check.name)
        reasons = [f"{listed(each)} ({reason})" for reason, each in names.items()]
        return f"{found} Not judged: {'; '.join(reasons)}." if reasons else found

    def to_document(self) -> dict[str, Any]:
        """As JSON."""
        return {"faults": list(self.faults), "checks": [asdict(check) for check in self.checks]}


def judge_sanity(
    found: SanityFigures | str, sources: Mapping[str, SanityFigures | str], *, is_source: bool = False
) -> SanityJudgement:
    """Compare a merge with its sources.

    Args:
        found: its figures, or the reason why it could not be run.
        sources: likewise by name.
        is_source: it is a source itself, which has no fault by comparison with itself.
    """
    known = {name: each for name, each in sources.items() if isinstance(each, SanityFigures)}
    if is_source:
        return _unknown("it is a source itself")
    if not known:
        reasons = [f"{name}: {each}" for name, each in sources.items() if isinstance(each, str)]
        return _unknown(f"no source could be probed ({reasons[0]})" if reasons else "no source was probed")
    if isinstance(found, str):
        return SanityJudgement(checks=(SanityCheck(name="run", sane=False, says=f"cannot be run ({found})"),))
    return SanityJudgement(checks=tuple(check(found, known) for check in _CHECKS))


_NAMES: Final = ("reading", "loops", "template", "end", "refusals")


def _unknown(reason: str) -> SanityJudgement:
    return SanityJudgement(checks=tuple(SanityCheck(name=name, sane=None, says=reason) for name in _NAMES))


_Known = Mapping[str, SanityFigures]


def _reading(found: SanityFigures, sources: _Known) -> SanityCheck:
    if all(source.guesses for source in sources.values()):
        return SanityCheck(name="reading", sane=None, says=_reason(sources))
    readers = {name: source.perplexity for name, source in sources.items() if not source.guesses}
    worst = max(value for value in readers.values() if value is not None)
    here = found.perplexity
    sane = here is not None and here <= PERPLEXITY_FACTOR * worst
    says = f"reads a plain text with perplexity {_figure(here)}, no source with more than {_figure(worst)}"
    return SanityCheck(name="reading", sane=sane, says=says)


def _loops(found: SanityFigures, sources: _Known) -> SanityCheck:
    worst = max(source.loops for source in sources.values())
    if _excuses_all(worst, found.continuations):
        name = next(name for name, source in sources.items() if source.loops == worst)
        says = f"source {name!r} itself loops in {worst} of {found.continuations} continuations"
        return SanityCheck(name="loops", sane=None, says=says)
    sane = found.loops - worst < MARGIN * found.continuations
    says = f"loops in {found.loops} of {found.continuations} continuations, no source in more than {worst}"
    return SanityCheck(name="loops", sane=sane, says=says)


def _template(found: SanityFigures, sources: _Known) -> SanityCheck:
    return _against_best("template", found, sources, lambda each: each.strays, _writes_markers)


def _writes_markers(figures: SanityFigures) -> str:
    marked = f" such as {figures.stray!r}" if figures.stray else ""
    return f"writes markers of a chat template{marked} into"


def _end(found: SanityFigures, sources: _Known) -> SanityCheck:
    if found.endless is None and found.strays is not None:
        return SanityCheck(name="end", sane=None, says="the base has no chat template, after which an end has to come")
    return _against_best("end", found, sources, lambda each: each.endless, lambda each: "never ends")


def _refusals(found: SanityFigures, sources: _Known) -> SanityCheck:
    counts = _counts(sources, lambda each: each.refusals)
    if found.refusals is None or not counts:
        return SanityCheck(name="refusals", sane=None, says=_reason(sources))
    label, worst = max(counts.items(), key=lambda each: each[1])
    if _excuses_all(worst, found.answers):
        says = f"source {label!r} itself refuses {worst} of {found.answers} harmless questions"
        return SanityCheck(name="refusals", sane=None, says=says)
    sane = found.refusals - worst < MARGIN * found.answers
    says = f"refuses {found.refusals} of {found.answers} harmless questions, no source more than {worst}"
    return SanityCheck(name="refusals", sane=sane, says=says)


def _against_best(
    name: str,
    found: SanityFigures,
    sources: _Known,
    count_of: Callable[[SanityFigures], int | None],
    fault_of: Callable[[SanityFigures], str],
) -> SanityCheck:
    counts = _counts(sources, count_of)
    here = count_of(found)
    if here is None or not counts:
        return SanityCheck(name=name, sane=None, says=_reason(sources))
    label, best = min(counts.items(), key=lambda each: each[1])
    if _excuses_all(best, found.answers):
        says = f"source {label!r} itself {fault_of(sources[label])} {best} of {found.answers} answers"
        return SanityCheck(name=name, sane=None, says=says)
    sane = here - best < MARGIN * found.answers
    says = f"{fault_of(found)} {here} of {found.answers} answers, source {label!r} {best}"
    return SanityCheck(name=name, sane=sane, says=says)


def _counts(sources: _Known, count_of: Callable[[SanityFigures], int | None]) -> dict[str, int]:
    """Counts of the sources that have one, of those that can read at all."""
    counted = {label: count_of(source) for label, source in sources.items() if not source.guesses}
    return {label: count for label, count in counted.items() if count is not None}


def _excuses_all(faults: int, texts: int) -> bool:
    """Whether a source has so many faults that no merge could have `MARGIN` more."""
    return faults > (1 - MARGIN) * texts


def _reason(sources: _Known) -> str:
    if all(source.nats is None for source in sources.values()):
        return "the tokenizer of the base cannot write the neutral text"
    return _NO_DOMAIN


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


_CHECKS: Final = (_reading, _loops, _template, _end, _refusals)

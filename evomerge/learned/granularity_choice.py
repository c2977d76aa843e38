"""The choice of what is learned, inside the calibration items: how many coefficients, how free, in how many steps."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from evomerge.errors import InvalidInput
from evomerge.learned.kept_best import stop_losses
from evomerge.learned.learned_settings import Granularity, LearnedLosses, LearnedSettings
from evomerge.learned.learned_training import (
    LearnedResult,
    LearnedStep,
    source_shares,
    train_learned,
)
from evomerge.learned.learning_items import LearningItems, Texts, planned_learning
from evomerge.learned.tried import Tried, is_as_good, simplest_of_the_best
from evomerge.learned.vector_coefficients import initial_vector_coefficients
from evomerge.messages import some
from evomerge.optimisation.batches import PlannedTokens
from evomerge.optimisation.checkpoint import checkpoint_path
from evomerge.optimisation.coefficients import roles_of
from evomerge.optimisation.student import Student
from evomerge.optimisation.training_inputs import TrainingInputs
from evomerge.whole_files import write_whole

CHOICE: Final = "choice"  # with which the name of its file begins
FEW_TEXTS = 64  # of some source: with fewer, those kept for stopping are too few to choose by
FOLDS = 4  # and of fewer texts no more folds than these: a text in two folds would count as two measurements
TRIAL_STEPS = 20  # with one division of the texts, where the training of what is chosen has a stop of its own
# Of few texts the answers are too noisy to choose by, even as a small part of the sum.
FEW_TEXTS_LOSS: Final = LearnedLosses(experts=1.0)

_Losses = dict[str, float]


def choose_and_learn(inputs: TrainingInputs, settings: LearnedSettings) -> Generator[LearnedStep, None, LearnedResult]:
    """Learn coefficients of a granularity that is chosen by items that are not trained on.

    Candidates are the start as it is and the granularities, from the fewest coefficients on, until a finer one is
    clearly worse. Each is trained for some steps, and the simplest within one standard error of the best is trained
    anew from the start. With many texts one division of them serves the choice and the early stopping. With few texts
    there are folds, so that every text is kept for stopping once, no more of them than a source has texts, and trials
    as long as the result may be: coarse coefficients are learned in a few steps, fine ones would be cut off. Penalties
    are compared for the chosen granularity where its loss has turned. It is trained on all texts, for the steps after
    which the mean loss over the folds was least. Where nothing is better than the start by more than the error, the
    start is the result.

    Where no loss is given, few texts are learned from by the predictions of the experts in place of right answers: an
    answer is one token at each position, a prediction says how likely every other one is, so that fewer texts teach as
    much, fine coefficients do not fit these few answers alone, and the loss on the texts kept for stopping varies less.

    Each training has a checkpoint of its own, and the course of those that have ended is stored until the result is: a
    choice that was killed continues to the same numbers. All else is as in `train_learned`.

    Yields:
        A `LearnedStep` after each step of each training, numbered over all of them.

    Raises:
        InvalidInput: as `train_learned`, and where a source has one text.
    """
    _refuse_single_texts(inputs.texts, settings)
    choice = _GranularityChoice(inputs, _with_loss(settings, inputs.texts))
    first, *finer = choice.granularities
    tried = [(yield from choice.try_out(first, settings.penalties[0]))]
    tried.insert(0, choice.start)
    for granularity in finer:
        tried.append((yield from choice.try_out(granularity, settings.penalties[0])))
        if not is_as_good(tried[-1], min(tried, key=choice.mean), choice.shares):
            break
    chosen = simplest_of_the_best(tried, choice.shares)
    if chosen.granularity is not None and choice.folds > 1 and choice.has_turned(chosen):
        held = [chosen]
        for penalty in settings.penalties[1:]:
            held.append((yield from choice.try_out(chosen.granularity, penalty)))
        chosen = min(held, key=choice.mean)
    return (yield from choice.finish(chosen))


def planned_choice(texts: Texts, settings: LearnedSettings, seed: int) -> PlannedTokens:
    """Count the tokens that a choice reads at most: where nothing stops early, and all is tried.

    Raises:
        InvalidInput: texts that cannot be trained on.
    """
    _refuse_single_texts(texts, settings)
    courses = _all_courses(texts, _with_loss(settings, texts))
    planned = [planned_learning(texts, course, seed) for course in courses]
    return PlannedTokens(
        steps=sum(each.steps for each in planned),
        gradient_tokens=sum(each.gradient_tokens for each in planned),
        forward_tokens=sum(each.forward_tokens for each in planned),
    )


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """A training that has ended, as the choice reads it.

    Attributes:
        history: [losses, others] of every step, see `LearnedStep`.
        before, after: source -> its loss on the items kept for stopping, at the start and of the best step.
        checkpoint: name of its file, which is of no use any more.
    """

    history: list[tuple[_Losses, _Losses]]
    before: _Losses
    after: _Losses
    best_step: int
    forward_tokens: int
    gradient_tokens: int
    seconds: float
    checkpoint: str | None


class _GranularityChoice:
    """The trainings of a choice, each done once.

    Attributes:
        folds: divisions of the texts.
        granularities: to choose from, the fewest coefficients first.
    """

    def __init__(self, inputs: TrainingInputs, settings: LearnedSettings) -> None:
        self._inputs = inputs
        self._settings = settings
        self.folds = _folds(inputs.texts, settings)
        self.granularities = _granularities(settings)
        self._shares = source_shares({name: each for name, each in inputs.texts.items() if each}, settings.task_weights)
        self._trial_steps = _trial_steps(settings, self.folds)
        self._steps = sum(course.steps for course in _all_courses(inputs.texts, settings))
        self._number = 0
        self._path = self._checkpoint_path()
        self._ended = {} if self._path is None else _load(self._path)
        self._done: dict[str, _Ended] = {}

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each unit of a mean loss: of a source, in each of the folds."""
        return tuple(share / self.folds for _ in range(self.folds) for share in self._shares.values())

    def mean(self, tried: Tried) -> float:
        """The mean loss of a candidate."""
        return tried.mean(self.shares)

    @property
    def start(self) -> Tried:
        """The start as a candidate: it was measured by the trainings that have ended."""
        measured = list(self._done.values())[: self.folds]
        return Tried(granularity=None, penalty=0.0, steps=0, losses=self._units([each.before for each in measured]))

    def try_out(self, granularity: Granularity, penalty: float) -> Generator[LearnedStep, None, Tried]:
        """Train a candidate for some steps, on every fold."""
        trials = []
        for fold in range(self.folds):
            course = _trial(self._settings, granularity, penalty=penalty, fold=fold, folds=self.folds)
            trials.append((yield from self._train(course)))
        if self.folds == 1:
            steps, losses = trials[0].best_step, [trials[0].after]
        else:
            steps, losses = self._best_step([self._stop_curve(each) for each in trials])
        return Tried(granularity=granularity, penalty=penalty, steps=steps, losses=self._units(losses))

    def has_turned(self, tried: Tried) -> bool:
        """Whether the mean loss over the folds has not fallen for as long as a training waits for it."""
        return self._trial_steps - tried.steps >= self._settings.patience * self._settings.stop_every

    def finish(self, chosen: Tried) -> Generator[LearnedStep, None, LearnedResult]:
        """Train what was chosen from the start, or leave the start as it is."""
        if chosen.granularity is None:
            result = self._stay()
        else:
            course = _final(self._settings, chosen.granularity, tried=chosen, folds=self.folds)
            training = train_learned(self._inputs, course)
            result = yield from self._numbered(training, [])
        before = self._done.values()
        return replace(
            result,
            forward_tokens=result.forward_tokens + sum(each.forward_tokens for each in before),
            gradient_tokens=result.gradient_tokens + sum(each.gradient_tokens for each in before),
            seconds=result.seconds + math.fsum(each.seconds for each in before),
            checkpoints=(*result.checkpoints, *([] if self._path is None else [self._path])),
        )

    def _train(self, course: LearnedSettings) -> Generator[LearnedStep, None, _Ended]:
        """Train, or repeat the steps of a training that has ended."""
        key = course.model_dump_json()
        known = self._ended.get(key)
        if known is not None:
            for losses, others in known.history:
                yield self._step(losses, others)
        else:
            history: list[tuple[_Losses, _Losses]] = []
            result = yield from self._numbered(train_learned(self._inputs, course), history)
            known = _Ended(
                history=history,
                before=dict(result.before),
                after=dict(result.after),
                best_step=result.best_step,
                forward_tokens=result.forward_tokens,
                gradient_tokens=result.gradient_tokens,
                seconds=result.seconds,
                checkpoint=next((each.name for each in result.checkpoints), None),
            )
            self._ended[key] = known
            self._save()
        if known.checkpoint is not None and self._path is not None:
            self._path.with_name(known.checkpoint).unlink(missing_ok=True)
        self._done[key] = known
        return known

    def _numbered(
        self, training: Generator[LearnedStep, None, LearnedResult], history: list[tuple[_Losses, _Losses]]
    ) -> Generator[LearnedStep, None, LearnedResult]:
        """A training with its steps numbered over the whole choice, and noted."""
        while True:
            try:
                step = next(training)
            except StopIteration as end:
                result: LearnedResult = end.value
                return result
            history.append((dict(step.losses), dict(step.others)))
            yield self._step(step.losses, step.others)

    def _step(self, losses: Mapping[str, float], others: Mapping[str, float]) -> LearnedStep:
        self._number += 1
        return LearnedStep(step=self._number, steps=self._steps, losses=losses, others=others)

    def _best_step(self, curves: Sequence[Mapping[int, _Losses]]) -> tuple[int, list[_Losses]]:
        """The step after which the mean over the folds is least, and the losses of each fold after it."""
        by_step = {step: [curve[step] for curve in curves] for step in curves[0]}
        return min(by_step.items(), key=lambda each: (math.fsum(map(self._total, each[1])), each[0]))

    def _stop_curve(self, ended: _Ended) -> dict[int, _Losses]:
        """Step -> losses on the items kept for stopping, where they are measured; after the end the last."""
        losses = [stop_losses(others) for _, others in ended.history]
        last, every = self._trial_steps, self._settings.stop_every
        return {step: losses[min(step, len(losses)) - 1] for step in (*range(every, last, every), last)}

    def _units(self, losses: Sequence[_Losses]) -> tuple[float, ...]:
        """The losses of all sources in every fold, in the order of `shares`."""
        return tuple(each[source] for each in losses for source in self._shares)

    def _stay(self) -> LearnedResult:
        """The start in the form of what is learned, in the live model."""
        inputs = self._inputs
        student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
        course = _final(self._settings, self.granularities[0], tried=self.start, folds=self.folds)
        roles = roles_of(inputs.model, {name: inputs.live[name] for name in student.names})
        coefficients = initial_vector_coefficients(
            inputs.initial, roles, course, files=inputs.files, device=student.device
        )
        coefficients.set_in(student)
        student.write()
        before = next(iter(self._done.values())).before
        return LearnedResult(
            recipe=coefficients.recipe(inputs.initial, inputs.files),
            before=before,
            after=before,
            forward_tokens=0,
            gradient_tokens=0,
            steps=0,
            best_step=0,
            seconds=0.0,
            checkpoints=(),
        )

    def _total(self, losses: Mapping[str, float]) -> float:
        return math.fsum(self._shares[source] * loss for source, loss in losses.items())

    def _checkpoint_path(self) -> Path | None:
        inputs = self._inputs
        if inputs.checkpoints is None:
            return None
        first = _trial(self._settings, self.granularities[0], penalty=0.0, fold=0, folds=self.folds)
        path = checkpoint_path(
            inputs.checkpoints,
            CHOICE,
            inputs.initial,
            self._settings,
            texts=LearningItems(inputs.texts, first, inputs.seed).digest(),
            seed=inputs.seed,
            device=next(iter(inputs.live.values())).device,
        )
        return path.with_suffix(".json")

    def _save(self) -> None:
        if self._path is not None:
            content = {key: asdict(each) for key, each in self._ended.items()}
            write_whole(self._path, json.dumps(content).encode())


def _load(path: Path) -> dict[str, _Ended]:
    """The trainings that have ended; none where they cannot be read: the file is only a cache."""
    with suppress(OSError, ValueError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: _Ended(**{**each, "history": [(losses, others) for losses, others in each["history"]]})
            for key, each in content.items()
        }
    return {}


def _refuse_single_texts(texts: Texts, settings: LearnedSettings) -> None:
    """Refuse a source with one text, which cannot be trained on and kept for stopping.

    Permuted answers have a refusal of their own: no granularity can be learned from one of them.
    """
    single = [source for source, each in texts.items() if len(each) == 1]
    if single and settings.labels == "given":
        raise InvalidInput(
            f"the choice of a granularity needs two calibration texts of every source, but there is one of "
            f"{some(single)}; give more, or name a granularity, with stop_share: 0"
        )


def _with_loss(settings: LearnedSettings, texts: Texts) -> LearnedSettings:
    """The settings with the loss for so many texts where none is given.

    Permuted answers stay: they are the control of what knows nothing of the experts' skills, and predictions would
    tell it.
    """
    if settings.loss is not None or settings.labels == "permuted" or not _are_few(texts):
        return settings
    return settings.model_copy(update={"loss": FEW_TEXTS_LOSS})


def _folds(texts: Texts, settings: LearnedSettings) -> int:
    wanted = settings.folds
    if wanted is None:
        wanted = FOLDS if _are_few(texts) else 1
    return min(wanted, _fewest(texts))


def _are_few(texts: Texts) -> bool:
    return _fewest(texts) < FEW_TEXTS


def _fewest(texts: Texts) -> int:
    """The texts of the source that has the fewest, of those that have any."""
    return min((len(each) for each in texts.values() if each), default=1)


def _granularities(settings: LearnedSettings) -> tuple[Granularity, ...]:
    """Those of the settings that these settings can have: groups where there are some, columns of task vectors."""
    impossible = set() if settings.groups else {"groups"}
    impossible |= set() if settings.basis == "task_vectors" else {"column"}
    return tuple(each for each in settings.granularities if each not in impossible) or ("tensor",)


def _all_courses(texts: Texts, settings: LearnedSettings) -> list[LearnedSettings]:
    """The settings of all trainings that a choice may make, the finest granularity as the one that is chosen."""
    folds, granularities = _folds(texts, settings), _granularities(settings)
    tried = [(each, settings.penalties[0]) for each in granularities]
    if folds > 1:
        tried += [(granularities[-1], penalty) for penalty in settings.penalties[1:]]
    trials = [
        _trial(settings, granularity, penalty=penalty, fold=fold, folds=folds)
        for granularity, penalty in tried
        for fold in range(folds)
    ]
    last = Tried(granularity=granularities[-1], penalty=0.0, steps=trials[-1].steps, losses=())
    return [*trials, _final(settings, granularities[-1], tried=last, folds=folds)]


def _trial_steps(settings: LearnedSettings, folds: int) -> int:
    """The most steps of a trial; by default with folds those of the result, whose number they have to find."""
    if settings.trial_steps is not None:
        return settings.trial_steps
    return settings.steps if folds > 1 else TRIAL_STEPS


def _trial(
    settings: LearnedSettings, granularity: Granularity, *, penalty: float, fold: int, folds: int
) -> LearnedSettings:
    """The settings of a trial. With folds it lasts as long as its loss does not rise for long."""
    share = 1 / folds if folds > 1 else settings.stop_share or 1 / FOLDS
    changes = {
        "granularity": granularity,
        "penalty": penalty,
        "fold": fold,
        "stop_share": share,
        "steps": _trial_steps(settings, folds),
    }
    return settings.model_copy(update=changes)


def _final(settings: LearnedSettings, granularity: Granularity, *, tried: Tried, folds: int) -> LearnedSettings:
    """The settings of the training that gives the result: with folds on all texts, in the steps that were best."""
    changes: dict[str, object] = {"granularity": granularity, "penalty": tried.penalty}
    if folds > 1:
        changes |= {"stop_share": 0.0, "steps": max(1, tried.steps)}
    return settings.model_copy(update=changes)

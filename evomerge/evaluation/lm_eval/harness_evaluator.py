"""The evaluator of packs: scores merges on tasks of lm-eval.

Once per worker tasks are loaded, prompts built with frozen few-shot examples, and texts tokenised. Per candidate there
are only forward passes, filters, `process_results` and aggregation.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance

from evomerge.checkpoints.chat_date import DATE, WARNING
from evomerge.engine.batching import depends_on_order
from evomerge.engine.flat import largest_batch
from evomerge.engine.model_check import check_model
from evomerge.engine.probe import vocabulary_of
from evomerge.engine.protocol import BoundedEngine, Engine, Lengths, run_through
from evomerge.engine.transformers_engine import SHORTEST, TransformersEngine
from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.evaluation.aggregates import WEIGHTED, standard_error
from evomerge.evaluation.calibration_texts import prompt_and_answer, read_texts, tokenised, wrong_options
from evomerge.evaluation.evaluator import CalibrationText, Candidate, HarnessScores, ScoringStep
from evomerge.evaluation.lm_eval.answering import answer_in_steps
from evomerge.evaluation.lm_eval.cached_tokenizer import CachedTokenizer
from evomerge.evaluation.lm_eval.encoding import EncodedInstances, Instances, encode
from evomerge.evaluation.lm_eval.harness_seeds import harness_seeds
from evomerge.evaluation.lm_eval.metrics import check_metric, filter_responses, gold_of, metric_of, outcome_of
from evomerge.evaluation.lm_eval.model import PreparedLM
from evomerge.evaluation.lm_eval.prompts import Prompts
from evomerge.evaluation.lm_eval.request_warnings import cut_prompts, shared_questions
from evomerge.evaluation.lm_eval.tasks import builtin_configs, documents_of, load_tasks, refuse_leaking_examples
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.packs.items import ItemBlock, Part, Split
from evomerge.packs.pack import Pack
from evomerge.packs.split import check_split, make_split
from evomerge.seeding import derive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORED_PARTS: tuple[Part, Part] = ("search", "held_out")
MOST_VIEWS = 8  # live models for which requests are kept, as many as a bank keeps
CPU_BATCH = 64
CPU_LOGITS = 2**28  # logits of one batch on a CPU: 1 GiB in fp32


def transformers_engine(lm: PreparedLM) -> Engine[Any]:
    """The engine that runs the live model of lm-eval's view."""
    return TransformersEngine(lm.model, lm.reader, max_length=lm.max_length, batch_size=lm.batch_size, state=lm.state)


@dataclass(frozen=True, kw_only=True)
class _PreparedBlock:
    """A block of items, ready to be scored.

    Attributes:
        instances: lm-eval's requests; their responses are those of the last run.
        encoded: the same as token ids.
        prepared: the same as the engine has arranged them.
    """

    instances: Instances
    encoded: EncodedInstances
    prepared: Any


class _LiveView:
    """One live model as lm-eval and an engine see it, with everything that has been prepared for it."""

    def __init__(self, lm: PreparedLM, engine: Engine[Any]) -> None:
        self.lm = lm
        self.engine = engine
        self.lengths: dict[Part, Lengths] = {}
        self.blocks: dict[ItemBlock, _PreparedBlock] = {}

    def forget_chosen(self) -> None:
        """Forget the blocks of chosen items."""
        self.blocks = {items: block for items, block in self.blocks.items() if items.chosen is None}


class _LiveViews:
    """The views of the live models that were scored last: one for each depth of candidates."""

    def __init__(self) -> None:
        self._views: list[_LiveView] = []  # the latest one last

    def of(self, model: PreTrainedModel | None) -> _LiveView | None:
        """The view of a model, or the latest one; None where there is none."""
        return next((view for view in reversed(self._views) if model is None or view.lm.model is model), None)

    def use(self, view: _LiveView) -> None:
        """Make a view the latest one, and forget the one that was used longest ago where there are too many."""
        self._views = [*(each for each in self._views if each is not view), view][-MOST_VIEWS:]


class HarnessEvaluator:
    """Scores merges on the tasks of a pack with lm-eval. See `Evaluator` for what that promises.

    Args:
        pack: the evaluator pack.
        tokenizer: the tokenizer of the base model; it is copied.
        split: the study's item split; computed from the documents without it.
        seed: key of the item order and of the few-shot examples.
        batch_size: sequences in a forward pass; found for the first model without it.
        device: that `lm_eval` is told to use in printed commands; scoring happens where the live model is.
        allow: what the user has allowed, see `check_allowed`.
        engine: opens the engine that answers the requests, from lm-eval's view of the live model.
        engine_identity: part of the fingerprint, for an engine with other scores than those of transformers.

    Raises:
        InvalidInput: unknown task, metric or filter, code or a benchmark's test set that is not allowed, a metric
            without a number per item, or held-out items among the few-shot examples.
        OtherSpec: the documents are not those of the given split.
    """

    def __init__(
        self,
        pack: Pack,
        tokenizer: Any,
        *,
        split: Split | None = None,
        seed: int,
        batch_size: int | None = None,
        device: str | None = None,
        allow: Collection[str] = (),
        engine: Callable[[PreparedLM], Engine[Any]] = transformers_engine,
        engine_identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.pack = pack
        self.device = device
        self.remote_code = "remote_code" in allow
        self.tasks: Mapping[str, Any] = load_tasks(pack, allow)
        self._seed = seed
        self._batch_size = batch_size
        self._open_engine = engine
        self._engine_identity = [dict(engine_identity)] if engine_identity else []
        self._tokenizer = CachedTokenizer(tokenizer)
        self._metrics = {entry.task: metric_of(self.tasks[entry.task], entry) for entry in pack.tasks}
        self._split = _split(pack, self.tasks, split, seed)
        refuse_leaking_examples(pack, self.tasks, self._split)
        self.prompts = Prompts(pack, self.tasks, self._split, tokenizer=self._tokenizer, fewshot_seed=self.fewshot_seed)
        self._views = _LiveViews()

    @property
    def fingerprint(self) -> str:
        content: list[Any] = [
            self.pack.fingerprint,
            self._seed,
            self._split.digests,
            builtin_configs(self.pack, self.tasks),
        ]
        content += self._engine_identity
        content += [{"date of chats": DATE}] if self.dated else []  # earlier releases asked with today's date
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def dated(self) -> bool:
        """Whether prompts have `DATE` where lm-eval would write today's, as the chat template asks for it."""
        return self.pack.chat_template and self._tokenizer.asks_for_today

    @property
    def split(self) -> Split:
        return self._split

    @property
    def weights(self) -> dict[str, float]:
        return {entry.task: entry.weight for entry in self.pack.tasks}

    @property
    def batch_size(self) -> int | None:
        """Sequences in a forward pass; None until it has been set or found."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int | None) -> None:
        if size != self._batch_size:
            self._batch_size, self._views = size, _LiveViews()

    @property
    def fewshot_seed(self) -> int:
        """Seed of the few-shot sampler of every task, for every part."""
        return derive(self._seed, "few-shot examples") % 2**31

    def score(self, candidate: Candidate, items: ItemBlock) -> Scores:
        """Score a candidate on a block of items. Tasks that have no items there are left out.

        Raises:
            MergeError: the candidate computes NaN, or a metric of it is not a number.
        """
        return run_through(self.score_by_steps(candidate, items))

    def score_by_steps(
        self, candidate: Candidate, items: ItemBlock, state: bytes | None = None
    ) -> Generator[ScoringStep, None, Scores]:
        """See `ContinuableEvaluator`. A step is a forward pass of the engine, or texts that lm-eval writes itself."""
        started = time.perf_counter()
        known = self._views.of(candidate.skeleton() if candidate.skeleton is not None else None)
        if known is None or items not in known.blocks:
            self._prepare(candidate.reference(), items)
        prepared = time.perf_counter()
        view = self._prepare(candidate.model(), items)
        lm, engine, block = view.lm, view.engine, view.blocks[items]
        merged = time.perf_counter()
        engine.load({})  # the merge is written into the live model's own tensors
        tokens = yield from answer_in_steps(lm, engine, block.encoded, block.prepared, state)
        ran = time.perf_counter()
        ids = self._split.items(items)
        tasks = {name: self._task_scores(name, ids[name], block.instances[name]) for name in self.tasks if ids[name]}
        seconds = {"prepare": prepared - started, "forward": ran - merged, "metrics": time.perf_counter() - ran}
        return Scores(tasks, seconds, tokens)

    def instances(self, items: ItemBlock) -> Instances:
        """lm-eval's requests of a block that has been scored, with the responses of the last candidate."""
        return self._scored(items).instances

    def prepared(self, items: ItemBlock) -> Any:
        """The requests of a block that has been scored, as the engine has arranged them."""
        return self._scored(items).prepared

    def _scored(self, items: ItemBlock) -> _PreparedBlock:
        latest = self._views.of(None)
        if latest is None or items not in latest.blocks:
            raise InvalidInput(f"{items} has not been scored yet; call score first")
        return latest.blocks[items]

    def find_batch_size(self, model: PreTrainedModel) -> int:
        """The batch size for this kind of model and device: a power of two, the same at every call.

        On a GPU it is doubled until the longest request no longer fits, and then one step smaller than the last that
        did; elsewhere a fixed number, smaller where the logits of a batch would be large. Held-out requests count: if
        they are longer, the memory would run out in the verdict, after the whole search.
        """
        lm = self._lm(model, batch_size=1)
        lengths = [self._lengths(lm, part) for part in SCORED_PARTS]
        for each in lengths:
            _check_model(lm, each)
        longest = max(each.longest for each in lengths)
        if model.device.type == "cuda":
            writes = any(each.written for each in lengths)
            return largest_batch(model, max(longest, SHORTEST), writes=writes)
        head = model.get_output_embeddings()
        vocabulary = vocabulary_of(model) if head is None else head.weight.shape[0]
        fitting = max(1, CPU_LOGITS // (longest * vocabulary))
        return min(CPU_BATCH, 1 << (fitting.bit_length() - 1))

    def check_requests(self, model: PreTrainedModel) -> list[str]:
        """See `ModelEvaluator`."""
        lm = self._lm(model, batch_size=1)
        search, held_out = self.prompts.part("search"), self.prompts.part("held_out")
        encode(lm, search)
        encode(lm, held_out)
        for name in self.tasks:
            check_metric(name, self.tasks[name], self._metrics[name], search[name] | held_out[name])
        dated = [WARNING] if self.dated else []
        return [*dated, *shared_questions(self.tasks, search, held_out), *cut_prompts(lm, search, held_out)]

    def check_model(self, model: PreTrainedModel) -> None:
        """See `ModelEvaluator`."""
        lm = self._lm(model, batch_size=1)
        for part in SCORED_PARTS:
            _check_model(lm, self._lengths(lm, part))

    def harness_scores(self, model: PreTrainedModel) -> HarnessScores:
        """See `ModelEvaluator`."""
        lm = self._lm(model, batch_size=1)
        requests = [encode(lm, self.prompts.part(part)).requests for part in SCORED_PARTS]
        lengths = [each.lengths(lm.max_length) for each in requests]
        engine = TransformersEngine(model, lm.reader, max_length=lm.max_length, batch_size=1, state=lm.state)
        ways = [engine.sharing(each) for each in lengths]
        mixes = all(scoring.padding and writing.padding for scoring, writing in ways)
        mixes = mixes and all(engine.writes_alike_in_company(prompt) for each in requests for prompt in each.prompts)
        never = any(depends_on_order(model, each.read, each.longest, lm.state.restore) for each in lengths)
        lm.state.restore()
        return HarnessScores(one_by_one=not mixes, never=never)

    def calibration(self, task: str, items: int) -> list[CalibrationText]:
        """See `CalibratingEvaluator`."""
        if task not in self.tasks:
            raise unknown_name("task for calibration", task, self.tasks)
        ids = self._split.parts["calibration"][task][:items]
        if not ids:
            raise InvalidInput(
                f"task {task!r} of evaluator {self.pack.name!r} has no calibration items; "
                "give its split a calibration part, or name a file"
            )
        requests = self.prompts.part("calibration")[task]
        return [self._calibration_text(task, requests[item]) for item in ids]

    def read_calibration(self, file: Path, items: int) -> list[CalibrationText]:
        """See `CalibratingEvaluator`."""
        return read_texts(file, items, self._tokenizer.encode_text)

    def _calibration_text(self, task: str, requests: Sequence[Instance]) -> CalibrationText:
        encode = self._tokenizer.encode_text
        prompt, answer = prompt_and_answer(self.tasks[task], requests, chat=self.pack.chat_template)
        others = [tokenised(*option, encode) for option in wrong_options(self.tasks[task], requests)]
        return replace(tokenised(prompt, answer, encode), others=tuple(others))

    def _prepare(self, model: PreTrainedModel, items: ItemBlock) -> _LiveView:
        """Have a block ready for a model. Its weights change in place; only another model object needs another view."""
        view = self._views.of(model)
        if view is None:
            self._batch_size = self._batch_size or self.find_batch_size(model)
            lm = self._lm(model, self._batch_size)
            view = _LiveView(lm, self._opened_engine(lm))
        self._views.use(view)
        if items not in view.blocks:
            if items.chosen is not None:  # of one candidate: no other will ask for it
                view.forget_chosen()
            view.blocks[items] = self._block(view, items)
        return view

    def _opened_engine(self, lm: PreparedLM) -> Engine[Any]:
        """An engine that can hold the requests of a whole study, the held-out ones among them."""
        engine = self._open_engine(lm)
        if isinstance(engine, BoundedEngine):
            for part in SCORED_PARTS:
                engine.check_requests(encode(lm, self.prompts.part(part)).requests)
        return engine

    def _block(self, view: _LiveView, items: ItemBlock) -> _PreparedBlock:
        part = items.part
        if part not in view.lengths:
            view.lengths[part] = self._lengths(view.lm, part)
        ids = self._split.items(items)
        # Sorted, as lm-eval would aggregate them: sums of floats depend on their order.
        instances = {
            name: {item: by_item[item] for item in sorted(ids[name])}
            for name, by_item in self.prompts.part(part).items()
        }
        encoded = encode(view.lm, instances)
        prepared = view.engine.prepare(encoded.requests, view.lengths[part])
        return _PreparedBlock(instances=instances, encoded=encoded, prepared=prepared)

    def _lm(self, model: PreTrainedModel, batch_size: int) -> PreparedLM:
        return PreparedLM(model, self._tokenizer, self.pack.max_length, batch_size)

    def _lengths(self, lm: PreparedLM, part: Part) -> Lengths:
        """The lengths of all requests of a part, so that an item is scored the same way in whatever block it is."""
        return encode(lm, self.prompts.part(part)).requests.lengths(lm.max_length)

    def _task_scores(self, name: str, ids: tuple[int, ...], requests: Mapping[int, Sequence[Instance]]) -> TaskScores:
        task, metric = self.tasks[name], self._metrics[name]
        for instances in requests.values():
            filter_responses(metric, list(instances))
        found = {item: outcome_of(name, task, metric, item, instances) for item, instances in requests.items()}
        values = [value for value, _ in found.values()]
        try:
            with harness_seeds():
                value = float(metric.aggregate(values))
        except OverflowError:
            raise MergeError(f"task {name!r}: {metric.name} of the candidate is too large for a number") from None
        outcomes = tuple(found[item][1] for item in ids)
        weights = tuple(float(found[item][0][1]) for item in ids) if metric.kind in WEIGHTED else None
        gold = [gold_of(task, metric, requests[item]) for item in ids]
        return TaskScores(
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            items=ids,
            outcomes=outcomes,
            value=value,
            stderr=standard_error(metric.kind, outcomes, weights, value),
            aggregate=metric.kind,
            weights=weights,
            gold=None if None in gold else tuple(number for number in gold if number is not None),
        )


def _check_model(lm: PreparedLM, lengths: Lengths) -> None:
    """Run the model at the lengths of requests. See `check_model`."""
    if lengths.scored or lengths.written:
        check_model(lm.model, lm.state, lengths.shortest, lengths.longest)


def _split(pack: Pack, tasks: Mapping[str, Any], stored: Split | None, seed: int) -> Split:
    documents = {name: list(documents_of(task)) for name, task in tasks.items()}
    if stored is None:
        return make_split(documents, pack.split, seed, {entry.task: entry.limit for entry in pack.tasks})
    check_split(stored, documents, pack.split)
    return stored

"""The lm-eval adapter: the one file that knows lm-eval, and the private handles of it that we need.

Once per worker tasks are loaded, prompts built with frozen few-shot examples, and texts tokenised. Per candidate there
are only forward passes, filters, `process_results` and aggregation.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, cast

import torch
from jinja2.exceptions import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import LogitsProcessor, LogitsProcessorList

from evomerge.engine.batching import ANY_SCORING, ANY_WRITING, Scoring, Writing, find_scoring, find_writing
from evomerge.engine.block import SHORTEST, Block, Lengths, encode, lengths_of, prepare_block
from evomerge.engine.flat import largest_batch, not_a_number
from evomerge.engine.greedy import Prompt, Reader, end_tokens, is_plain_greedy
from evomerge.engine.live_state import LiveState
from evomerge.engine.model_check import check_model
from evomerge.engine.probe import vocabulary_of
from evomerge.engine.protocol import Pair
from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.evaluation.aggregates import CUSTOM, WEIGHTED, standard_error
from evomerge.evaluation.cached_tokenizer import CachedTokenizer
from evomerge.evaluation.calibration import prompt_and_answer, read_texts, tokenised
from evomerge.evaluation.command import lm_eval_command
from evomerge.evaluation.evaluator import CalibrationText, Candidate, ItemBlock, Part, Scores, Split, TaskScores
from evomerge.evaluation.pack import FieldSplit, Pack, PackTask, check_allowed, refuse_test_split
from evomerge.evaluation.split import check_split, content_hash, make_split
from evomerge.seeding import derive

_log = logging.getLogger(__name__)

CPU_BATCH = 64
CPU_LOGITS = 2**28  # logits of one batch on a CPU: 1 GiB in fp32

# Metrics of a whole corpus, or of pairs of a gold label and a prediction: no number belongs to one item.
_CORPUS_AGGREGATES = frozenset({"f1", "matthews_corrcoef", "bleu", "chrf", "chrf++", "ter", "bypass", "nanmean"})


@dataclass(frozen=True)
class _Metric:
    """How the responses to a task's requests become numbers.

    Attributes:
        name: the metric, as lm-eval prints it.
        filter: lm-eval's filter ensemble that the responses go through first.
        aggregate: the task's own aggregation.
        kind: lm-eval's name of the aggregation, "custom" where it has none.
        higher_is_better: direction, as the task declares it.
    """

    name: str
    filter: Any
    aggregate: Callable[[Sequence[Any]], float]
    kind: str
    higher_is_better: bool


class PreparedLM(HFLM):  # type: ignore[misc]
    """lm-eval's view of the live model: tokenisation and generation as lm-eval does them, each text encoded once."""

    def __init__(self, model: Any, tokenizer: CachedTokenizer, max_length: int | None, batch_size: int) -> None:
        plain = tokenizer.plain
        if plain.bos_token_id is None and plain.eos_token_id is None:
            raise InvalidInput(
                "the base's tokenizer has neither a start nor an end token, which lm-eval needs before and behind a "
                "text; set bos_token or eos_token in its files"
            )
        super().__init__(pretrained=model, tokenizer=plain, max_length=max_length, batch_size=batch_size)
        self.state = LiveState(model)
        if self.backend != "causal":
            raise InvalidInput(f"{type(model).__name__} is no decoder-only language model; only those can be scored")
        self.tokenizer = tokenizer
        self._max_length = self.max_length
        self.processed = 0  # tokens read and written by lm-eval's own generation
        self.reader = Reader(
            self.tok_decode,
            partial(self.tok_decode, skip_special_tokens=False),
            frozenset(plain.all_special_ids),
            # Decoding may remove the blank before " n't" and the like: a text is only certain that much further on.
            len(" n't") if getattr(plain, "clean_up_tokenization_spaces", False) else 0,
        )

    def pairs(self, instance: Instance) -> list[Pair]:
        """The token sequences that a request for a log-likelihood is made of: lm-eval's encoding of it."""
        if instance.request_type == "loglikelihood_rolling":
            windows = get_rolling_token_windows(
                self.tok_encode(instance.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            return [make_disjoint_window(window) for window in windows]
        context, continuation = instance.args
        if context:
            return [self._encode_pair(context, continuation)]
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        if tokens and tokens[0] == self.prefix_token_id:
            return [(tokens[:1], tokens[1:])]
        return [([self.prefix_token_id], tokens)]

    def prompt(self, instance: Instance) -> Prompt:
        """A request for a text as tokens: lm-eval's encoding of it, and its reading of the settings.

        Not `plain` if only lm-eval's own way of generating can tell what it gives: with settings that change what
        greedy decoding writes, with a stop string that stops everything, and where the model's generation does not end
        at the tokenizer's end token, so that the length of a text depends on the others of its batch.

        Raises:
            InvalidInput: as many tokens are to be written as the model can hold, or nothing is to be continued.
        """
        context, settings = instance.args
        options = normalize_gen_kwargs(settings, self.max_gen_toks)
        if self.eot_token_id is None:
            raise InvalidInput("the tokenizer has no end token, at which texts end; set eos_token in its files")
        ending = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(options.pop("until", None), eos=ending)
        limit = options.pop("max_gen_toks")
        if limit >= self.max_length:
            raise InvalidInput(
                f"the model may write {limit} tokens, but it holds {self.max_length} with the prompt; set max_gen_toks "
                "lower"
            )
        tokens, _ = self.tok_batch_encode([context], left_truncate_len=self.max_length - limit)
        if not tokens.numel():
            raise InvalidInput(f"the prompt {context!r} has no tokens, so there is nothing to continue")
        plain = (
            {"temperature": 0.0, **options} == {"temperature": 0.0, "do_sample": False}
            and all(stops)
            and self.think_end_token is None
            and is_plain_greedy(self.model)
            and self.eot_token_id in end_tokens(self.model)
        )
        return Prompt(tuple(tokens[0].tolist()), limit, tuple(stops), plain)

    def write(self, instances: list[Instance], batch_size: int) -> list[str]:
        """The texts that lm-eval itself gives, so many at once."""
        before, self.batch_size_per_gpu = self.batch_size, batch_size
        try:
            return self.generate_until(instances, disable_tqdm=True)
        finally:
            self.batch_size_per_gpu = before

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's own generation, on prompts with and without a leading BOS text apart.

        It adds special tokens to all prompts of a batch or to none, as the first of them begins: a text would depend
        on its neighbours.
        """
        texts: dict[int, str] = {}
        for begins in (False, True):
            places = [place for place, each in enumerate(requests) if self._begins(each) is begins]
            alike = [requests[place] for place in places]
            found = super().generate_until(alike, disable_tqdm=disable_tqdm) if alike else []
            texts.update(zip(places, found, strict=True))
        return [texts[place] for place in range(len(requests))]

    def _begins(self, request: Instance) -> bool:
        return bool(has_bos_prefix(request.args[0], self.tokenizer.bos_token))

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        self.state.reset()
        watch = _NanWatch()
        options["logits_processor"] = LogitsProcessorList([watch])
        tokens: torch.Tensor = super()._model_generate(context, max_length, stop, **options)
        if watch.seen is not None and bool(watch.seen):
            raise not_a_number()
        self.processed += tokens.numel()
        return tokens


class _NanWatch(LogitsProcessor):  # type: ignore[misc]
    """Notices logits that are not numbers, of which greedy decoding would silently take the first token."""

    def __init__(self) -> None:
        self.seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        broken = scores.isnan().any()
        self.seen = broken if self.seen is None else self.seen | broken
        return scores


class PreparedTask(ConfigurableTask):  # type: ignore[misc]
    """A task that renders the templates of a frozen item once; lm-eval compiles and renders them for every result."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._rendered: dict[tuple[str, int], Any] = {}
        self._documents: list[Any] = []  # keeps them alive, and with that their ids taken
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    @property
    def task_name(self) -> str:
        """The task's name; lm-eval's property draws a spare name from the global generator at each call."""
        return str(self.config.task)

    def remember(self, document: Any) -> None:
        self._documents.append(document)
        rendered = {"text": self.doc_to_text(document), "target": self.doc_to_target(document)}
        if self.config.doc_to_choice is not None:
            rendered["choice"] = self.doc_to_choice(document)
        self._rendered.update({(what, id(document)): value for what, value in rendered.items()})

    def doc_to_text(self, doc: Any, doc_to_text: Any = None) -> Any:
        key = ("text", id(doc))
        known = doc_to_text is None and key in self._rendered
        return self._rendered[key] if known else super().doc_to_text(doc, doc_to_text)

    def doc_to_target(self, doc: Any, doc_to_target: Any = None) -> Any:
        key = ("target", id(doc))
        known = doc_to_target is None and key in self._rendered
        return self._rendered[key] if known else super().doc_to_target(doc, doc_to_target)

    def doc_to_choice(self, doc: Any, doc_to_choice: Any = None) -> Any:
        key = ("choice", id(doc))
        known = doc_to_choice is None and key in self._rendered
        return self._rendered[key] if known else super().doc_to_choice(doc, doc_to_choice)


class HarnessEvaluator:
    """Scores merges on the tasks of a pack with lm-eval. See `Evaluator` for what that promises.

    Args:
        pack: the evaluator pack.
        tokenizer: the tokenizer of the base model; it is copied.
        split: the study's item split; computed from the documents without it.
        seed: key of the item order and of the few-shot examples.
        batch_size: sequences in a forward pass; found for the first model without it.
        device: what `lm_eval` is told to use in `commands`; scoring happens where the live model is.
        allow: what the user has allowed, see `check_allowed`.

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
    ) -> None:
        self.pack = pack
        self._seed = seed
        self._batch_size = batch_size
        self._device = device
        self._remote_code = "remote_code" in allow
        self._tokenizer = CachedTokenizer(tokenizer)
        self._tasks = load_tasks(pack, allow)
        self._metrics = {entry.task: _metric(self._tasks[entry.task], entry) for entry in pack.tasks}
        self._split = _split(pack, self._tasks, split, seed)
        _refuse_leaking_examples(pack, self._tasks, self._split)
        self._parts: dict[Part, dict[str, dict[int, list[Instance]]]] = {}
        self._lm: PreparedLM | None = None
        self._ways: dict[Part, tuple[Scoring, Writing]] = {}
        self._blocks: dict[ItemBlock, Block] = {}

    @property
    def fingerprint(self) -> str:
        content = [self.pack.fingerprint, self._seed, self._split.digests, _builtin_configs(self.pack, self._tasks)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

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
            self._batch_size, self._lm = size, None

    @property
    def fewshot_seed(self) -> int:
        """What lm-eval's few-shot sampler of every task starts from, for every part."""
        return derive(self._seed, "few-shot examples") % 2**31

    def score(self, candidate: Candidate, items: ItemBlock) -> Scores:
        """Score a candidate on a block of items. Tasks that have no items there are left out.

        Raises:
            MergeError: the candidate computes NaN, or a metric of it is not a number.
        """
        started = time.perf_counter()
        if self._lm is None or items not in self._blocks:
            self._prepare(candidate.reference(), items)
        prepared = time.perf_counter()
        model = candidate.model()
        if self._lm is None or self._lm.model is not model:
            self._prepare(model, items)
        lm, block = cast(PreparedLM, self._lm), self._blocks[items]
        merged = time.perf_counter()
        lm.processed = 0
        lm.state.restore()
        block.respond(lm, model, lm.state.reset)
        ran = time.perf_counter()
        ids = self._split.items(items)
        tasks = {name: self._task_scores(name, ids[name], block.items[name]) for name in self._tasks if ids[name]}
        seconds = {"prepare": prepared - started, "forward": ran - merged, "metrics": time.perf_counter() - ran}
        return Scores(tasks, seconds, block.tokens + lm.processed)

    def find_batch_size(self, model: Any) -> int:
        """The batch size for this kind of model and device: a power of two, the same at every call.

        On a GPU it is doubled until the longest request of the search no longer fits, and then one step smaller than
        the last that did; elsewhere a fixed number, smaller where the logits of a batch would be large.
        """
        lm = PreparedLM(model, self._tokenizer, self.pack.max_length, batch_size=1)
        lengths = self._lengths(lm, "search")
        _check_model(lm, lengths)
        longest = lengths.longest
        if model.device.type == "cuda":
            return largest_batch(model, max(longest, SHORTEST))
        head = model.get_output_embeddings()
        vocabulary = vocabulary_of(model) if head is None else head.weight.shape[0]
        fitting = max(1, CPU_LOGITS // (longest * vocabulary))
        return min(CPU_BATCH, 1 << (fitting.bit_length() - 1))

    def check_requests(self, model: Any) -> None:
        """See `ModelEvaluator`."""
        lm = PreparedLM(model, self._tokenizer, self.pack.max_length, batch_size=1)
        encode(lm, self._part("search"))
        encode(lm, self._part("held_out"))
        for name, requests in self._part("search").items():
            if requests:
                _check_metric(name, self._tasks[name], self._metrics[name], next(iter(requests.values())))

    def check_model(self, model: Any) -> None:
        """See `ModelEvaluator`."""
        lm = PreparedLM(model, self._tokenizer, self.pack.max_length, batch_size=1)
        _check_model(lm, self._lengths(lm, "search"))
        _check_model(lm, self._lengths(lm, "held_out"))

    def depends_on_batch(self, model: Any) -> bool:
        """See `ModelEvaluator`."""
        lm = PreparedLM(model, self._tokenizer, self.pack.max_length, batch_size=1)
        ways = [self._find_ways(lm, part) for part in ("search", "held_out")]
        return not all(scoring.padding and writing.padding for scoring, writing in ways)

    def calibration(self, task: str, items: int) -> list[CalibrationText]:
        """See `CalibratingEvaluator`."""
        if task not in self._tasks:
            raise unknown_name("task for calibration", task, self._tasks)
        ids = self._split.parts["calibration"][task][:items]
        if not ids:
            raise InvalidInput(
                f"task {task!r} of evaluator {self.pack.name!r} has no calibration items; "
                "give its split a calibration part, or name a file"
            )
        requests = self._part("calibration")[task]
        texts = [prompt_and_answer(self._tasks[task], requests[item]) for item in ids]
        return [tokenised(prompt, answer, self._tokenizer.plain.encode) for prompt, answer in texts]

    def read_calibration(self, file: Path, items: int) -> list[CalibrationText]:
        """See `CalibratingEvaluator`."""
        return read_texts(file, items, self._tokenizer.plain.encode)

    def write_samples(self, samples_file: Path, items: ItemBlock) -> None:
        """Write the file for lm-eval's --samples: task -> sorted item ids (unsorted ones it labels wrongly)."""
        samples = {task: sorted(ids) for task, ids in self._split.items(items).items()}
        samples_file.write_text(json.dumps(samples), encoding="utf-8")

    def commands(
        self,
        model_path: str | Path,
        samples_file: Path,
        items: ItemBlock,
        *,
        dtype: str = "auto",
        one_by_one: bool = False,
    ) -> list[list[str]]:
        """The `lm_eval` command lines, to be run in the pack's folder, that repeat what `score` does on a whole part.

        One command, or several where tasks differ in their number of few-shot examples.

        Args:
            one_by_one: have lm-eval run batches of one request, for a model whose scores there depend on the batch. It
                is told so in any case where only some prompts begin with the BOS text: see `PreparedLM.generate_until`.

        Raises:
            InvalidInput: a part of a part, on which lm-eval would draw other few-shot examples.
        """
        if (items.start, items.stop) != (0, None) and any(map(_draws_examples, self._tasks.values())):
            raise InvalidInput(
                f"items {items.start} to {items.stop} of {items.part}: lm-eval draws other few-shot examples when "
                f"it is given some of the items; ask for the whole part"
            )
        numbers = dict.fromkeys(entry.num_fewshot for entry in self.pack.tasks)
        return [
            self._command(str(model_path), samples_file, items.part, dtype, number, one_by_one) for number in numbers
        ]

    def command_line(
        self,
        model_path: str | Path,
        samples_file: Path,
        items: ItemBlock,
        *,
        dtype: str = "auto",
        one_by_one: bool = False,
    ) -> str:
        """`commands` as one line for a shell, with the change into the pack's folder."""
        commands = self.commands(model_path, samples_file, items, dtype=dtype, one_by_one=one_by_one)
        return " && ".join(shlex.join(words) for words in (["cd", str(self.pack.folder)], *commands))

    def _command(
        self, model_path: str, samples_file: Path, part: Part, dtype: str, num_fewshot: int | None, one_by_one: bool
    ) -> list[str]:
        tasks = [entry.task for entry in self.pack.tasks if entry.num_fewshot == num_fewshot]
        one_by_one = one_by_one or self._begin_differently(part, tasks)
        return lm_eval_command(
            self.pack,
            tasks,
            model_path,
            samples_file,
            dtype=dtype,
            num_fewshot=num_fewshot,
            batch_size=1 if one_by_one else self._batch_size or CPU_BATCH,
            unsafe_code=any(map(_is_unsafe, self._tasks.values())),
            device=self._device,
            fewshot_seed=self.fewshot_seed,
            remote_code=self._remote_code,
        )

    def _begin_differently(self, part: Part, tasks: Sequence[str]) -> bool:
        """Whether some of the prompts of texts to be written begin with the BOS text, and others do not."""
        requests = self._part(part)
        prompts = (
            instance.args[0]
            for task in tasks
            for instances in requests[task].values()
            for instance in instances
            if instance.request_type == "generate_until"
        )
        return len({has_bos_prefix(prompt, self._tokenizer.bos_token) for prompt in prompts}) > 1

    def _prepare(self, model: Any, items: ItemBlock) -> None:
        """Have a block ready for a model. Its weights change in place; only another model object needs another view."""
        if self._lm is None or self._lm.model is not model:
            self._blocks.clear()
            self._ways.clear()
            self._batch_size = self._batch_size or self.find_batch_size(model)
            self._lm = PreparedLM(model, self._tokenizer, self.pack.max_length, self._batch_size)
        lm, part = self._lm, self._part(items.part)
        if items.part not in self._ways:
            self._ways[items.part] = self._find_ways(lm, items.part)
        ids = self._split.items(items)
        # Sorted, as lm-eval would aggregate them: sums of floats depend on their order.
        wanted = {name: {item: part[name][item] for item in sorted(ids[name])} for name in part}
        self._blocks[items] = prepare_block(lm, wanted, model, *self._ways[items.part])

    def _find_ways(self, lm: PreparedLM, part: Part) -> tuple[Scoring, Writing]:
        """Try out, with the weights at hand, how the requests of a part can share forward passes."""
        lengths = self._lengths(lm, part)
        _check_model(lm, lengths)
        reset = lm.state.reset
        try:
            scoring = find_scoring(lm.model, lengths.scored, reset) if lengths.scored else ANY_SCORING
            writing = find_writing(lm.model, lengths.written, reset) if lengths.written else ANY_WRITING
        finally:  # what trial passes leave in the model must not be taken for its state before the first pass
            lm.state.restore()
        return scoring, writing

    def _lengths(self, lm: PreparedLM, part: Part) -> Lengths:
        """The lengths of all requests of a part, so that an item is scored the same way in whatever block it is."""
        return lengths_of(encode(lm, self._part(part)), lm.max_length)

    def _part(self, part: Part) -> dict[str, dict[int, list[Instance]]]:
        """Task -> item -> its requests. Built for a whole part, as few-shot examples depend on what is drawn before."""
        if part not in self._parts:
            ids = self._split.parts[part]
            self._parts[part] = {name: self._requests(task, sorted(ids[name])) for name, task in self._tasks.items()}
        return self._parts[part]

    def _requests(self, task: Any, ids: list[int]) -> dict[int, list[Instance]]:
        if not ids:
            return {}  # lm-eval would take all documents
        pack = self.pack
        task.set_fewshot_seed(self.fewshot_seed)
        try:
            with redirect_stderr(io.StringIO()):  # lm-eval shows a progress bar for every task
                task.build_all_requests(
                    samples=ids,
                    system_instruction=pack.system_instruction,
                    apply_chat_template=pack.chat_template,
                    fewshot_as_multiturn=pack.chat_template,
                    chat_template=self._render_chat if pack.chat_template else None,
                )
        except Exception as error:  # anything: templates of the task and of the tokenizer are run here
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            raise InvalidInput(f"task {task.task_name!r}: its prompts cannot be built: {reason}") from error
        requests: dict[int, list[Instance]] = {item: [] for item in ids}
        for instance in task.instances:
            requests[ids[instance.doc_id]].append(instance)
        for instances in requests.values():
            instances.sort(key=lambda instance: instance.idx)
            if isinstance(task, PreparedTask):
                task.remember(instances[0].doc)
        return requests

    def _render_chat(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """What `HFLM.apply_chat_template` does; that method needs a model."""
        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(self._tokenizer.plain.apply_chat_template(history, **options))
        except TemplateError:
            without_system = [message for message in history if message["role"] != "system"]
            return str(self._tokenizer.plain.apply_chat_template(without_system, **options))

    def _task_scores(self, name: str, ids: tuple[int, ...], requests: Mapping[int, list[Instance]]) -> TaskScores:
        task, metric = self._tasks[name], self._metrics[name]
        metric.filter.apply([instance for instances in requests.values() for instance in instances])
        raw = {item: _raw(task, metric, instances) for item, instances in requests.items()}
        numbers = {item: _number(name, metric, value) for item, value in raw.items()}
        values = list(raw.values())
        try:
            value = float(metric.aggregate(values))
        except OverflowError:
            raise MergeError(f"task {name!r}: {metric.name} of the candidate is too large for a number") from None
        outcomes = tuple(numbers[item] for item in ids)
        weights = tuple(float(raw[item][1]) for item in ids) if metric.kind in WEIGHTED else None
        gold = [_gold(task, metric, requests[item]) for item in ids]
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


def _check_metric(name: str, task: Any, metric: _Metric, instances: list[Instance]) -> None:
    """Ask the metric of one item for a number, with responses that nobody gave.

    Raises:
        InvalidInput: the task's results have no such metric, or what it gives is no number.
    """
    made_up = {"generate_until": "", "loglikelihood_rolling": -1.0}
    for number, instance in enumerate(instances):
        instance.resps = [made_up.get(instance.request_type, (-1.0 - number, False))] * instance.repeats
    metric.filter.apply(instances)
    try:
        _number(name, metric, _raw(task, metric, instances))
    except InvalidInput:
        raise
    except Exception as error:  # a task's own functions, which these responses may not suit
        _log.info("task %s cannot be tried out: %s: %s", name, type(error).__name__, error)
    finally:
        for instance in instances:
            instance.resps, instance.filtered_resps = [], {}


def load_tasks(pack: Pack, allow: Collection[str]) -> dict[str, Any]:
    """The pack's lm-eval tasks with their documents, by name.

    Raises:
        InvalidInput: see `HarnessEvaluator`.
    """
    check_allowed(pack, allow)
    if pack.tasks_path is None:
        manager = TaskManager()
    else:
        manager = TaskManager(include_path=str(pack.tasks_path), include_defaults=False)
    members = [_member(pack, entry, manager.task_index) for entry in pack.tasks]
    try:
        # Only members of a group are built from their YAML and our overrides; a bare mapping replaces the YAML.
        tasks: dict[str, Any] = manager.load({"group": pack.name, "task": members})["tasks"]
    except Exception as error:  # anything: templates, data and code of the pack are run here for the first time
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:400]
        raise InvalidInput(f"lm-eval cannot load the tasks of evaluator {pack.name!r}: {reason}") from error
    for entry in pack.tasks:
        _check_task(tasks[entry.task], entry, allow, builtin=pack.tasks_path is None)
    return {entry.task: tasks[entry.task] for entry in pack.tasks}


def _member(pack: Pack, entry: PackTask, index: Mapping[str, Any]) -> dict[str, Any]:
    if entry.task not in index:
        raise unknown_name("task", entry.task, index)
    known = index[entry.task]
    if known.kind.name not in ("TASK", "PY_TASK"):
        raise InvalidInput(
            f"{entry.task!r} is a {known.kind.name.lower()} of tasks; list those of its tasks that shall count, each "
            f"with its metric"
        )
    own = {} if known.kind.name == "PY_TASK" else {"class": PreparedTask}
    file = pack.task_files.get(entry.task)
    return {"task": entry.task, **own, **(file.dataset(pack.folder) if file else {})}


def _check_task(task: Any, entry: PackTask, allow: Collection[str], *, builtin: bool) -> None:
    if builtin and "benchmark_test_sets" not in allow and task.has_test_docs():
        raise refuse_test_split(entry.task)
    if _is_unsafe(task) and "task_code" not in allow:
        raise InvalidInput(
            f"task {entry.task!r} runs code that the model writes; write 'task_code' into allow for that"
        )
    if getattr(task, "MULTIMODAL", False):
        raise InvalidInput(f"task {entry.task!r} needs images or sound; only text is scored")
    options = task.config.generation_kwargs or {}
    if options.get("do_sample", options.get("temperature", 0.0) != 0.0):
        raise InvalidInput(
            f"task {entry.task!r} draws what the model writes at random, so that a candidate would not score the same "
            f"twice; set do_sample: false in its generation_kwargs"
        )
    own = task.config.num_fewshot
    if own == 0 and entry.num_fewshot:
        raise InvalidInput(
            f"task {entry.task!r} fixes num_fewshot at 0, which lm-eval never overrides; remove it from the task, or "
            f"num_fewshot: {entry.num_fewshot} from the evaluator"
        )
    task.set_config("num_fewshot", own or 0 if entry.num_fewshot is None else entry.num_fewshot)


def _metric(task: Any, entry: PackTask) -> _Metric:
    filters = {each.name: each for each in task._filters}
    if entry.filter is not None and entry.filter not in filters:
        raise unknown_name(f"filter of task {entry.task!r}", entry.filter, filters)
    aggregations = task.aggregation()
    if entry.metric not in aggregations:
        raise unknown_name(f"metric of task {entry.task!r}", entry.metric, aggregations)
    aggregate = aggregations[entry.metric]
    kind = next((name for name, known in AGGREGATION_REGISTRY.items() if known is aggregate), CUSTOM)
    if kind in _CORPUS_AGGREGATES or entry.metric == "likelihood":
        others = ", ".join(sorted(set(aggregations) - {entry.metric})) or "none; add one to its metric_list"
        raise InvalidInput(
            f"metric {entry.metric!r} of task {entry.task!r} gives no number for every single item, which races and "
            f"paired comparisons need; its other metrics: {others}"
        )
    direction = task.higher_is_better().get(entry.metric)
    if not isinstance(direction, bool):
        raise InvalidInput(
            f"task {entry.task!r} does not say higher_is_better for {entry.metric!r}; add it to the task"
        )
    chosen = filters[entry.filter] if entry.filter else next(iter(filters.values()))
    return _Metric(entry.metric, chosen, aggregate, kind, direction)


def _split(pack: Pack, tasks: Mapping[str, Any], stored: Split | None, seed: int) -> Split:
    documents = {name: list(task.eval_docs) for name, task in tasks.items()}
    if stored is None:
        return make_split(documents, pack.split, seed, {entry.task: entry.limit for entry in pack.tasks})
    check_split(stored, documents, pack.split)
    return stored


def _refuse_leaking_examples(pack: Pack, tasks: Mapping[str, Any], split: Split) -> None:
    """Refuse few-shot examples that are held-out items: the prompts of the search would show them."""
    without = pack.split.field if isinstance(pack.split, FieldSplit) else None
    for name, task in tasks.items():
        if task.config.num_fewshot:
            documents = task.eval_docs
            held_out = {content_hash(documents[item], without) for item in split.parts["held_out"][name]}
            if any(content_hash(example, without) in held_out for example in task.sampler.fewshot_docs()):
                raise InvalidInput(
                    f"task {name!r} would draw held-out items as few-shot examples; give the task a fewshot_split with "
                    f"documents of its own, or set num_fewshot: 0"
                )


def _draws_examples(task: Any) -> bool:
    return bool(task.config.num_fewshot) and task.config.fewshot_config.sampler != "first_n"


def _is_unsafe(task: Any) -> bool:
    return bool(getattr(task, "UNSAFE_CODE", False))


def _builtin_configs(pack: Pack, tasks: Mapping[str, Any]) -> dict[str, str]:
    """The configurations of lm-eval's own tasks, which no file of the pack holds, as JSON."""
    if pack.tasks_path is not None:
        return {}
    elsewhere = ("metadata", "dataset_kwargs", "class")
    configs = {name: task.dump_config() for name, task in tasks.items()}
    return {
        name: json.dumps(
            {key: value for key, value in config.items() if key not in elsewhere}, sort_keys=True, default=_name_of
        )
        for name, config in configs.items()
    }


def _name_of(value: Any) -> str:
    """A function or class by its name; what `str` says of it holds an address."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _raw(task: Any, metric: _Metric, instances: list[Instance]) -> Any:
    responses = [instance.filtered_resps[metric.filter.name] for instance in instances]
    results = task.process_results(instances[0].doc, responses)
    if metric.name not in results:
        raise unknown_name(f"metric among the results of task {task.task_name!r}:", metric.name, results)
    return results[metric.name]


def _gold(task: Any, metric: _Metric, instances: list[Instance]) -> float | None:
    """Log-probability of an item's right answer, of the likeliest one where there are several."""
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE not in ("loglikelihood", "multiple_choice"):
        return None
    likelihoods = [float(instance.filtered_resps[metric.filter.name][0]) for instance in instances]
    if task.OUTPUT_TYPE == "loglikelihood":
        return likelihoods[0]
    document = instances[0].doc
    choices = task.doc_to_choice(document)
    target = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    right = [choices.index(target)] if target in choices else target if isinstance(target, list) else [target]
    known = [index for index in right if isinstance(index, int) and 0 <= index < len(choices)]
    return max((likelihoods[index] for index in known), default=None)


def _number(task: str, metric: _Metric, raw: Any) -> float:
    """The outcome of one item. Weighted perplexities keep the log-likelihood."""
    if metric.kind in WEIGHTED:
        raw = raw[0]
    elif metric.kind == "brier_score":
        raw = metric.aggregate([raw])
    if not isinstance(raw, Real):
        raise InvalidInput(
            f"metric {metric.name!r} of task {task!r} gives {type(raw).__name__} for an item, not a number; choose a "
            f"metric with a number for every item"
        )
    number = float(raw)
    if math.isnan(number):
        raise MergeError(f"task {task!r}: {metric.name} of an item is not a number (NaN)")
    return number

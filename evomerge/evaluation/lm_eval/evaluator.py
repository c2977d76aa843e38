"""The evaluator of packs: scores merges on tasks of lm-eval.

Once per worker tasks are loaded, prompts built with frozen few-shot examples, and texts tokenised. Per candidate there
are only forward passes, filters, `process_results` and aggregation.
"""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, cast

from jinja2.exceptions import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.models.utils import has_bos_prefix

from evomerge.engine.batching import (
    ANY_SCORING,
    ANY_WRITING,
    Scoring,
    Writing,
    depends_on_order,
    find_scoring,
    find_writing,
)
from evomerge.engine.block import SHORTEST, Block, Lengths, encode, lengths_of, prepare_block
from evomerge.engine.flat import largest_batch
from evomerge.engine.model_check import check_model
from evomerge.engine.probe import vocabulary_of
from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.evaluation.aggregates import WEIGHTED, standard_error
from evomerge.evaluation.calibration_texts import prompt_and_answer, read_texts, tokenised
from evomerge.evaluation.evaluator import (
    CalibrationText,
    Candidate,
    HarnessScores,
    ItemBlock,
    Part,
    Scores,
    Split,
    TaskScores,
)
from evomerge.evaluation.lm_eval.cached_tokenizer import CachedTokenizer
from evomerge.evaluation.lm_eval.metrics import check_metric, gold_of, metric_of, number_of, raw_of
from evomerge.evaluation.lm_eval.model import PreparedLM
from evomerge.evaluation.lm_eval.reproduction import lm_eval_command
from evomerge.evaluation.lm_eval.tasks import (
    PreparedTask,
    builtin_configs,
    is_unsafe,
    load_tasks,
    refuse_leaking_examples,
)
from evomerge.evaluation.packs.pack import Pack
from evomerge.evaluation.split import check_split, make_split
from evomerge.messages import in_one_line
from evomerge.seeding import derive

CPU_BATCH = 64
CPU_LOGITS = 2**28  # logits of one batch on a CPU: 1 GiB in fp32


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
        self._metrics = {entry.task: metric_of(self._tasks[entry.task], entry) for entry in pack.tasks}
        self._split = _split(pack, self._tasks, split, seed)
        refuse_leaking_examples(pack, self._tasks, self._split)
        self._parts: dict[Part, dict[str, dict[int, list[Instance]]]] = {}
        self._lm: PreparedLM | None = None
        self._ways: dict[Part, tuple[Scoring, Writing]] = {}
        self._blocks: dict[ItemBlock, Block] = {}

    @property
    def fingerprint(self) -> str:
        content = [self.pack.fingerprint, self._seed, self._split.digests, builtin_configs(self.pack, self._tasks)]
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
                check_metric(name, self._tasks[name], self._metrics[name], next(iter(requests.values())))

    def check_model(self, model: Any) -> None:
        """See `ModelEvaluator`."""
        lm = PreparedLM(model, self._tokenizer, self.pack.max_length, batch_size=1)
        _check_model(lm, self._lengths(lm, "search"))
        _check_model(lm, self._lengths(lm, "held_out"))

    def harness_scores(self, model: Any) -> HarnessScores:
        """See `ModelEvaluator`."""
        lm = PreparedLM(model, self._tokenizer, self.pack.max_length, batch_size=1)
        parts: tuple[Part, Part] = ("search", "held_out")
        ways = [self._find_ways(lm, part) for part in parts]
        mixes = all(scoring.padding and writing.padding for scoring, writing in ways)
        lengths = [self._lengths(lm, part) for part in parts]
        never = any(depends_on_order(model, each.read, each.longest, lm.state.restore) for each in lengths)
        lm.state.restore()
        return HarnessScores(one_by_one=not mixes, never=never)

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
            unsafe_code=any(map(is_unsafe, self._tasks.values())),
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
            reason = in_one_line(error)
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
        raw = {item: raw_of(task, metric, instances) for item, instances in requests.items()}
        numbers = {item: number_of(name, metric, value) for item, value in raw.items()}
        values = list(raw.values())
        try:
            value = float(metric.aggregate(values))
        except OverflowError:
            raise MergeError(f"task {name!r}: {metric.name} of the candidate is too large for a number") from None
        outcomes = tuple(numbers[item] for item in ids)
        weights = tuple(float(raw[item][1]) for item in ids) if metric.kind in WEIGHTED else None
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
    documents = {name: list(task.eval_docs) for name, task in tasks.items()}
    if stored is None:
        return make_split(documents, pack.split, seed, {entry.task: entry.limit for entry in pack.tasks})
    check_split(stored, documents, pack.split)
    return stored


def _draws_examples(task: Any) -> bool:
    return bool(task.config.num_fewshot) and task.config.fewshot_config.sampler != "first_n"

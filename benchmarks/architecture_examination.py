"""Takes one model of the zoo through a whole search, and compares every number and every weight with others' own.

A model is refused by `evomerge check`, or all of this holds, or its row has failed:

- a search and the export of its best trial come to their ends;
- every item of the winner, search and held-out, scores what lm-eval's `simple_evaluate` gives for the export, one
  request at a time, and every request gets the same response;
- every tensor of the base's checkpoint is in the export, with the bits of a merge that is computed here from the stored
  tensors in plain torch; transformers loads the export and misses no tensor;
- scoring it, then another candidate on longer sequences, then it again gives its numbers bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lm_eval
import torch
import yaml
from architecture_models import DTYPES, State, read_checkpoint, write_sources
from architecture_zoo import Specimen
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import load_spec, run_search
from evomerge.bank import WeightBank
from evomerge.baselines.named_recipes import source_rows
from evomerge.engine.live_state import LiveState
from evomerge.errors import EvomergeError, InvalidInput
from evomerge.evaluation import Candidate, ItemBlock, Pack, load_pack
from evomerge.evaluation.scores import Scores
from evomerge.export import export_merge
from evomerge.opening.inputs import Inputs, open_inputs
from evomerge.passes import fused_rule, kernels
from evomerge.passes.kernels import KernelKind
from evomerge.preflight import preflight
from evomerge.recipe import Recipe, Rule
from evomerge.spec import SearchSpec
from evomerge.study.rows import read_records, read_scores
from evomerge.study.stored_search import read_search
from evomerge.verdict import read_winner

EQUAL, REFUSED, FAILED = "equal", "refused by check", "FAILED"
SPACES = ("task-arithmetic-per-block", "linear-global")
SAMPLERS = ("random", "cma")
GIT = "lm_eval.evaluator.get_git_commit_hash"
SEARCH, BETWEEN = ItemBlock("search"), ItemBlock("calibration")

# Of a log-likelihood, absolute and relative. In 16 bits lm-eval's own numbers differ so much between batch sizes.
TOLERANCES = {"float32": (2e-4, 2e-5), "bfloat16": (0.5, 0.02), "float16": (0.1, 0.005)}


@dataclass(frozen=True)
class Row:
    """Result of one model.

    Attributes:
        verdict: EQUAL, REFUSED or FAILED.
        reason: of a refusal, or what differs.
        engine: whether requests share their prefixes ("tree") or are scored one by one ("flat"); "" where none were.
    """

    specimen: Specimen
    verdict: str
    reason: str
    engine: str
    seconds: float


class _Refused(Exception):
    """`check` refuses the model."""


def examine(specimen: Specimen, folder: Path, pack: Path) -> Row:
    """Write the model into a folder that does not exist yet, and examine it there with the pack."""
    started = time.perf_counter()
    engine, reason = "", ""
    try:
        with warnings.catch_warnings(), _compiling() if specimen.compiled else contextlib.nullcontext():
            warnings.simplefilter("ignore")
            engine, differences = _examined(specimen, folder, pack)
        verdict, reason = (FAILED, "; ".join(differences)) if differences else (EQUAL, "")
    except _Refused as refusal:
        verdict, reason = REFUSED, str(refusal).replace(f"{folder}/", "")
    except Exception as error:  # whatever it is, it is this model's failure, and the others' rows are wanted too
        verdict, reason = FAILED, f"{type(error).__name__}: {error}".replace(f"{folder}/", "")
    return Row(specimen, verdict, " ".join(reason.split()), engine, time.perf_counter() - started)


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Have merges of any size compiled, and wait for it."""

    def compile_and_wait(path: Path, kind: KernelKind) -> subprocess.Popen[bytes]:
        process = start(path, kind)
        process.wait()
        return process

    start = kernels._start_compiling
    with patch.object(kernels, "_start_compiling", compile_and_wait), patch.object(fused_rule, "WORTH_COMPILING", 0):
        yield


def _examined(specimen: Specimen, folder: Path, pack: Path) -> tuple[str, list[str]]:
    sources = write_sources(specimen, folder)
    spec = load_spec(_write_spec(specimen, folder, sources, pack))
    inputs = _checked(spec)
    try:
        run_search(spec, ray="none")
        out = folder / "best"
        export_merge(read_search(spec), "best", out)
    except EvomergeError as error:
        raise RuntimeError(f"check says ready, but {type(error).__name__}: {error}") from error
    recipe = Recipe.from_json((out / "recipe.json").read_text(encoding="utf-8"))
    model, loading = AutoModelForCausalLM.from_pretrained(
        out, dtype=DTYPES[spec.dtype], trust_remote_code=specimen.remote_code, output_loading_info=True
    )
    differences = [f"the export lacks {_some(loading['missing_keys'])}"] if loading["missing_keys"] else []
    differences += _weight_differences(recipe, {name: read_checkpoint(each) for name, each in sources.items()}, out)
    scoring = _Scoring(inputs, recipe)
    theirs = _simple_evaluate(model.eval(), out, load_pack(pack), scoring)
    differences += _score_differences(_stored_scores(spec), scoring.scores, theirs, TOLERANCES[spec.dtype])
    differences += _response_differences(scoring.responses, theirs, TOLERANCES[spec.dtype])
    differences += scoring.differences_of_another_time()
    return scoring.engine, differences


def _write_spec(specimen: Specimen, folder: Path, sources: Mapping[str, Path], pack: Path) -> Path:
    choice = zlib.crc32(specimen.name.encode())
    content = {
        "name": "architectures",
        "sources": [{"name": name, "location": str(path)} for name, path in sources.items()],
        "space": SPACES[choice % 2],
        "sampler": SAMPLERS[choice // 2 % 2],
        "evaluator": str(pack),
        "budget": {"trials": 3},
        "workers": {"count": 1},
        "baselines": ["uniform-soup"],
        "verdict": {"best": 1},
        "storage": f"journal:///{folder}/study.log",
        "artifacts": str(folder / "artifacts"),
        "dtype": specimen.merged,
        "seed": 1,
        "allow": list(specimen.allow),
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _checked(spec: SearchSpec) -> Inputs:
    """The opened inputs, once `check` has found nothing to refuse."""
    try:
        inputs = open_inputs(spec)
        preflight(inputs)
    except InvalidInput as error:
        raise _Refused(error) from error
    return inputs


class _Scoring:
    """The winner, another candidate on longer sequences, and the winner again, on one live model."""

    def __init__(self, inputs: Inputs, recipe: Recipe) -> None:
        self.evaluator: Any = inputs.evaluator
        bank = WeightBank(inputs.base, inputs.experts, dtype=DTYPES[recipe.dtype], device=torch.device("cpu"))
        experts = [expert.ref for expert in inputs.experts]
        other = source_rows(inputs.base.ref, experts, inputs.catalogue, recipe.dtype)[-1].recipe
        self.scores = self._score(bank, recipe, SEARCH)
        self.responses = self._responses()
        self._score(bank, other, BETWEEN)
        self._again = self._score(bank, recipe, SEARCH)
        self._responses_again = self._responses()

    def _score(self, bank: WeightBank, recipe: Recipe, items: ItemBlock) -> Scores:
        candidate = Candidate(
            key="", params={}, recipe=recipe, model=lambda: bank.materialize(recipe), base=bank.base_model
        )
        scores: Scores = self.evaluator.score(candidate, items)
        return scores

    def _responses(self) -> dict[tuple[str, int], list[Any]]:
        """(task, item) -> the response to each of its requests."""
        return {
            (task, item): [instance.resps[0] for instance in instances]
            for task, items in self.evaluator.prompts.part(SEARCH.part).items()
            for item, instances in items.items()
        }

    @property
    def engine(self) -> str:
        return "tree" if "Tree" in type(self.evaluator.prepared(SEARCH).scored).__name__ else "flat"

    def differences_of_another_time(self) -> list[str]:
        changed = [
            f"{task} {item}: {response} then {again}"
            for (task, item), responses in self.responses.items()
            for response, again in zip(responses, self._responses_again[task, item], strict=True)
            if response != again
        ]
        if changed:
            return [f"{len(changed)} responses differ after longer sequences: {changed[0]}"]
        if self.scores.tasks != self._again.tasks:
            return ["scores differ after longer sequences though responses do not"]
        return []


def _stored_scores(spec: SearchSpec) -> dict[str, Scores]:
    """Part -> the winner's outcomes as the study keeps them."""
    stored = read_search(spec)
    winner = read_winner(stored.study.user_attrs)
    if winner is None or stored.held_out is None:
        raise RuntimeError("the search has named no winner")
    trials = {"search": stored.study.get_trials(deepcopy=False)[winner.trial]}
    trials["held_out"] = next(row.trial for row in read_records(stored.held_out) if row.label == winner.label)
    found = {part: read_scores(stored.artifacts, stored.storage, trial) for part, trial in trials.items()}
    return {part: scores for part, scores in found.items() if scores is not None}


def _simple_evaluate(model: Any, out: Path, pack: Pack, scoring: _Scoring) -> dict[tuple[str, int], dict[str, Any]]:
    """(task, item) -> lm-eval's own sample of it, one request at a time, with its own loading, prompts and tokens."""
    parts = scoring.evaluator.split.parts
    ids = {task: sorted({*parts["search"][task], *parts["held_out"][task]}) for task in parts["search"]}
    tokenizer = AutoTokenizer.from_pretrained(out)
    # Half of its time goes into a report on the machine.
    with contextlib.chdir(pack.folder), patch("lm_eval.evaluator.add_env_info"), patch(GIT, return_value=""):
        results = lm_eval.simple_evaluate(
            model=_FreshLM(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=1,
                max_length=pack.max_length,
                softmax_dtype="float32",
            ),
            tasks=list(ids),
            task_manager=TaskManager(include_path=str(pack.tasks_path), include_defaults=False),
            samples=ids,
            bootstrap_iters=0,
        )
    return {(task, each["doc_id"]): each for task, samples in results["samples"].items() for each in samples}


class _FreshLM(HFLM):  # type: ignore[misc]
    """lm-eval's model, with what it keeps between requests put back before each of them.

    As it stands, lm-eval rotates a request by the frequencies that a longer one before it has left in a model with
    dynamic rotary embeddings, so that its numbers depend on the other requests. No other model here is changed by it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._state = LiveState(self.model)

    def _model_call(self, *inputs: Any, **options: Any) -> torch.Tensor:
        self._state.restore()
        logits: torch.Tensor = super()._model_call(*inputs, **options)
        return logits

    def _model_generate(self, *inputs: Any, **options: Any) -> torch.Tensor:
        self._state.restore()
        tokens: torch.Tensor = super()._model_generate(*inputs, **options)
        return tokens


def _score_differences(
    stored: Mapping[str, Scores],
    rescored: Scores,
    theirs: Mapping[tuple[str, int], Mapping[str, Any]],
    tolerance: tuple[float, float],
) -> list[str]:
    if lacking := {"search", "held_out"} - stored.keys():
        return [f"the study keeps no outcomes of {_some(lacking)}"]
    differences = [
        f"scored again, {task} is {rescored.tasks[task].value!r}, not {scores.value!r} as in the search"
        for task, scores in stored["search"].tasks.items()
        if scores.outcomes != rescored.tasks[task].outcomes
    ]
    wrong, total = [], 0
    for part, scores in stored.items():
        for task, outcomes in scores.tasks.items():
            for item, ours in zip(outcomes.items, outcomes.outcomes, strict=True):
                total += 1
                value = _outcome(outcomes.metric, theirs[task, item])
                exact = outcomes.metric in ("acc", "exact_match") and tolerance is TOLERANCES["float32"]
                if (
                    ours != value
                    if exact
                    else not _is_close(ours, value, tolerance) and not _is_coarse(outcomes.metric)
                ):
                    wrong.append(f"{part} {task} {item}: {ours:.6g}, lm-eval {value:.6g}")
    return differences + ([f"{len(wrong)} of {total} items differ: {wrong[0]}"] if wrong else [])


def _outcome(metric: str, sample: Mapping[str, Any]) -> float:
    if metric == "bits_per_byte":
        return float(sample[metric][0])
    if metric == "brier_score":
        gold, probabilities = sample[metric]
        return float(sum((p - (choice == gold)) ** 2 for choice, p in enumerate(probabilities)))
    return float(sample[metric])


def _is_coarse(metric: str) -> bool:
    """In 16 bits rounding decides between options that are nearly as good."""
    return metric in ("acc", "exact_match", "brier_score")


def _response_differences(
    ours: Mapping[tuple[str, int], list[Any]],
    theirs: Mapping[tuple[str, int], Mapping[str, Any]],
    tolerance: tuple[float, float],
) -> list[str]:
    exact = tolerance is TOLERANCES["float32"]
    wrong, total, largest = [], 0, 0.0
    for place, responses in ours.items():
        for our, (their,) in zip(responses, theirs[place]["resps"], strict=True):
            total += 1
            if isinstance(our, str):
                same = our == their or not exact
            else:
                (value, greedy), (expected, expected_greedy) = _pair(our), _pair(their)
                same = _is_close(value, expected, tolerance) and (greedy == expected_greedy or not exact)
                largest = max(largest, abs(value - expected))
            if not same:
                wrong.append(f"{' '.join(map(str, place))}: {our!r}, lm-eval {their!r}")
    if not wrong:
        return []
    return [f"{len(wrong)} of {total} responses differ, by up to {largest:.3g}: {wrong[0]}"]


def _pair(response: Any) -> tuple[float, bool]:
    return (float(response[0]), bool(response[1])) if isinstance(response, tuple | list) else (float(response), True)


def _is_close(ours: float, theirs: float, tolerance: tuple[float, float]) -> bool:
    return math.isclose(ours, theirs, abs_tol=tolerance[0], rel_tol=tolerance[1])


def _weight_differences(recipe: Recipe, stored: Mapping[str, State], out: Path) -> list[str]:
    exported = read_checkpoint(out)
    rules = {name: rule for rule in recipe.rules for name in rule.tensors}
    wrong, lost = [], []
    for name, tensor in stored["base"].items():
        allowed = list(_merges(name, tensor, rules, recipe, stored))
        if name in exported:
            if not any(_same_bits(exported[name], each) for each in allowed):
                wrong.append(f"{name} {exported[name].dtype}")
        elif not any(_same_bits(other, each) for other in exported.values() for each in allowed):  # no tied name of it
            lost.append(name)
    strange = exported.keys() - stored["base"].keys()
    return [
        f"{text} {_some(names)}"
        for text, names in (
            ("not the bits of an independent merge:", wrong),
            ("lost from the base:", lost),
            ("in the export alone:", strange),
        )
        if names
    ]


def _merges(
    name: str, base: torch.Tensor, rules: Mapping[str, Rule], recipe: Recipe, stored: Mapping[str, State]
) -> Iterator[torch.Tensor]:
    """The values that a tensor of the export may have: the recipe's; without a rule, the base's, rounded or not."""
    rule = rules.get(name) or next((rule for other, rule in rules.items() if _is_same_name(name, other)), None)
    if rule is None:
        # A further name of a tied tensor stands in no rule.
        equals = [other for other, each in stored["base"].items() if other in rules and _same_bits(each, base)]
        rule = rules[equals[0]] if equals else None
    dtype = DTYPES[recipe.dtype]
    if rule is None:
        yield base
        yield base.to(dtype) if base.is_floating_point() else base
        return
    origin = base.float()
    sources = [_named(stored[source], name).float() for source in rule.sources]
    weights = rule.parameters["weight"]
    if not isinstance(weights, tuple) or rule.method not in ("linear", "task_arithmetic"):
        raise RuntimeError(f"the table knows no independent merge for {rule}")
    if rule.options.get("normalize"):
        weights = tuple(weight / sum(weights) for weight in weights)
    vectors = sources if rule.method == "linear" else [source - origin for source in sources]
    merged = vectors[0] * weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        merged = merged + vector * weight
    yield (merged if rule.method == "linear" else merged + origin).to(dtype)


def _named(state: State, name: str) -> torch.Tensor:
    """The tensor of that name, or of that name with or without a prefix."""
    return state[name] if name in state else next(each for other, each in state.items() if _is_same_name(name, other))


def _is_same_name(one: str, other: str) -> bool:
    return one.endswith(f".{other}") or other.endswith(f".{one}")


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def _some(names: Any) -> str:
    shown = sorted(map(str, names))
    return f"{', '.join(shown[:3])}{' …' if len(shown) > 3 else ''} ({len(shown)})"

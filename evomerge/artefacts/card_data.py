"""The front matter of a model card, in the schema that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from huggingface_hub import EvalResult, ModelCardData

from evomerge.artefacts.parents import Parent
from evomerge.licenses import LicenseJudgement

TASK_TYPE: Final = "text-generation"
HELD_OUT: Final = "held-out"
MERGEKIT_TAG: Final = "mergekit-compatible"  # mergekit.yaml beside the card gives the same merge


@dataclass(frozen=True, kw_only=True)
class HeldOutResult:
    """The result of an exported merge on the held-out items of one task.

    Attributes:
        metric: as lm-eval names it.
        stderr: standard error of the value, None where it has none.
        items: number of held-out items.
        dataset: id on the hub, None for items of the user's own.
        config, split: of that data set.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    items: int
    dataset: str | None = None
    config: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts of the front matter besides those of the sources.

    Attributes:
        results: on held-out items only: on the others the merge was chosen.
        datasets: ids on the hub of the data sets that the merge was chosen on.
        mergekit: whether mergekit.yaml is beside the card.
        adapter: whether the files are an adapter of the base, and no model.
        several: whether they are several models in one artefact, which no library of the hub loads.
    """

    results: tuple[HeldOutResult, ...] = ()
    datasets: tuple[str, ...] = ()
    mergekit: bool = False
    adapter: bool = False
    several: bool = False


def front_matter(parents: Sequence[Parent], judgement: LicenseJudgement, facts: CardFacts, *, title: str) -> str:
    """The front matter with its two lines of hyphens.

    A merge names all parents on the hub as its base models; an adapter is one of the base, whatever it was merged from.

    Args:
        parents: the base first.
        title: name of the model in the results.
    """
    related = parents[:1] if facts.adapter else parents
    base_model = list(dict.fromkeys(parent.hub_id for parent in related if parent.hub_id))
    datasets = dict.fromkeys([*(each for parent in parents for each in parent.datasets), *facts.datasets])
    data = ModelCardData(
        base_model=base_model or None,
        library_name="peft" if facts.adapter else None if facts.several else "transformers",
        tags=["merge", "evomerge", *[MERGEKIT_TAG] * facts.mergekit, *["lora"] * facts.adapter],
        license=judgement.license,
        license_name=judgement.license_name,
        license_link=judgement.license_link,
        datasets=list(datasets) or None,
        model_name=title if facts.results else None,
        eval_results=[_eval_result(result) for result in facts.results] or None,
    )
    if base_model:
        data["base_model_relation"] = "adapter" if facts.adapter else "merge"
    if len(names := _license_names(parents)) > 1:
        data["licenses_of_the_sources"] = names
    return f"---\n{data.to_yaml()}\n---"


def _license_names(parents: Sequence[Parent]) -> list[str]:
    return sorted({name for parent in parents for name in parent.license.all_names or ("unknown",)})


def _eval_result(result: HeldOutResult) -> EvalResult:
    numbers = {"items": result.items, "standard_error": result.stderr}
    return EvalResult(
        task_type=TASK_TYPE,
        task_name=result.task,
        dataset_type=result.dataset or result.task,
        dataset_name=f"{result.task}, {HELD_OUT} items",
        dataset_config=result.config,
        dataset_split=result.split,
        metric_type=result.metric,
        metric_name=f"{result.metric} of {result.task} on {HELD_OUT} items",
        metric_value=round(result.value, 6),
        metric_args={
            name: number if isinstance(number, int) else round(number, 6)
            for name, number in numbers.items()
            if number is not None
        },
    )

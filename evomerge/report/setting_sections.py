"""Sections of the reference of settings: files, samplers and baselines, each with the models that read it.

Every section has an example, which tests read as a run would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from pydantic import BaseModel

from evomerge.baselines.info import (
    BASELINES,
    BaselineInfo,
    EmrSettings,
    GivenSettings,
    LineGrid,
    ModelStockSettings,
    WeightGrid,
)
from evomerge.baselines.training_settings import FILLED_IN
from evomerge.errors import unknown_name
from evomerge.observers import MetricsSpec, NotifySpec, TrackSpec
from evomerge.packs.pack import Pack
from evomerge.report.setting_rows import SettingRow, rows_of, summary_of, yaml_text
from evomerge.samplers import SAMPLERS, SamplerInfo
from evomerge.spaces.space import Range, SearchSpace
from evomerge.spec.search_spec import SearchSpec
from evomerge.spec.sections import (
    BaselineSpec,
    BudgetSpec,
    EvaluatorSpec,
    FidelitySpec,
    ObjectiveSpec,
    SamplerSpec,
    SourceSpec,
    VerdictSpec,
    WarmStartSpec,
    WorkersSpec,
)
from evomerge.trainers import SETTINGS
from evomerge.vllm_engine.engine_settings import EngineSettings

__all__ = ["FROM_THE_SEARCH", "PARTS", "Section", "find_section", "section_rows"]

FROM_THE_SEARCH = "from the search"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the reference.

    Attributes:
        name: its heading, and how `evomerge reference` is asked for it.
        models: that read its keys.
        example: YAML of a few lines.
    """

    name: str
    models: tuple[type[BaseModel], ...]
    example: str

    @property
    def summary(self) -> str:
        return summary_of(self.models[0])


_SEARCH = (
    Section(
        name="search.yaml",
        models=(SearchSpec,),
        example="""\
name: two-experts
sources: {base: ../toy/models/base, reverse: ../toy/models/reverse, sort: ../toy/models/sort}
space: linear-global
evaluator: two-skills
budget: {trials: 50}
dtype: float32
""",
    ),
    Section(
        name="sources",
        models=(SourceSpec,),
        example="""\
sources:
  - {name: base, location: ../toy/models/base}
  - {name: sort, location: ../toy/models/sort, calibration: {task: sort, items: 64}}
""",
    ),
    Section(
        name="evaluator",
        models=(EvaluatorSpec, EngineSettings),
        example="""\
evaluator:
  name: two-skills
  engine: vllm
  engine_args: {gpu_memory_utilization: 0.5}
""",
    ),
    Section(
        name="objective",
        models=(ObjectiveSpec,),
        example="""\
objective:
  normalise: sources
  weights: {sort: 2.0}
  constraints: [{task: reverse, at_least: base, tolerance: 0.02}]
""",
    ),
    Section(name="sampler", models=(SamplerSpec,), example="sampler:\n  name: cma\n  sigma0: 0.3\n"),
    Section(
        name="fidelity",
        models=(FidelitySpec,),
        example="fidelity:\n  name: successive_halving\n  minimum: 32\n",
    ),
    Section(
        name="warm_start",
        models=(WarmStartSpec,),
        example="warm_start:\n  baselines: 1\n  studies: [{name: earlier, trials: 3}]\n",
    ),
    Section(name="budget", models=(BudgetSpec,), example="budget:\n  trials: 200\n  hours: 8\n  patience: 60\n"),
    Section(name="workers", models=(WorkersSpec,), example="workers:\n  count: 4\n  gpus: 1\n  timeout: 1800\n"),
    Section(
        name="baselines",
        models=(BaselineSpec,),
        example="baselines:\n  - uniform-soup\n  - {name: ties, density: 0.3}\n",
    ),
    Section(name="verdict", models=(VerdictSpec,), example="verdict:\n  best: 5\n  margin: 0.01\n"),
    Section(name="notify", models=(NotifySpec,), example="notify:\n  command: [mail-me, ops]\n  on: [failure, end]\n"),
    Section(name="metrics", models=(MetricsSpec,), example="metrics:\n  textfile: evomerge.prom\n"),
    Section(
        name="track", models=(TrackSpec,), example="track:\n  mlflow: {}\n  wandb: {project: merges, entity: us}\n"
    ),
)
_PACK = (
    Section(
        name="evaluator.yaml",
        models=(Pack,),
        example="""\
name: two-skills
tasks_folder: tasks
tasks:
  - {task: sort, metric: exact_match, limit: 200}
split: {by: hash, shares: {calibration: 0.1, search: 0.4, held_out: 0.5}}
""",
    ),
)
_SPACE = (
    Section(
        name="space",
        models=(SearchSpace,),
        example="""\
name: ties-by-part
groups: {depth: {blocks: 2}, parts: [attention, mlp]}
methods:
  ties: {parameters: {density: 0.2, lambda: 1.0}}
""",
    ),
    Section(
        name="range",
        models=(Range,),
        example="""\
name: linear-or-ties
groups: {depth: global}
methods:
  linear: {parameters: {weight: {log_ratio: 3}}}
  ties: {parameters: {density: {low: 0.1, high: 1.0, log: true, shared: sources}}}
""",
    ),
)
_GRIDS = (
    Section(
        name="weights",
        models=(WeightGrid,),
        example="baselines:\n  - {name: task-arithmetic, weights: [0.2, 0.4, 0.6]}\n",
    ),
    Section(
        name="given",
        models=(GivenSettings,),
        example="baselines:\n  - uniform-soup\n  - {name: given, recipe: merge.yml}\n",
    ),
    Section(name="lines", models=(LineGrid,), example="baselines:\n  - {name: lines, betas: [0.2, 0.5]}\n"),
    Section(
        name="emr",
        models=(EmrSettings,),
        example="baselines:\n  - {name: emr, rescaler: tensor_mean}\n",
    ),
    Section(
        name="model-stock",
        models=(ModelStockSettings,),
        example="baselines:\n  - {name: model-stock, negative: raw}\n",
    ),
)
_TRAINED = {
    "dam": "baselines:\n  - {name: dam, steps: 200, losses: {kl: 1.0, entropy: 0.1}}\n",
    "adamerging": "baselines:\n  - {name: adamerging, steps: 50, batch_size: 4}\n",
    "learned": "baselines:\n  - {name: learned, steps: 60, loss: {experts: 1}}\n",
    "fine-tune": "baselines:\n  - {name: fine-tune, learning_rate: 0.00003}\n",
}
_SAMPLED = {
    "catcma": "sampler:\n  name: catcma\n  popsize: 16\n",
    "cma": "sampler:\n  name: cma\n  restarts: bipop\n",
    "forest": "sampler:\n  name: forest\n  random_share: 0.3\n",
    "gp": "sampler:\n  name: gp\n  n_startup_trials: 20\n",
    "nsgaii": "sampler:\n  name: nsgaii\n  population_size: 30\n",
    "nsgaiii": "sampler:\n  name: nsgaiii\n  dividing_parameter: 4\n",
    "tpe": "sampler:\n  name: tpe\n  n_startup_trials: 20\n",
}
PARTS: dict[str, tuple[Section, ...]] = {
    "A search": _SEARCH,
    "An evaluator pack": _PACK,
    "A search space": _SPACE,
    "Settings of samplers": tuple(
        Section(name=name, models=(SAMPLERS[name].settings,), example=example) for name, example in _SAMPLED.items()
    ),
    "Settings of baselines": (
        *_GRIDS,
        *(Section(name=name, models=(SETTINGS[name],), example=example) for name, example in _TRAINED.items()),
    ),
}


def find_section(name: str) -> Section:
    """The section of that name.

    Raises:
        InvalidInput: there is none.
    """
    known = {section.name: section for sections in PARTS.values() for section in sections}
    if name not in known:
        raise unknown_name("section of the reference", name, known)
    return known[name]


def section_rows(section: Section) -> Iterator[SettingRow]:
    """The rows of a section."""
    sections = _sections()
    for model in section.models:
        for row in rows_of(model, sections):
            filled_in = model in SETTINGS.values() and row.key in FILLED_IN
            yield replace(row, values="not to be given", default=FROM_THE_SEARCH) if filled_in else row
    if section.name == "sampler":
        yield from (_sampler_row(info) for info in SAMPLERS.values())
    if section.name == "baselines":
        yield from (_baseline_row(info) for info in BASELINES.values())


@cache
def _sections() -> dict[type[BaseModel], str]:
    return {model: section.name for sections in PARTS.values() for section in sections for model in section.models}


def _sampler_row(info: SamplerInfo) -> SettingRow:
    abilities = [
        "one objective" if info.build_several is None else "one objective or several",
        "with constraints" if info.constraints else "no constraints",
        *(["fidelity: full only"] if info.complete_only else []),
    ]
    return _named_row(info.name, info.settings, "; ".join(abilities))


def _baseline_row(info: BaselineInfo) -> SettingRow:
    if info.on_request:
        built = ["built on request"]
    elif info.trained:
        built = [f"built without request where every expert has {info.least_texts} or more calibration items"]
    else:
        built = ["built without request"]
    if info.preset:
        built.append("always " + ", ".join(f"{key}: {yaml_text(value)}" for key, value in info.preset.items()))
    if info.control:
        built.append("a control")
    row = _named_row(info.name, info.settings if info.trainer is None else SETTINGS[info.trainer], "; ".join(built))
    values = row.values if info.method is None else f"parameters and options of the merge method {info.method}"
    return replace(row, values=values, default=yaml_text(dict(info.defaults)) if info.defaults else "")


def _named_row(name: str, settings: type[BaseModel], meaning: str) -> SettingRow:
    """The row of a sampler or baseline, whose settings stand beside its name."""
    values = "settings" if settings.model_fields else "no settings"
    return SettingRow(
        key=f"name: {name}", values=values, default="", meaning=meaning, section=_sections().get(settings)
    )

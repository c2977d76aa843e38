"""Adapters in trainings: no copy of their weights, and no merge in core space taken for one of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_models import open_base, save_adapter, save_base

from evomerge.adapters import open_expert
from evomerge.bank import WeightBank
from evomerge.checkpoints.source import Source
from evomerge.errors import InvalidInput
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.optimisation.student import Student
from evomerge.recipe import ModelRef, Recipe, Rule


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Source, Source]:
    base = save_base(tmp_path / "base")
    source = open_base(base)
    adapter = save_adapter(base, tmp_path / "adapter")
    return source, open_expert(ModelRef("adapter", str(adapter)), base=source)


def _recipe(base: Source, expert: Source, method: str) -> Recipe:
    rule = Rule(
        tensors=tuple(entry.name for entry in base.catalogue.mergeable),
        method=method,
        sources=(expert.name,),
        parameters=resolve_parameters(method, {}, 1),
        options=resolve_options(method, {}),
    )
    return Recipe(base=base.ref, sources=(expert.ref,), rules=(rule,), dtype="float32", space="core")


def test_an_adapter_teaches_from_the_live_model_and_a_whole_model_from_its_own_weights(
    opened: tuple[Source, Source],
) -> None:
    base, expert = opened
    bank = WeightBank(base, [expert], dtype=torch.float32, device=torch.device("cpu"))
    with bank.borrow() as (model, live):
        student = Student(model, live, bank.weights, replace(_recipe(base, expert, "task_arithmetic"), space="full"))
        assert not student.runs_in_place("adapter")
        assert student.runs_in_place("base")


def test_a_source_that_is_elsewhere_than_the_live_model_is_written_into_it(opened: tuple[Source, Source]) -> None:
    base, expert = opened
    bank = WeightBank(base, [expert], dtype=torch.float32, device=torch.device("cpu"))
    with bank.borrow() as (model, _):
        streamed = model.to("meta")
        live = {name: streamed.get_parameter(base.live_names[name]) for name in base.catalogue.names}
        recipe = replace(_recipe(base, expert, "task_arithmetic"), space="full")
        assert not Student(streamed, live, bank.weights, recipe).runs_in_place("base")


def test_a_training_starts_from_a_sum_in_core_space_and_from_no_other_merge_there(
    opened: tuple[Source, Source],
) -> None:
    base, expert = opened
    bank = WeightBank(base, [expert], dtype=torch.float32, device=torch.device("cpu"))
    with bank.borrow() as (model, live):
        Student(model, live, bank.weights, _recipe(base, expert, "task_arithmetic"))
        with pytest.raises(InvalidInput, match="by ties in core space"):
            Student(model, live, bank.weights, _recipe(base, expert, "ties"))

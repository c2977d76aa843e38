"""Predicted sizes of statistics against what a measurement of the toy model holds and writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.checkpoints import load_skeleton, meta_model, open_source
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.recipe import ModelRef
from evomerge.statistics.measured_size import measured_size
from evomerge.statistics.measurement import KINDS, MeasuredModel, MeasurementSettings

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"


@pytest.mark.parametrize(("kind", "constant"), [("fisher", False), ("grams", False), ("grams", True)])
def test_sums_and_results_have_the_sizes_that_a_model_without_weights_tells(kind, constant):
    source = open_source(ModelRef("sort", str(TOY / "sort")))
    empty = meta_model(source)
    state = empty.state_dict(keep_vars=True)
    settings = MeasurementSettings(constant=constant)
    named = {name: state[source.live_names[name]] for name in source.catalogue.names}
    without_weights = MeasuredModel(model=empty, live=named, catalogue=source.catalogue)
    predicted = measured_size(KINDS[kind], without_weights, settings, width=4)

    model, live = load_skeleton(source, dtype=torch.float32)
    sums = KINDS[kind].sums(MeasuredModel(model=model, live=live, catalogue=source.catalogue), settings, seed=0)
    sums.add_text(CalibrationText(tuple(range(1, 9)), 2), "a text")
    held = sum(tensor.nbytes for tensor in sums.tensors.values())
    largest = max(tensor.nbytes for tensor in sums.tensors.values())
    gradients = sum(tensor.nbytes for tensor in model.parameters())
    assert predicted.checkpoint == pytest.approx(held, rel=0.01)
    assert predicted.measuring == pytest.approx(held + (gradients if kind == "fisher" else largest), rel=0.01)
    assert predicted.file == pytest.approx(sum(tensor.nbytes for tensor in sums.means().values()), rel=0.01)

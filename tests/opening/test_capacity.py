"""Memory of a search: threshold tables and statistics are counted for the methods that have some."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace

import pytest
import yaml

from evomerge.bank.placement import Machine, Place, place_sources
from evomerge.errors import InvalidInput
from evomerge.merging.regmean import KEPT_BYTES
from evomerge.opening.capacity import memory_of, placement_of, trained_weights
from evomerge.opening.inputs import open_inputs
from evomerge.opening.measurements import all_measurements, measured_sizes
from evomerge.spec import load_spec
from evomerge.worker import Worker


def worker_bytes(write_spec, space: str, baselines: list[str]) -> int:
    return memory_of(open_inputs(load_spec(write_spec(space=space, baselines=baselines)))).worker


@pytest.mark.parametrize("space", ["pcb-global", "task-arithmetic-per-block"])
def test_only_methods_that_sort_magnitudes_need_memory_for_it(write_spec, space):
    without = worker_bytes(write_spec, space, [])
    assert worker_bytes(write_spec, "ties-per-block", []) > without
    assert worker_bytes(write_spec, space, ["ties"]) > without
    assert worker_bytes(write_spec, space, ["uniform-soup"]) == without


def open_measured(write_spec, space):
    path = write_spec(space=space, baselines=[], dtype="float32")
    content = yaml.safe_load(path.read_text())
    for source in content["sources"][1:]:
        source["calibration"] = {"task": "any", "items": 4}
    path.write_text(yaml.safe_dump(content))
    return open_inputs(load_spec(path))


@pytest.mark.parametrize("space", ["regmean-global", "fisher-global"])
def test_statistics_are_counted_for_the_searches_that_measure_some(write_spec, space):
    inputs = open_measured(write_spec, space)
    sizes = measured_sizes(inputs, all_measurements(inputs, []))
    need = memory_of(inputs)
    assert need.statistics == sum(size.file for size in sizes) > 0
    live = 4 * sum(entry.numel for entry in inputs.catalogue.entries)
    kept = min(KEPT_BYTES, sum(size.products for size in sizes))
    assert need.worker >= live + kept + max(size.measuring for size in sizes)
    assert memory_of(open_inputs(load_spec(write_spec(baselines=[])))).statistics == 0


def test_n33_several_gpus_for_a_model_on_one_are_refused_and_left_to_evaluators_that_use_them(write_spec):
    inputs = open_inputs(load_spec(write_spec(baselines=[])))
    assert placement_of(inputs, 1, gpus=2.0).worker > 0
    evaluator = inputs.spec.evaluator.model_copy(update={"name": "toy"})
    packed = replace(inputs, spec=inputs.spec.model_copy(update={"evaluator": evaluator}))
    with pytest.raises(InvalidInput, match=r"workers\.gpus is 2, but a worker holds its model on one GPU"):
        placement_of(packed, 1, gpus=2.0)


def test_a_worker_places_the_sources_by_the_memory_that_the_search_was_planned_with(write_spec, monkeypatch):
    inputs = open_measured(write_spec, "regmean-global")
    need = memory_of(inputs)
    # Too small a GPU for sources and statistics, and one that the sources alone would fit in.
    machine = Machine(1, int((need.worker + need.statistics + need.sources) / 0.75) - 1)
    monkeypatch.setattr(sys.modules["evomerge.bank.open_bank"], "this_machine", lambda *rest, **named: machine)
    setup = replace(inputs.setup(), device="cpu")
    planned, alone = (Worker(replace(setup, need=given)).bank.placement for given in (asdict(need), None))
    assert planned == place_sources(need, machine)
    assert (planned.place, alone.place) == (Place.MAPPED, Place.DEVICE)


def test_what_workers_share_is_predicted_once_for_the_machine(write_spec):
    spec = load_spec(write_spec(space="baselines-global", baselines=["uniform-soup", "ties"], dtype="float32"))
    inputs = open_inputs(spec)
    alone, shared = (placement_of(inputs, 2, shared=each) for each in (False, True))
    assert alone.worker - shared.worker == shared.shared == memory_of(inputs).ingredients > 0


@pytest.mark.parametrize("gpus", [1.5, 0.00001])
def test_a_share_of_gpus_that_ray_cannot_give_is_refused_with_the_spec(write_spec, gpus):
    with pytest.raises(InvalidInput, match="write a whole number of GPUs, or the share of one"):
        load_spec(write_spec(workers={"count": 1, "gpus": gpus}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])  # the toy models are stored in bfloat16
def test_a_search_over_paths_counts_the_layers_that_it_copies_and_the_scaled_ones_of_the_longest_path(
    write_spec, tmp_path, dtype
):
    needs = {}
    for longest in (6, 12):
        (tmp_path / "paths.yaml").write_text(yaml.safe_dump({"name": "paths", "layers": {"max_layers": longest}}))
        inputs = open_inputs(load_spec(write_spec(space="paths.yaml", baselines=[], dtype=dtype)))
        needs[longest] = memory_of(inputs)
    inside = sum(entry.numel for entry in inputs.catalogue.entries if entry.layer is not None)
    size = {"bfloat16": 2, "float32": 4}[dtype]
    assert needs[6].layers == 3 * inside * size
    assert needs[6].copied_layers == (0 if dtype == "bfloat16" else needs[6].layers)
    output = inputs.catalogue["model.layers.0.mlp.down_proj.weight"].numel * size
    assert needs[12].worker - needs[6].worker == 2 * 6 * output


def test_a_training_of_all_weights_is_counted_with_its_moments_and_its_file(write_spec):
    without, needed = (
        memory_of(open_inputs(load_spec(write_spec(baselines=names, dtype="float32")))) for names in ([], ["fine-tune"])
    )
    inputs = open_inputs(load_spec(write_spec(baselines=["fine-tune"], dtype="float32")))
    elements = sum(entry.numel for entry in inputs.catalogue.mergeable)
    assert needed.worker >= without.worker + 16 * elements  # weights, gradients, two moments
    assert needed.statistics == without.statistics + 4 * elements == trained_weights(inputs).file

"""Memory of OPCM, as `check` counts it, against what merges take."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.bank.memory import projection_sizes
from evomerge.checkpoints import open_source
from evomerge.merging import merge_state_dicts, opcm
from evomerge.merging.opcm import Decomposition
from evomerge.methods import resolve_options
from evomerge.opening.capacity import memory_of
from evomerge.opening.inputs import open_inputs
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.spec import load_spec

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
EXPERTS = ("reverse", "sort")
SOURCES = [{"name": name, "location": str(TOY / name)} for name in ("base", *EXPERTS)]


def held_after_all_orders(base, experts):
    """Bytes of the decompositions that a bank holds after a candidate of each order."""
    bank = WeightBank(base, experts, dtype=torch.float32, device=torch.device("cpu"))
    for order in permutations(EXPERTS):
        rule = Rule(
            tensors=tuple(entry.name for entry in base.catalogue.mergeable),
            method="opcm",
            sources=order,
            parameters={"alpha": 0.4},
            options=resolve_options("opcm", {}),
        )
        refs = tuple(expert.ref for expert in experts)
        bank.materialize(Recipe(base=base.ref, sources=refs, rules=(rule,), dtype="float32"))
    caches = [bank._caches[(name,)].values["prefix"] for name in EXPERTS]
    return sum(value.nbytes for cache in caches for value in cache.values() if isinstance(value, Decomposition))


def test_decompositions_are_counted_for_every_source_that_may_arrive_first(monkeypatch):
    base = open_source(ModelRef("base", str(TOY / "base")))
    experts = [open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS]
    predicted = projection_sizes(base.catalogue, first_models=2).kept
    assert held_after_all_orders(base, experts) == predicted
    monkeypatch.setattr(opcm, "KEPT_BYTES", predicted // 2)
    assert predicted * 0.3 < held_after_all_orders(base, experts) <= predicted // 2


def test_rules_with_parts_of_the_model_keep_one_state_whatever_the_orders():
    base = open_source(ModelRef("base", str(TOY / "base")))
    experts = [open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS]
    bank = WeightBank(base, experts, dtype=torch.float32, device=torch.device("cpu"))
    names = tuple(entry.name for entry in base.catalogue.mergeable)
    plain = {
        source.ref.name: {name: source.tensors[name].float() for name in source.catalogue.names}
        for source in (base, *experts)
    }
    for order in (*permutations(EXPERTS), EXPERTS):
        rules = tuple(
            Rule(
                tensors=names[part::2],
                method="opcm",
                sources=order,
                parameters={"alpha": 0.4},
                options=resolve_options("opcm", {}),
            )
            for part in (0, 1)
        )
        refs = tuple(expert.ref for expert in experts)
        recipe = Recipe(base=base.ref, sources=refs, rules=rules, dtype="float32")
        expected = merge_state_dicts("opcm", [plain[name] for name in order], plain["base"], {"alpha": 0.4})
        assert all(torch.equal(tensor, expected[name]) for name, tensor in bank.merged(recipe))
    caches = [value for cache in bank._caches.values() for value in cache.values.values()]
    assert sum(("opcm", "state") in cache for cache in caches) == 1


def test_the_peak_of_a_merge_is_within_a_fifth_of_what_is_counted():
    # What the allocator wastes between small blocks is none of the merge's.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parent / "peak_of_opcm.py"
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=environment)
    *_, first, _, sizes = ran.stdout.splitlines()
    kept, merging = map(int, sizes.split())
    assert kept + merging == pytest.approx(int(first), rel=0.2)


def test_check_counts_them_for_a_search_with_opcm(write_spec, tmp_path):
    space = tmp_path / "given.yaml"
    space.write_text(
        "name: given\ngroups: {depth: global}\nmethods: {opcm: {parameters: {alpha: {low: 0, high: 0.9}}}}\n"
    )
    other, searched, given = (
        memory_of(open_inputs(load_spec(write_spec(space=name, baselines=[])))).worker
        for name in ("task-arithmetic-per-block", "opcm", str(space))
    )
    base = open_source(ModelRef("base", str(TOY / "base")))
    assert searched - given == projection_sizes(base.catalogue, first_models=1).kept
    assert given > other


def test_check_counts_the_aligned_source_of_ot_fusion_and_a_baseline_that_projects(write_spec, tmp_path):
    def worker(space, baselines):
        spec = write_spec(space=space, baselines=baselines, sources=SOURCES[:2])
        return memory_of(open_inputs(load_spec(spec))).worker

    base = open_source(ModelRef("base", str(TOY / "base")))
    moving = [entry for entry in base.catalogue.mergeable if entry.part in ("attention", "mlp")]
    plain = worker("task-arithmetic-per-block", [])
    assert worker("ot-fusion", []) - plain == sum(entry.numel * 2 for entry in moving)  # bfloat16
    assert worker("task-arithmetic-per-block", ["opcm"]) > plain + projection_sizes(base.catalogue, first_models=1).kept

"""Merged task vectors that a worker keeps: made once, the bits of the reference, and counted by `check`."""

from pathlib import Path

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.bank.memory import vector_sizes
from evomerge.checkpoints import open_source
from evomerge.merging import merge_state_dicts
from evomerge.opening.capacity import memory_of
from evomerge.opening.inputs import open_inputs
from evomerge.recipe import ModelRef
from evomerge.spaces import load_space
from evomerge.spaces.bound import bind
from evomerge.spec import load_spec
from evomerge.spectral import task_matrices

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"


@pytest.fixture(scope="module")
def toy():
    base = open_source(ModelRef("base", str(TOY / "base")))
    return base, [open_source(ModelRef(name, str(TOY / name)), like=base) for name in ("reverse", "sort")]


@pytest.mark.parametrize("name", ["tsv-m", "iso-c", "wudi"])
def test_a_bank_decomposes_for_the_first_candidate_alone_and_keeps_what_check_counts(toy, name, monkeypatch):
    base, experts = toy
    calls = []
    monkeypatch.setattr(
        task_matrices, "decompose", lambda each, real=task_matrices.decompose: (calls.append(1), real(each))[1]
    )
    bank = WeightBank(base, experts, dtype=torch.float32, device=torch.device("cpu"))
    space = bind(load_space(name), base.catalogue, base.ref, [each.ref for each in experts], dtype="float32", seed=1)
    bank.materialize(space.decode({"lambda": 1.0}))
    first = len(calls)
    merged = dict(bank.merged(space.decode({"lambda": 0.6})))
    assert len(calls) == first > 0
    names = [entry.name for entry in base.catalogue.mergeable]
    plain = [{name: source.tensors[name].float() for name in names} for source in (base, *experts)]
    expected = merge_state_dicts(name.replace("-", "_"), plain[1:], plain[0], {"lambda": 0.6})
    assert all(torch.equal(merged[name], expected[name]) for name in names)
    (cache,) = bank._caches.values()
    (by_model,) = cache.values[()].values()
    kept = sum(value.nbytes for value in by_model.values() if isinstance(value, torch.Tensor))
    assert kept == vector_sizes(base.catalogue, 2).kept


def test_check_counts_a_vector_for_each_method_of_the_space_and_of_the_baselines(write_spec, toy):
    def worker(space, baselines):
        return memory_of(open_inputs(load_spec(write_spec(space=space, baselines=baselines)))).worker

    spec = open_inputs(load_spec(write_spec(space="tsv-m", baselines=[])))
    sizes = vector_sizes(spec.catalogue, len(spec.space.sources))
    plain = worker("task-arithmetic-per-block", [])
    assert worker("tsv-m", []) >= plain + sizes.kept
    assert worker("tsv-m", ["wudi"]) == worker("tsv-m", []) + sizes.kept
    assert worker("tsv-m", ["tsv-m"]) == worker("tsv-m", [])


def test_check_counts_the_ranks_that_della_keeps(write_spec, monkeypatch):
    inputs = open_inputs(load_spec(write_spec(space="della-global", baselines=[])))
    elements = sum(entry.numel for entry in inputs.catalogue.mergeable)
    counted = memory_of(inputs).worker
    monkeypatch.setattr("evomerge.bank.memory.RANK_BYTES", 0)
    # 16 bits for each element of each expert, in rows of this width
    assert counted - memory_of(inputs).worker == len(inputs.space.sources) * 2 * elements

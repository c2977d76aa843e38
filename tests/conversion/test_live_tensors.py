"""Numbers beside the tensors of a live model, such as gradients, in the form in which the tensors are stored."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from expert_models import average, open_kind

from evomerge.bank import WeightBank
from evomerge.checkpoints import Source, load_skeleton, meta_model, tensor_digest, tensors_of
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.optimisation.gradients import stream_gradients
from evomerge.statistics.measured_size import measured_size
from evomerge.statistics.measurement import KINDS, MeasuredModel, MeasurementSettings
from evomerge.trainers import find_trainer
from evomerge.training import TrainingInputs

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
TEXT = CalibrationText((3, 1, 4, 1, 5, 9, 2, 6), 4)


def streamed(source: Source, names: list[str]) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model after a backward pass, and the gradients of its stored tensors."""
    model, live = load_skeleton(source, dtype=torch.float32)
    found: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))

    def take(name: str, gradient: torch.Tensor) -> None:
        found[name] = found[name] + gradient

    with torch.enable_grad(), stream_gradients(live, names, take):
        model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    return model, found


def plain_gradients(source: Source) -> dict[str, torch.Tensor]:
    """The gradients of the live tensors, as torch leaves them."""
    model, _ = load_skeleton(source, dtype=torch.float32)
    model.requires_grad_(True)
    model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def test_a_gradient_of_one_expert_is_a_slice_of_that_of_the_stack(tmp_path: Path) -> None:
    source = open_kind("mixtral", tmp_path / "base")
    model, found = streamed(source, list(source.catalogue.names))
    assert found.keys() == set(source.catalogue.names)
    assert not any(each.requires_grad or each.grad is not None for each in model.parameters())
    expected, prefix = plain_gradients(source), "model.layers.1.block_sparse_moe.experts"
    for number in range(3):
        gates = expected["model.layers.1.mlp.experts.gate_up_proj"][number]
        assert torch.equal(found[f"{prefix}.{number}.w1.weight"], gates[:24])
        assert torch.equal(found[f"{prefix}.{number}.w3.weight"], gates[24:])
        outputs = expected["model.layers.1.mlp.experts.down_proj"][number]
        assert torch.equal(found[f"{prefix}.{number}.w2.weight"], outputs)


def test_the_gradient_of_what_is_stored_as_one_holds_those_of_its_parts(tmp_path: Path) -> None:
    source = open_kind("hrm_text", tmp_path / "base")
    _, found = streamed(source, list(source.catalogue.names))
    expected, prefix = plain_gradients(source), "model.H_module.layers.0"
    parts = [expected[f"{prefix}.self_attn.{part}_proj.weight"] for part in ("gate", "q", "k", "v")]
    assert torch.equal(found[f"{prefix}.attn.gqkv_proj.weight"], torch.cat(parts))


@pytest.mark.parametrize("kind", ["qwen2_moe", "hrm_text"])
def test_every_stored_tensor_has_a_fisher_of_its_own_form(kind: str, tmp_path: Path) -> None:
    source = open_kind(kind, tmp_path / "base")
    model, live = load_skeleton(source, dtype=torch.float32)
    sums = KINDS["fisher"].sums(
        MeasuredModel(model=model, live=live, catalogue=source.catalogue), MeasurementSettings(), seed=0
    )
    sums.add_text(TEXT, "a text")
    total = sum(float(tensor.sum()) for tensor in sums.tensors.values())
    fishers = sums.means()
    assert {name: tuple(tensor.shape) for name, tensor in fishers.items()} == {
        entry.name: entry.shape for entry in source.catalogue.mergeable
    }
    assert sum(float(tensor.double().sum()) for tensor in fishers.values()) == pytest.approx(total, rel=1e-5)
    empty = meta_model(source)
    without_weights = MeasuredModel(model=empty, live=tensors_of(source, empty), catalogue=source.catalogue)
    predicted = measured_size(KINDS["fisher"], without_weights, MeasurementSettings(), width=4)
    assert predicted.file == sum(tensor.nbytes for tensor in fishers.values())


@pytest.mark.parametrize(
    ("trainer", "settings", "learns"),
    [("learned", {}, True), ("adamerging", {"batch_size": 1}, True), ("dam", {"batch_size": 1}, False)],
    ids=["learned", "adamerging", "dam"],
)
@pytest.mark.parametrize("kind", ["qwen3_moe", "hrm_text"])
def test_a_training_learns_from_single_experts_and_every_bank_makes_the_same_of_it(
    kind: str, trainer: str, settings: dict[str, int], learns: bool, tmp_path: Path
) -> None:
    """DAM trains linear layers, which stacks of experts are not."""
    base = open_kind(kind, tmp_path / "base")
    expert = open_kind(kind, tmp_path / "expert", seed=1, like=base)
    bank = WeightBank(base, [expert], dtype=torch.float32, device=torch.device("cpu"), files=tmp_path)
    start = average(base, expert)
    before = bank.live_digests(start)
    with bank.borrow() as (model, live):
        inputs = TrainingInputs(
            model=model,
            live=live,
            weights=bank.weights,
            texts={"expert": [TEXT] * 2},
            initial=start,
            seed=1,
            files=tmp_path,
        )
        training = find_trainer(trainer)(inputs, {"steps": 1, "learning_rate": 0.05} | settings)
        while True:
            try:
                next(training)
            except StopIteration as end:
                recipe = end.value.recipe
                break
        trained = {name: tensor_digest(tensor) for name, tensor in live.items()}
    assert bank.live_digests(recipe) == trained
    assert {name: tensor_digest(tensor) for name, tensor in bank.merged(recipe)} == trained
    inside = next(iter(base.places))
    assert (trained[inside] != before[inside]) == learns

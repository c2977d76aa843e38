"""The measurement of a toy model: the numbers of the plain functions, found again, and continued to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.checkpoints import load_skeleton, open_source
from evomerge.checkpoints.recipe_files import load_tensors
from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.recipe import ModelRef
from evomerge.statistics import input_grams, sampled_fisher
from evomerge.statistics.fisher import FisherSums
from evomerge.statistics.grams import GramSums
from evomerge.statistics.measurement import (
    CHECKPOINTS,
    KINDS,
    MeasuredModel,
    MeasurementInputs,
    MeasurementSettings,
    find_kind,
    measure,
)

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
TEXTS = [CalibrationText(tuple(range(start, start + 6)), 3) for start in range(1, 19)]
ADDED = {"fisher": (FisherSums, "add_sampled"), "grams": (GramSums, "add")}


@pytest.fixture(scope="module")
def source():
    return open_source(ModelRef("sort", str(TOY / "sort")))


@pytest.fixture(scope="module")
def live(source):
    return load_skeleton(source, dtype=torch.float32)


@pytest.fixture
def inputs(source, live, tmp_path):
    def build(kind, texts=TEXTS, **changes):
        given = {
            "kind": KINDS[kind],
            "base": source.ref,
            "source": source.ref,
            "measured": MeasuredModel(model=live[0], live=live[1], catalogue=source.catalogue),
            "texts": texts,
            "seed": 5,
            "files": tmp_path / "files",
            "folder": tmp_path / "statistics",
        }
        return MeasurementInputs(**{**given, **changes})

    return build


def run(given, until=None):
    """The steps and the result; None where the measurement is cut short after so many steps."""
    steps, measuring = [], measure(given)
    while True:
        try:
            steps.append(next(measuring))
        except StopIteration as end:
            return steps, end.value
        if until is not None and steps[-1].step >= until:
            measuring.close()
            return steps, None


def test_fishers_are_sampled_where_the_answer_is_predicted(inputs, live, source, tmp_path):
    _, found = run(inputs("fisher"))
    stored, described = load_tensors(tmp_path / "files", found.digest)
    masks = [torch.tensor([0, 0, 1, 1, 1, 0])] * len(TEXTS)
    expected = sampled_fisher(live[0], [torch.tensor(text.tokens) for text in TEXTS], masks, seed=5)
    assert stored.keys() == {entry.name for entry in source.catalogue.mergeable}
    assert all(torch.equal(stored[name], expected[name]) for name in stored)
    assert described == {"statistics": "fisher", "source": source.ref.fingerprint}
    assert (found.forward_tokens, found.gradient_tokens) == (0, 6 * len(TEXTS))


@pytest.mark.parametrize("constant", [False, True])
def test_grams_count_every_token_and_leave_tied_weights_out(inputs, live, source, tmp_path, constant):
    _, found = run(inputs("grams", settings=MeasurementSettings(constant=constant)))
    stored, _ = load_tensors(tmp_path / "files", found.digest)
    batches = [(torch.tensor([text.tokens]), None) for text in TEXTS]
    expected = input_grams(live[0], batches, constant=constant)
    tied = {name for entry in source.catalogue.entries if entry.aliases for name in (entry.name, *entry.aliases)}
    assert stored.keys() == expected.keys() - tied
    assert all(torch.equal(stored[name], expected[name]) for name in stored)
    assert (found.forward_tokens, found.gradient_tokens) == (6 * len(TEXTS), 0)


@pytest.mark.parametrize("kind", ["fisher", "grams"])
@pytest.mark.parametrize("until", [1, 4, 17])
def test_a_measurement_that_was_cut_short_continues_to_the_same_bits(inputs, tmp_path, monkeypatch, kind, until):
    _, whole = run(inputs(kind, files=tmp_path / "other", folder=tmp_path / "other"))
    assert run(inputs(kind), until)[1] is None
    owner, method = ADDED[kind]
    added, add = [], getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda *given, **named: (added.append(1), add(*given, **named)))
    steps, found = run(inputs(kind))
    assert found.digest == whole.digest
    every = -(-len(TEXTS) // CHECKPOINTS)
    assert len(added) == len(TEXTS) - until // every * every
    assert [step.step for step in steps][-1] == len(TEXTS)
    assert [path.suffix for path in (tmp_path / "statistics").iterdir()] == [".json"]


def test_a_damaged_checkpoint_begins_anew(inputs, tmp_path):
    _, whole = run(inputs("grams", files=tmp_path / "other", folder=tmp_path / "other"))
    run(inputs("grams"), 9)
    (checkpoint,) = (tmp_path / "statistics").glob("*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-20])
    assert run(inputs("grams"))[1].digest == whole.digest


def test_a_measured_source_is_found_by_content_and_measured_anew_when_its_file_is_lost(inputs, tmp_path):
    _, first = run(inputs("grams"))
    steps, again = run(inputs("grams"))
    assert (steps, again) == ([], first)
    (tmp_path / "files" / f"{first.digest}.safetensors").unlink()
    steps, again = run(inputs("grams"))
    assert len(steps) == len(TEXTS)
    assert again.digest == first.digest


def test_every_input_of_a_measurement_is_in_its_key(inputs, source):
    keys = {
        inputs("fisher").key,
        inputs("grams").key,
        inputs("fisher", seed=6).key,
        inputs("fisher", texts=TEXTS[1:]).key,
        inputs("fisher", settings=MeasurementSettings(max_length=4)).key,
        inputs("fisher", source=ModelRef("sort", "x", fingerprint="other")).key,
        inputs("fisher", base=ModelRef("sort", "x", fingerprint="other")).key,
    }
    assert len(keys) == 7
    assert inputs("grams", seed=6).key == inputs("grams").key  # Grams draw nothing
    assert inputs("fisher", source=ModelRef("again", "y", fingerprint=source.ref.fingerprint)).key in keys


def test_long_texts_lose_their_beginning(inputs, live, tmp_path):
    _, found = run(inputs("grams", settings=MeasurementSettings(max_length=4)))
    stored, _ = load_tensors(tmp_path / "files", found.digest)
    expected = input_grams(live[0], [(torch.tensor([text.tokens[2:]]), None) for text in TEXTS])
    assert all(torch.equal(stored[name], expected[name]) for name in stored)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([], "it has no calibration texts"),
        ([*TEXTS, CalibrationText((4,), 0)], "nothing counts in its calibration text 18"),
    ],
)
def test_texts_that_cannot_be_measured_are_refused_with_the_source(inputs, texts, reason):
    with pytest.raises(InvalidInput, match=f"fisher of source 'sort' cannot be measured: {reason}"):
        run(inputs("fisher", texts=texts))


def test_numbers_that_are_not_finite_are_refused(inputs, live):
    name = next(name for name in live[1] if name.endswith("up_proj.weight"))
    kept = live[1][name].clone()
    try:
        live[1][name].fill_(float("inf"))
        with pytest.raises(InvalidInput, match="not finite"):
            run(inputs("grams"))
    finally:
        live[1][name].copy_(kept)


def test_the_nearest_kind_is_offered():
    with pytest.raises(InvalidInput, match="grams"):
        find_kind("gram")

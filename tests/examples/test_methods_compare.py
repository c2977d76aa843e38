"""The comparison of examples/methods: intervals and verdicts, the table, and two topics at a small budget."""

from __future__ import annotations

from pathlib import Path

import alignment_claims
import compare
import continual_claims
import depth_claims
import pytest
import torch
from measurement import FAILS, HOLDS, OPEN, Row, above, between, compared, interval
from toy_models import exact_matches, load, model_of

from evomerge.spaces.depth import PathLayer


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / 3**0.5  # of t with two degrees of freedom, for a deviation of 1
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


def test_a_claim_that_the_interval_leaves_open_is_not_called_true_or_false() -> None:
    one, other = interval([0.1, 0.11, 0.12]), interval([-0.2, 0.1, 0.3])
    assert [above(one), above(other), above(interval([-0.3, -0.31, -0.3]))] == [HOLDS, OPEN, FAILS]
    assert [above(one, 0.3), between(one, 0, 0.2), between(one, 0.2, 0.4)] == [FAILS, HOLDS, FAILS]
    assert above(interval([0.1])) == OPEN


def test_two_methods_are_compared_seed_by_seed() -> None:
    row = compared("A is above B", "0000.00000", ("A", "B"), ([0.5, 0.7, 0.9], [0.4, 0.61, 0.8]), "3 seeds")
    assert row.verdict == HOLDS
    assert row.measured.startswith("A 70.0, B 60.3: difference 9.7 [")


def test_the_table_replaces_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"above\n\n{compare.BEGIN}\nold\n{compare.END}\n\nbelow\n")
    row = Row(claim="claim", paper="2306.01708", measured="1.0 [0.9, 1.1]", units="3 seeds", verdict=HOLDS)
    for _ in range(2):
        compare.write(compare.table([row]), file)
    lines = file.read_text().splitlines()
    assert [lines[0], lines[-1]] == ["above", "below"]
    assert "old" not in lines
    assert (
        lines.count("| claim | [2306.01708](https://arxiv.org/abs/2306.01708) | 1.0 [0.9, 1.1] | 3 seeds | holds |")
        == 1
    )


def test_the_readme_has_a_row_for_each_claim_and_none_besides() -> None:
    text = compare.README.read_text(encoding="utf-8").split(compare.BEGIN)[1].split(compare.END)[0]
    verdicts = [line.split("|")[-2].strip() for line in text.strip().splitlines()[2:]]
    assert len(verdicts) > 40
    assert set(verdicts) <= {"holds", "does not hold", "cannot be told", "no claim"}


def test_alignment_and_continual_claims_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment_claims, "STEPS", 60)
    monkeypatch.setattr(alignment_claims, "FURTHER_STEPS", 20)
    found = [alignment_claims.figures(seed) for seed in (0, 1)]
    assert all(each["parent"] > 0.5 for each in found)
    # Fine-tunes of one network are aligned already, so that the alignment changes nothing.
    assert all(each["twins, OT"] == each["twins, average"] for each in found)
    rows = alignment_claims.claims(found)
    assert rows[-1].verdict == HOLDS
    monkeypatch.setattr(continual_claims, "TASKS", 3)
    monkeypatch.setattr(continual_claims, "ORDERS", 2)
    rows += continual_claims.claims([continual_claims.figures(seed) for seed in (0, 1)])
    assert all(row.units.startswith("2 ") for row in rows)


def test_a_path_of_a_models_own_layers_is_that_model_and_a_scale_is_that_of_the_mlp() -> None:
    swap = load("swap")
    own = [PathLayer("swap", layer, 1.0) for layer in range(6)]
    same = depth_claims.stacked(own, {"swap": swap})
    assert same.keys() == swap.keys()
    assert all(torch.equal(same[name], swap[name]) for name in swap)
    twice = depth_claims.stacked([*own[:3], PathLayer("swap", 2, 0.5), *own[3:]], {"swap": swap})
    down = "model.layers.{}.mlp.down_proj.weight"
    assert torch.equal(twice[down.format(3)], 0.5 * swap[down.format(2)])
    assert torch.equal(twice[down.format(6)], swap[down.format(5)])
    assert model_of(twice).config.num_hidden_layers == 7


def test_exact_matches_of_one_forward_pass_are_those_of_lm_eval() -> None:
    # The accuracies of the README of examples/toy.
    model = model_of(load("swap"))
    assert sum(exact_matches(model, ["toy_swap"], "held_out")) / 400 == pytest.approx(0.995)
    assert sum(exact_matches(model, ["toy_reverse"], "held_out")) / 400 == pytest.approx(0.758, abs=0.006)

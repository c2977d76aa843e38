"""Experts with other tokens, tied heads and further tensors, in the form of the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.bank.open_bank import open_bank
from evomerge.checkpoints import Source, check_compatible, open_source
from evomerge.errors import InvalidInput
from evomerge.fitting import open_fitted
from evomerge.fitting.fitted_source import content_key, fit_source, fitted_bytes
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule

MakeRef = Callable[..., ModelRef]
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BIAS = "model.layers.0.mlp.up_proj.bias"


def _opened(base: ModelRef, expert: ModelRef) -> tuple[Source, Source]:
    opened = open_source(base)
    return opened, open_fitted(expert, base=opened)


def _same_form(base: Source, expert: Source) -> bool:
    shapes = {name: tuple(tensor.shape) for name, tensor in expert.tensors.items()}
    return shapes == {name: shape for name, (shape, _) in base.header.items()} and expert.tied == base.tied


@pytest.mark.parametrize("tied", [False, True])
def test_rows_go_to_the_tokens_of_the_base_and_added_tokens_are_left_out(make_ref: MakeRef, tied: bool) -> None:
    tokens = make_ref("base", "abcd", tied=tied), make_ref("expert", "xcaby", tied=tied, tokenizer="base")
    base, expert = _opened(*tokens)
    assert _same_form(base, expert)
    stored = expert.weights.tensors
    for name in (EMBEDDINGS,) if tied else (EMBEDDINGS, HEAD):
        assert torch.equal(expert.tensors[name][:3], stored[name][[2, 3, 1]])  # a, b, c
        assert torch.equal(expert.tensors[name][3], base.tensors[name][3])  # d, which it lacks
    warnings = "\n".join(check_compatible(base, [expert]))
    assert "'base' and 'expert': its embeddings are in the order of the base's vocabulary, by token" in warnings
    assert "1 tokens that it lacks have the base's rows: 'd'" in warnings
    assert "2 tokens that the base lacks are left out: 'x', 'y'" in warnings


def test_rows_without_a_token_keep_their_places_and_those_of_new_tokens_are_the_bases(make_ref: MakeRef) -> None:
    base, expert = _opened(make_ref("base", "abc", rows=8), make_ref("expert", "abcn", rows=6, tokenizer="base"))
    rows, stored = expert.tensors[EMBEDDINGS], expert.weights.tensors[EMBEDDINGS]
    assert torch.equal(rows[[0, 1, 2, 4, 5]], stored[[0, 1, 2, 4, 5]])
    assert torch.equal(rows[[3, 6, 7]], base.tensors[EMBEDDINGS][[3, 6, 7]])


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float8_e4m3fn])
def test_rows_of_8_bits_are_joined_with_those_of_the_base_without_rounding(
    make_ref: MakeRef, other: torch.dtype
) -> None:
    eight = torch.float8_e4m3fn
    refs = make_ref("base", "abc"), make_ref("expert", "xca", tokenizer="base")
    for ref, dtype in zip(refs, (other, eight), strict=True):
        file = Path(ref.location) / "model.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    base, expert = _opened(*refs)
    rows, stored = expert.tensors[EMBEDDINGS], expert.weights.tensors[EMBEDDINGS]
    wide = eight if other == eight else torch.float32
    assert (rows.dtype, expert.header[EMBEDDINGS][1]) == (wide, str(wide).removeprefix("torch."))
    assert torch.equal(rows[[0, 2]].float(), stored[[2, 1]].float())
    assert torch.equal(rows[1].float(), base.tensors[EMBEDDINGS][1].float())


def test_copies_of_embeddings_are_counted_as_memory_of_a_worker(make_ref: MakeRef) -> None:
    base = open_source(make_ref("base", "abc"))
    moved, shared = make_ref("moved", "bca", tokenizer="base"), make_ref("shared", "abc", tied=True, missing="base")
    experts = [open_fitted(ref, base=base) for ref in (moved, shared)]
    assert fitted_bytes(experts) == 2 * 3 * 8 * 4  # embeddings and head, float32


def test_rows_of_the_base_are_not_rounded_to_the_dtype_of_the_expert(make_ref: MakeRef) -> None:
    refs = make_ref("base", "abc"), make_ref("expert", "ab", dtype=torch.bfloat16, tokenizer="base")
    base, expert = _opened(*refs)
    assert torch.equal(expert.tensors[EMBEDDINGS][2], base.tensors[EMBEDDINGS][2])
    assert expert.header[EMBEDDINGS] == ((3, 8), "float32")
    assert expert.header["model.norm.weight"][1] == "bfloat16"


def test_a_tied_expert_has_one_tensor_for_both_of_an_untied_base(make_ref: MakeRef) -> None:
    refs = make_ref("base", "abc"), make_ref("expert", "cab", tied=True, missing="base", tokenizer="base")
    base, expert = _opened(*refs)
    assert _same_form(base, expert)
    assert torch.equal(expert.tensors[HEAD], expert.weights.tensors[EMBEDDINGS][[1, 2, 0]])
    assert any(f"{HEAD} is one tensor with {EMBEDDINGS} in it" in line for line in check_compatible(base, [expert]))


def test_a_head_that_the_expert_lacks_is_the_bases_in_its_own_order(make_ref: MakeRef) -> None:
    ref = make_ref("expert", "cab", missing="base", tokenizer="base")
    base, whole = open_source(make_ref("base", "abc")), open_source(ref)
    without = {name: known for name, known in whole.header.items() if name != HEAD}  # as of a class without a head
    expert = fit_source(base, replace(whole, header=without))
    assert torch.equal(expert.tensors[HEAD], base.tensors[HEAD])
    assert torch.equal(expert.tensors[EMBEDDINGS], expert.weights.tensors[EMBEDDINGS][[1, 2, 0]])
    assert fitted_bytes([expert]) == 3 * 8 * 4  # the embeddings alone


def test_the_head_of_an_untied_expert_has_no_place_in_a_tied_base(make_ref: MakeRef) -> None:
    base, expert = _opened(make_ref("base", "abc", tied=True), make_ref("expert", "abc", missing="base"))
    assert _same_form(base, expert)
    left_out = f"left out, since the base has no place for them: 1 tensor, {HEAD}"
    assert any(left_out in line for line in check_compatible(base, [expert]))


def test_tensors_that_one_of_the_two_lacks_are_the_bases_or_left_out(make_ref: MakeRef) -> None:
    plain, biased = make_ref("plain", "abc"), make_ref("biased", "abc", bias=True)
    base, expert = _opened(biased, replace(plain, missing="base"))
    assert torch.equal(expert.tensors[BIAS], base.tensors[BIAS])
    assert any("of the base, since it lacks them: 3 tensors" in line for line in check_compatible(base, [expert]))
    base, expert = _opened(plain, replace(biased, missing="base"))
    assert BIAS not in expert.tensors
    assert any(
        "left out, since the base has no place for them: 3 tensors" in line for line in check_compatible(base, [expert])
    )


def test_without_a_policy_the_refusal_names_it(make_ref: MakeRef) -> None:
    base = open_source(make_ref("base", "abc"))
    for other, policy in (
        (make_ref("longer", "abcd"), "tokenizer: base"),
        (make_ref("moved", "acb"), "tokenizer: base"),
        (make_ref("tied", "abc", tied=True), "missing: base"),
        (make_ref("biased", "abc", bias=True), "missing: base"),
    ):
        with pytest.raises(InvalidInput, match=f"`{policy}` in search.yaml"):
            check_compatible(base, [open_fitted(other, base=base)])


def test_experts_of_equal_weights_whose_rows_are_in_another_order_have_other_threshold_tables(
    make_ref: MakeRef,
) -> None:
    base = open_source(make_ref("base", "abc"))
    keys = [
        content_key(open_fitted(make_ref("expert", tokens, tokenizer="base"), base=base)) for tokens in ("cab", "bca")
    ]
    assert keys[0] != keys[1]
    assert content_key(base) == base.ref.fingerprint


def test_a_model_that_fits_as_it_is_stays_as_it_is(make_ref: MakeRef) -> None:
    plain, base = make_ref("expert", "abc"), make_ref("base", "abc")
    _, expert = _opened(base, replace(plain, tokenizer="base", missing="base"))
    assert expert.notes == ()
    assert expert.ref.fingerprint == open_source(plain).ref.fingerprint


def test_the_fingerprint_is_of_both_models_and_a_change_of_either_is_found(make_ref: MakeRef) -> None:
    ref = make_ref("expert", "cab", tokenizer="base")
    base, expert = _opened(make_ref("base", "abc"), ref)
    other, again = _opened(make_ref("other", "abc"), ref)
    raw = open_source(replace(ref, tokenizer=None)).ref.fingerprint
    assert len({raw, expert.ref.fingerprint, again.ref.fingerprint}) == 3
    assert open_fitted(expert.ref, base=base).ref == expert.ref
    assert open_fitted(expert.ref, base=base, trust_fingerprint=True).ref == expert.ref
    with pytest.raises(InvalidInput, match="or its base has changed"):
        open_fitted(expert.ref, base=other)


@pytest.mark.parametrize(
    ("tokens", "policy", "reason"),
    [("axyz", "base", "has 33 % of the base's tokens"), ("abc", "union", "tokenizer: union is no policy")],
)
def test_what_no_policy_can_fit_is_refused(make_ref: MakeRef, tokens: str, policy: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        _opened(make_ref("base", "abc"), make_ref("expert", tokens, tokenizer=policy))


def test_a_merge_changes_no_row_that_the_expert_lacks_and_its_recipe_rebuilds_it(make_ref: MakeRef) -> None:
    base, expert = _opened(make_ref("base", "abcd"), make_ref("expert", "xcab", tokenizer="base"))
    rule = Rule(
        tensors=base.catalogue.names,
        method="task_arithmetic",
        sources=("expert",),
        parameters=resolve_parameters("task_arithmetic", {"weight": 1.0}, 1),
        options=resolve_options("task_arithmetic", {}),
    )
    made = Recipe(base=base.ref, sources=(expert.ref,), rules=(rule,), dtype="float32")
    recipe = Recipe.from_json(made.to_json())
    assert recipe.sources == (expert.ref,)
    bank = open_bank(recipe.base, recipe.sources, dtype="float32", device="cpu")
    merged = dict(bank.merged(recipe))
    assert torch.equal(merged[EMBEDDINGS][3], base.tensors[EMBEDDINGS][3])
    torch.testing.assert_close(merged[EMBEDDINGS][:3], expert.weights.tensors[EMBEDDINGS][[2, 3, 1]])
    live = bank.materialize(recipe)
    assert torch.equal(live.state_dict()[EMBEDDINGS], merged[EMBEDDINGS])

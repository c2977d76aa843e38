"""The artefact of EMR-Merging: packed masks, and models that are rebuilt with the bits of the merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.artefacts.emr_artefact import pack_mask, read_emr, unpack_mask, write_emr
from evomerge.checkpoints import WeightsDiffer, tensor_digests
from evomerge.checkpoints.safetensors_files import read_header
from evomerge.errors import InvalidInput
from evomerge.merging.emr import elect, mask, merge_emr, rescaler
from evomerge.recipe import ModelRef, Recipe, RecipeSet, Rule
from evomerge.tensors.rule_tensors import RuleTensors

NAMES = ("w", "b")
SHAPES = {"w": (5, 7), "b": (3,)}


def model(seed, like=None, step=1.0, dtypes=(torch.float32, torch.float32)):
    """Two tensors, near those of `like`, some elements of which do not move, and a buffer."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, dtype in zip(NAMES, dtypes, strict=True):
        noise = torch.randn(SHAPES[name], generator=generator) * (torch.rand(SHAPES[name], generator=generator) > 0.2)
        found[name] = ((0 if like is None else like[name].double()) + step * noise).to(dtype)
    return found | {"steps": torch.tensor([3])}


def rule_tensors(base, sources, task=0, rule="flat_sum"):
    options = {"task": task, "rescaler": rule}
    return RuleTensors(names=NAMES, base=base, sources=tuple(sources), parameters={}, options=options)


def recipe(count, task, dtype):
    refs = [ModelRef(name, f"models/{name}", fingerprint=name * 4) for name in ("base", *"abc"[:count])]
    names = tuple(ref.name for ref in refs[1:])
    rule = Rule(tensors=NAMES, method="emr", sources=names, options={"task": task, "rescaler": "flat_sum"})
    return Recipe(base=refs[0], sources=tuple(refs[1:]), rules=(rule,), dtype=dtype)


def written(out, base, sources, dtype="float32", **changes):
    """The artefact of all sources, and the tensors of each model by the method."""
    count = len(sources)
    recipes = RecipeSet(
        recipes={name: recipe(count, index, dtype) for index, name in enumerate("abc"[:count])},
        tasks={f"task_{name}": name for name in "abc"[:count]},
    )
    merged = {}
    for index, name in enumerate("abc"[:count]):
        tensors = dict(merge_emr(rule_tensors(base, sources, index)))
        merged[name] = {key: tensor.to(getattr(torch, dtype)) for key, tensor in tensors.items()}
        merged[name]["steps"] = base["steps"]
    arguments = {
        "base": base,
        "scored": {name: tensor_digests(tensors.items()) for name, tensors in merged.items()},
        "card": "# card\n",
        "read": (),
    }
    write_emr(out, recipes, rule_tensors(base, sources), **{**arguments, **changes})
    return read_emr(out), merged, recipes


@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(0, 6), max_size=3), seed=st.integers(0, 1000))
def test_a_mask_is_unpacked_as_it_was_packed_in_one_byte_for_eight_elements(shape, seed):
    given_mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    packed = pack_mask(given_mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-given_mask.numel() // 8),)
    assert torch.equal(unpack_mask(packed, tuple(shape)), given_mask)


def test_the_first_element_is_the_lowest_bit_of_the_first_byte():
    bits = [1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    assert pack_mask(torch.tensor(bits, dtype=torch.bool)).tolist() == [1, 2]


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(InvalidInput, match="9 elements is 2 bytes"):
        unpack_mask(torch.zeros(1, dtype=torch.uint8), (3, 3))


@pytest.mark.parametrize(
    "dtypes",
    [
        [(torch.float32, torch.float32)] * 4,
        [(torch.bfloat16, torch.bfloat16)] * 4,
        [(torch.bfloat16, torch.float64), (torch.float32, torch.float16), (torch.float16, torch.float32)] * 2,
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_model_is_rebuilt_with_the_bits_of_the_merge(tmp_path, dtypes, dtype, count):
    base = model(0, dtypes=dtypes[0])
    sources = [model(seed, base, 1e-2, dtypes[seed]) for seed in range(1, count + 1)]
    artefact, merged, recipes = written(tmp_path / "out", base, sources, dtype)
    assert (artefact.digest, list(artefact.models)) == (recipes.digest, list(recipes.recipes))
    for name, tensors in merged.items():
        rebuilt = dict(artefact.rebuild(name, base))
        assert tensor_digests(rebuilt.items()) == tensor_digests(tensors.items())


def test_its_parts_are_those_of_the_paper(tmp_path):
    base = model(0)
    sources = [model(seed, base, 1e-2) for seed in (1, 2, 3)]
    artefact, _, _ = written(tmp_path / "out", base, sources)
    vectors = [{name: source[name].double() - base[name].double() for name in NAMES} for source in sources]
    elected = elect(vectors)
    for index, name in enumerate("abc"):
        masks = mask(vectors[index], elected)
        assert artefact.models[name].rescaler == pytest.approx(rescaler(vectors[index], elected), rel=1e-12)
        assert artefact.models[name].tasks == (f"task_{name}",)
        for key in NAMES:
            assert torch.equal(artefact.mask(name, key), masks[key])
            assert torch.equal(artefact.elected_vector(key, base[key]), elected[key])


def test_it_has_one_vector_in_the_dtype_of_the_models_and_a_bit_for_each_element_and_model(tmp_path):
    base = model(0, dtypes=(torch.bfloat16,) * 2)
    written(tmp_path / "out", base, [model(seed, base, 1e-2, (torch.bfloat16,) * 2) for seed in (1, 2)])
    stored = read_header(tmp_path / "out" / "elected" / "model.safetensors")
    assert {name: (each.shape, each.dtype) for name, each in stored.items()} == {
        name: (SHAPES[name], "bfloat16") for name in NAMES
    }
    for name in "ab":
        packed = read_header(tmp_path / "out" / "masks" / name / "model.safetensors")
        assert {key: (each.shape, each.dtype) for key, each in packed.items()} == {
            "w": ((5,), "uint8"),
            "b": ((1,), "uint8"),
        }
    assert (tmp_path / "out" / "README.md").read_text() == "# card\n"
    document = json.loads((tmp_path / "out" / "emr.json").read_text())
    assert {"formula", "bits", "base", "sources", "models", "digest"} <= set(document)


def test_what_would_not_be_rebuilt_as_it_was_scored_is_not_written(tmp_path):
    base = model(0)
    sources = [model(1, base), model(2, base)]
    wrong = {name: tensor_digests(base.items()) for name in "ab"}
    with pytest.raises(WeightsDiffer, match="2 of 3 tensors are not the ones that were scored: b, w"):
        written(tmp_path / "out", base, sources, scored=wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_that_names_a_file_of_the_artefact_and_nothing_is_left(tmp_path, room_for):
    base = model(0)
    with room_for(32), pytest.raises(OSError, match="File too large") as raised:
        written(tmp_path / "out", base, [model(1, base), model(2, base)])
    assert tmp_path in Path(raised.value.filename).parents
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_artefact_is_replaced(tmp_path):
    base = model(0)
    sources = [model(1, base), model(2, base)]
    out = tmp_path / "out"
    for _ in range(2):
        written(out, base, sources)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match=r"also holds notes\.txt"):
        written(out, base, sources)
    (out / "emr.json").unlink()
    with pytest.raises(InvalidInput, match=r"no emr\.json"):
        written(out, base, sources)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "schema 9"),
        ({"dtype": "tensor"}, "dtype 'tensor'"),
        ({"models": {"../a": {}}}, r"models \['\.\./a'\]"),
        ({"models": {"a": {"rescaler": 1.0}}}, "writes: 'tasks'"),
        ({"base": None}, "must be a mapping, not NoneType"),
    ],
)
def test_a_document_that_is_none_is_refused(tmp_path, change, message):
    base = model(0)
    out = tmp_path / "out"
    written(out, base, [model(1, base), model(2, base)])
    document = json.loads((out / "emr.json").read_text())
    (out / "emr.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(InvalidInput, match=message):
        read_emr(out)
    with pytest.raises(InvalidInput, match=r"cannot read .*nowhere"):
        read_emr(tmp_path / "nowhere")


def test_another_base_and_a_model_that_there_is_not_are_refused(tmp_path):
    base = model(0)
    artefact, _, _ = written(tmp_path / "out", base, [model(1, base), model(2, base)])
    with pytest.raises(InvalidInput, match="'c'; known: a, b"):
        list(artefact.rebuild("c", base))
    with pytest.raises(InvalidInput, match="has no tensor 'b'"):
        list(artefact.rebuild("a", {"w": base["w"]}))
    with pytest.raises(InvalidInput, match=r"\(4, 7\)"):
        list(artefact.rebuild("a", {**base, "w": base["w"][:4]}))
    with pytest.raises(InvalidInput, match="not rebuilt as it was scored: the base has to be models/base"):
        list(artefact.rebuild("a", {**base, "w": base["w"] + 1}))


def test_tensors_of_the_base_that_no_model_has_change_nothing_and_artefacts_of_earlier_versions_are_read(tmp_path):
    base = model(0)
    artefact, merged, _ = written(tmp_path / "out", base, [model(1, base), model(2, base)])
    with_buffer = {**base, "rotary.inv_freq": torch.ones(2)}
    assert tensor_digests(artefact.rebuild("a", with_buffer)) == tensor_digests(merged["a"].items())
    with pytest.raises(InvalidInput, match="has no tensor 'steps'"):
        list(artefact.rebuild("a", {name: base[name] for name in NAMES}))
    document = json.loads((tmp_path / "out" / "emr.json").read_text())
    assert document.pop("kept") == ["steps"]
    (tmp_path / "out" / "emr.json").write_text(json.dumps(document))
    assert tensor_digests(read_emr(tmp_path / "out").rebuild("b", base)) == tensor_digests(merged["b"].items())


def test_a_mask_that_was_changed_is_noticed(tmp_path):
    base = model(0)
    written(tmp_path / "out", base, [model(1, base), model(2, base)])
    file = tmp_path / "out" / "masks" / "b" / "model.safetensors"
    packed = load_file(file)
    save_file({**packed, "w": packed["w"] ^ 1}, file)
    artefact = read_emr(tmp_path / "out")
    assert len(list(artefact.rebuild("a", base))) == 3
    with pytest.raises(InvalidInput, match="'b' is not rebuilt"):
        list(artefact.rebuild("b", base))

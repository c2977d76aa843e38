"""`evomerge distances`: two models, or two sources of a spec, in all and per part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.cli import run_command
from evomerge.merging.distances import cosine, l2, ssd, tssd

TOY = Path(__file__).parent.parent / "examples" / "toy" / "models"
MODALITY = TOY.parent.parent / "methods" / "models" / "modality-experts"
ATTENTION = "blocks.*.attn.{expert}.*"


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = run_command(["distances", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys, *arguments):
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def weights(name: str) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in load_file(TOY / name / "model.safetensors").items()}


def test_distances_are_those_of_the_library_in_all_and_per_part(capsys):
    found = document(capsys, TOY / "reverse", TOY / "sort", "--keep", "0.3")
    x, y = weights("reverse"), weights("sort")
    assert found["schema"] == 1
    assert found["base"] is None
    assert [row["part"] for row in found["distances"]] == ["all", "embedding", "norm", "attention", "mlp"]
    whole, norms = found["distances"][0], found["distances"][2]
    assert whole["elements"] == sum(row["elements"] for row in found["distances"][1:])
    for row, names in ((whole, list(x)), (norms, [name for name in x if "norm" in name])):
        one, other = ({name: model[name] for name in names} for model in (x, y))
        assert row["tensors"] == len(names)
        assert row["l2"] == pytest.approx(l2(one, other))
        assert row["cosine"] == pytest.approx(cosine(one, other))
        assert row["ssd"] == pytest.approx(ssd(one, other))
        assert row["tssd"] == pytest.approx(tssd(one, other, 0.3))


def test_with_a_base_task_vectors_are_compared_and_a_spec_names_its_sources(capsys, write_spec):
    by_name = document(capsys, "reverse", "sort", "--base", "base", "--spec", write_spec())
    by_path = document(capsys, TOY / "reverse", TOY / "sort", "--base", TOY / "base")
    assert by_name["distances"] == by_path["distances"]
    assert by_name["models"][0]["fingerprint"] == by_path["models"][0]["fingerprint"]
    base = weights("base")
    x, y = ({name: tensor - base[name] for name, tensor in weights(model).items()} for model in ("reverse", "sort"))
    assert by_path["distances"][0]["cosine"] == pytest.approx(cosine(x, y))
    assert by_path["distances"][0]["tssd"] == pytest.approx(tssd(x, y))


def test_the_table_has_a_line_per_part(capsys):
    code, out, _ = run(capsys, TOY / "reverse", TOY / "reverse")
    assert code == 0
    assert all(part in out for part in ("all", "embedding", "norm", "attention", "mlp", "TSSD"))


def test_models_that_do_not_fit_are_refused_by_tensor(capsys, tmp_path):
    for change, name in ((lambda tensor: tensor[:, :-1].contiguous(), "shapes"), (None, "different tensors")):
        other = tmp_path / name
        shutil.copytree(TOY / "sort", other)
        tensors = load_file(other / "model.safetensors")
        key = next(each for each in sorted(tensors) if each.endswith("gate_proj.weight"))
        if change is None:
            del tensors[key]
        else:
            tensors[key] = change(tensors[key])
        save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
        code, out, error = run(capsys, TOY / "reverse", other)
        assert (code, out) == (2, "")
        assert key in error


def test_a_model_that_is_missing_and_a_share_above_one_exit_with_two(capsys, tmp_path):
    assert run(capsys, TOY / "reverse", tmp_path / "nothing")[0] == 2
    assert run(capsys, TOY / "reverse", TOY / "sort", "--keep", "1.5")[0] == 2


def test_every_two_sources_of_a_spec_are_in_one_table(capsys, write_spec):
    spec = write_spec()
    found = document(capsys, "--spec", spec, "--base", "base")
    assert [pair["names"] for pair in found["pairs"]] == [["reverse", "sort"]]
    one = document(capsys, "reverse", "sort", "--base", "base", "--spec", spec)
    assert found["pairs"][0]["distances"] == one["distances"]
    assert found["base"] == one["base"]
    assert document(capsys, spec, "--base", "base") == found
    of_weights = document(capsys, "--spec", spec)
    assert [pair["names"] for pair in of_weights["pairs"]] == [
        ["base", "reverse"],
        ["base", "sort"],
        ["reverse", "sort"],
    ]
    assert [model["name"] for model in of_weights["models"]] == ["base", "reverse", "sort"]
    code, out, _ = run(capsys, "--spec", spec)
    assert code == 0
    assert sum("reverse" in line for line in out.splitlines()) == 2
    assert "TSSD" in out


def test_experts_inside_one_checkpoint_are_compared_over_what_both_have(capsys):
    shared, seed_file = MODALITY / "shared.safetensors", MODALITY / "seed.safetensors"
    found = document(capsys, shared, "--pattern", ATTENTION, "--experts", "v,l,vl")
    tensors, seed = load_file(shared), load_file(seed_file)
    v, vl = (
        {
            name.replace(f".{expert}.", "."): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith(f"blocks.2.attn.{expert}.")
        }
        for expert in ("v", "vl")
    )
    pair = next(pair for pair in found["pairs"] if pair["names"] == ["v", "vl"])
    assert [row["part"] for row in pair["distances"]] == ["all", "attention"]
    assert pair["distances"][0]["l2"] == pytest.approx(l2(v, vl))
    assert pair["distances"][0]["ssd"] == pytest.approx(ssd(v, vl))
    options = ("--pattern", ATTENTION, "--experts", "v,vl", "--base", seed_file, "--keep", "0.2")
    row = document(capsys, shared, *options)["pairs"][0]["distances"][0]
    moved = [{name: each[name] - seed[name].float() for name in each} for each in (v, vl)]
    assert row["tssd"] == pytest.approx(tssd(*moved, 0.2))
    assert "experts of" in run(capsys, shared, *options)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give two models"),
        (["reverse"], "give two models"),
        (["MODALITY", "--pattern", "blocks.*.conv.{expert}.*", "--experts", "v,l"], "matches no tensor"),
        (["MODALITY", "--pattern", ATTENTION, "--experts", "v,audio"], "known: l, v, vl"),
        (["MODALITY", "--pattern", ATTENTION, "--experts", "v"], "between two experts"),
        (["MODALITY", "--experts", "v,l"], "--pattern"),
        (["MODALITY", "other", "--pattern", ATTENTION, "--experts", "v,l"], "inside one model"),
        (["MODALITY", "--pattern", ATTENTION, "--experts", "v,l", "--base", "HEADS"], "has no tensor"),
    ],
)
def test_models_and_experts_that_cannot_be_compared_exit_with_two(capsys, tmp_path, arguments, message):
    save_file({"heads.v.bias": torch.zeros(2)}, tmp_path / "heads.safetensors")
    places = {"MODALITY": MODALITY / "shared.safetensors", "HEADS": tmp_path / "heads.safetensors"}
    code, out, error = run(capsys, *(places.get(each, each) for each in arguments))
    assert (code, out) == (2, "")
    assert message in error

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

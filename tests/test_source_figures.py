"""Figures of the sources in `evomerge check`: against their definitions on the toy models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import load_spec
from evomerge.cli import run_command
from evomerge.opening.inputs import open_inputs
from evomerge.source_divergence import source_divergence
from evomerge.source_figures import source_figures
from evomerge.spec.search_spec import SearchSpec

TOY = Path(__file__).parent.parent / "examples" / "toy" / "models"


def inputs_of(write_spec, **changes):
    spec: SearchSpec = load_spec(write_spec(dtype="float32", **changes))
    return open_inputs(spec)


def flat(name):
    tensors = load_file(TOY / name / "model.safetensors")
    return torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])


def test_norms_cosines_and_signs_are_those_of_the_definitions(write_spec):
    figures = source_figures(inputs_of(write_spec))
    base = flat("base")
    one, other = flat("reverse") - base, flat("sort") - base
    found, pair = figures["groups"]["all"], figures["groups"]["all"]["pairs"][0]
    assert figures["rows_read"] == 1
    assert found["norms"]["sort"] == pytest.approx(float(other.norm()))
    assert found["relative_norms"]["sort"] == pytest.approx(float(other.norm() / base.norm()))
    assert pair["sources"] == ["reverse", "sort"]
    assert pair["cosine"] == pytest.approx(float(one @ other / one.norm() / other.norm()))
    both = (one != 0) & (other != 0)
    assert pair["same_sign"] == pytest.approx(float((one[both].sign() == other[both].sign()).double().mean()))


def test_the_groups_are_those_of_the_space_or_else_the_parts(write_spec):
    assert len(source_figures(inputs_of(write_spec))["groups"]) > 3  # blocks of layers
    parts = source_figures(inputs_of(write_spec, space="sce-global"))["groups"]
    assert set(parts) == {"all", "embedding", "norm", "mlp", "attention"}


@pytest.fixture
def mirrored(tmp_path):
    """The location of an expert whose task vector is that of `sort`, backwards and four times as long."""
    shutil.copytree(TOY / "sort", tmp_path / "mirrored")
    base, sort = (load_file(TOY / name / "model.safetensors") for name in ("base", "sort"))
    far = {name: (base[name].float() - 4 * (sort[name].float() - base[name].float())).contiguous() for name in base}
    save_file(far, tmp_path / "mirrored" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "mirrored"


def sources(**locations):
    places = {"base": TOY / "base", **locations}
    return [{"name": name, "location": str(place)} for name, place in places.items()]


def test_the_sentences_tell_what_stands_out(write_spec, mirrored):
    says = " ".join(source_figures(inputs_of(write_spec, sources=sources(sort=TOY / "sort", far=mirrored)))["says"])
    assert "The task vector of far is 4.0 times as long as that of sort" in says
    assert "sort and far undo each other (cosine -1.00)" in says
    assert "hardly more than by chance" in says


def test_an_expert_that_is_the_base_has_no_cosine_and_is_told(write_spec, tmp_path):
    shutil.copytree(TOY / "base", tmp_path / "same")
    figures = source_figures(inputs_of(write_spec, sources=sources(same=tmp_path / "same", sort=TOY / "sort")))
    assert figures["groups"]["all"]["pairs"][0]["cosine"] is None
    assert figures["says"][0] == "same has the weights of the base: nothing can be merged from it."
    json.dumps(figures, allow_nan=False)


def test_the_divergence_from_the_mean_needs_calibration_items_and_a_model(write_spec, pack):
    assert source_divergence(inputs_of(write_spec))["left_out"] == "the evaluator runs no model that could be asked"
    left_out = source_divergence(inputs_of(write_spec, evaluator=str(pack)))
    assert left_out["says"] == ["Divergence of the sources is left out: no source has calibration items."]


def test_the_divergence_is_zero_for_the_mean_itself_and_positive_for_others(write_spec, pack, tmp_path):
    shutil.copytree(TOY / "sort", tmp_path / "again")
    given = sources(sort=TOY / "sort", again=tmp_path / "again")
    given[1]["calibration"] = {"task": "toy_sort", "items": 8}
    found = source_divergence(inputs_of(write_spec, evaluator=str(pack), sources=given))
    assert found["nats"]["sort"] == pytest.approx(0, abs=1e-6)
    assert found["nats"]["base"] > 0.01
    assert "base is the farthest from the mean of the experts' weights" in found["says"][0]


def test_check_prints_the_figures_and_has_them_in_json(write_spec, capsys):
    spec = str(write_spec())
    assert run_command(["check", spec]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "task vectors, all: length" in shown
    assert "Divergence of the sources is left out" in shown
    assert run_command(["check", spec, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["task_vectors"]["groups"]["all"]["pairs"]) == 1
    assert document["divergence"]["left_out"]

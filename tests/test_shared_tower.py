"""`evomerge merge-experts`: any checkpoint with experts becomes a folder with one shared tower, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.artefacts import weight_files
from evomerge.cli import run_command
from evomerge.merging.distances import cosine, tssd
from evomerge.merging.experts import merge_experts

MODALITY = Path(__file__).parent.parent / "examples" / "methods" / "models" / "modality-experts"
SHARED, SEED = MODALITY / "shared.safetensors", MODALITY / "seed.safetensors"
PATTERNS = [f"blocks.*.{module}.{{expert}}.*" for module in ("norm1", "attn", "norm2", "mlp")]
EXPERTS = ["v", "l", "vl"]
ATTENTION = ("qkv.weight", "qkv.bias", "out.weight", "out.bias")


@pytest.fixture
def merge(tmp_path, capsys):
    """merge(*options, model=..., patterns=..., experts=...) -> exit code, document or error; to the folder `out`."""

    def run(*options, model=SHARED, patterns=PATTERNS, experts="v,l,vl"):
        named = [part for pattern in patterns for part in ("--pattern", pattern)]
        out = str(tmp_path / "out")
        code = run_command(
            ["merge-experts", str(model), *named, "--experts", experts, "--out", out, "--json", *map(str, options)]
        )
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if code == 0 else captured.err

    return run


def folder_of(path: Path, tensors, **files) -> Path:
    """A folder with the tensors and small texts; of their names the first underscore is a dot."""
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    for name, text in files.items():
        (path / name.replace("_", ".", 1)).write_text(text)
    return path


def grams(tensors):
    """A Gram for each weight of an expert: positive definite, and another one for every tensor."""
    found = {}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        if name.startswith("blocks.") and tensor.dim() == 2:
            inputs = torch.randn(3 * tensor.shape[1], tensor.shape[1], generator=torch.Generator().manual_seed(number))
            found[name] = inputs.T @ inputs
    return found


@pytest.mark.parametrize("method", ["interpolation", "arithmetic", "regmean"])
def test_the_written_tower_is_that_of_the_library(merge, tmp_path, method):
    tensors = load_file(SHARED)
    save_file(grams(tensors), tmp_path / "grams.safetensors")
    options, settings = {
        "interpolation": (["--a", 0.25], {"parameters": {"a": 0.25}}),
        "arithmetic": (
            ["--lambda", 0.5, "--arithmetic", "sequential_legacy", "--seed-model", SEED],
            {
                "parameters": {"lambda": 0.5},
                "options": {"arithmetic": "sequential_legacy"},
                "seed": load_file(SEED),
            },
        ),
        "regmean": (
            ["--scaling", 0.9, "--statistics", tmp_path / "grams.safetensors"],
            {"parameters": {"scaling": 0.9}, "statistics": grams(tensors)},
        ),
    }[method]
    code, document = merge("--method", method, *options)
    assert code == 0, document
    expected = merge_experts(tensors, PATTERNS, EXPERTS, method, **settings)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(written) == sorted(expected)
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    record = json.loads((tmp_path / "out" / "experts.json").read_text())
    assert record["method"] == method
    assert record["parameters"] == settings["parameters"]
    assert record["merged"]["blocks.2.attn.qkv.weight"] == [f"blocks.2.attn.{each}.qkv.weight" for each in EXPERTS]
    assert bool(record["seed_model"]) == (method == "arithmetic")
    assert bool(record["statistics"]) == (method == "regmean")
    assert document["tensors"] == len(expected)


def test_it_is_written_shard_by_shard_and_read_from_shards(merge, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "MAX_SHARD_BYTES", 20_000)
    assert merge()[0] == 0
    out = tmp_path / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    tower = {name for shard in set(index.values()) for name in load_file(out / shard)}
    assert tower == set(index)
    out.rename(tmp_path / "sharded")
    code, error = merge(model=tmp_path / "sharded")  # it has no experts any more
    assert code == 2
    assert "matches no tensor" in error


def test_a_full_disk_is_said_with_the_folder_of_the_result_and_nothing_is_left(merge, tmp_path, room_for):
    with room_for(4096):
        code, error = merge()
    assert code == 3
    assert f"the disk of {tmp_path}" in " ".join(error.split())
    assert not list(tmp_path.glob("*out*"))


def test_config_and_tokenizer_are_copied_from_a_folder_and_other_files_are_not(merge, tmp_path):
    texts = {"config_json": "{}", "vocab_txt": "a", "notes_md": "no", "old_bin": "no"}
    model = folder_of(tmp_path / "model", load_file(SHARED), **texts)
    assert merge(model=model)[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "experts.json",
        "model.safetensors",
        "vocab.txt",
    ]


def test_the_licence_and_named_chat_templates_are_copied_and_replaced(merge, tmp_path):
    model = folder_of(tmp_path / "model", load_file(SHARED), config_json="{}", README_md="---\nlicense: mit\n---\n")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").write_text("R")
    for _ in range(2):
        assert merge(model=model)[0] == 0
        assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").read_text() == "R"
        assert "license: mit" in (tmp_path / "out" / "README.md").read_text()


def test_an_earlier_result_is_replaced_and_nothing_else(merge, tmp_path):
    first, second = merge("--a", "0.25")[1], merge("--a", "0.75")[1]
    assert first["digest"] != second["digest"]
    (tmp_path / "out" / "mine.bin").write_text("mine")
    code, error = merge()
    assert code == 2
    assert "mine.bin" in error
    model = folder_of(tmp_path / "model", load_file(SHARED))
    arguments = ["--pattern", PATTERNS[0], "--experts", "v,l", "--out", str(model)]
    assert run_command(["merge-experts", str(model), *arguments]) == 2
    assert sorted(load_file(model / "model.safetensors")) == sorted(load_file(SHARED))


def test_the_distances_between_the_experts_are_printed_and_in_the_record(merge, tmp_path, capsys):
    _, document = merge()
    tensors = load_file(SHARED)
    attention = {
        each: {
            f"{block}.{name}": tensors[f"blocks.{block}.attn.{each}.{name}"] for block in "012" for name in ATTENTION
        }
        for each in "vl"
    }
    assert [pair["names"] for pair in document["distances"]] == [["v", "l"], ["v", "vl"], ["l", "vl"]]
    rows = {row["part"]: row for row in document["distances"][0]["distances"]}
    assert rows["attention"]["cosine"] == pytest.approx(cosine(attention["v"], attention["l"]))
    assert rows["attention"]["tssd"] == pytest.approx(tssd(attention["v"], attention["l"]))
    assert json.loads((tmp_path / "out" / "experts.json").read_text())["distances"] == document["distances"]
    arguments = ["--pattern", PATTERNS[1], "--experts", "v,l,vl", "--out", str(tmp_path / "out")]
    assert run_command(["merge-experts", str(SHARED), *arguments]) == 0
    text = capsys.readouterr().out
    assert "TSSD" in text
    assert "by interpolation" in text


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ([], {"patterns": [*PATTERNS, "blocks.*.conv.{expert}.*"]}, "'blocks.*.conv.{expert}.*' matches no tensor"),
        ([], {"patterns": ["blocks.*.attn.*"]}, "names the expert once"),
        ([], {"patterns": []}, "--pattern"),
        ([], {"experts": "v,l,audio"}, "'audio'; known: l, v, vl"),
        ([], {"experts": "v,v"}, "different names"),
        ([], {"model": "nowhere/at/all"}, "no directory"),
        (["--method", "average"], {}, "average"),
        (["--method", "arithmetic"], {}, "--seed-model"),
        (["--method", "arithmetic", "--seed-model", SHARED], {}, "the seed has no tensor"),
        (["--method", "regmean"], {}, "--statistics"),
        (["--method", "regmean", "--statistics", SEED], {}, "no Gram of an expert's tensor"),
        (["--method", "regmean", "--statistics", "SINGULAR"], {}, "singular"),
        (["--method", "regmean", "--a", "0.5"], {}, "a belongs to interpolation"),
        (["--seed-model", SEED], {}, "seed-model belongs to arithmetic"),
        (["--arithmetic", "sum"], {}, "arithmetic belongs to arithmetic"),
        (["--method", "arithmetic", "--seed-model", SEED, "--arithmetic", "product"], {}, "product"),
    ],
)
def test_what_cannot_be_merged_exits_with_two_and_writes_nothing(merge, tmp_path, options, changes, message):
    singular = {name: torch.zeros_like(gram) for name, gram in grams(load_file(SHARED)).items()}
    save_file(singular, tmp_path / "singular.safetensors")
    options = [tmp_path / "singular.safetensors" if each == "SINGULAR" else each for each in options]
    before = sorted(tmp_path.iterdir())
    code, error = merge(*options, **changes)
    assert code == 2
    assert message in error
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_may_have_any_file_name_but_only_one(merge, tmp_path):
    model = folder_of(tmp_path / "model", load_file(SHARED))
    (model / "model.safetensors").rename(model / "diffusion.safetensors")
    assert merge(model=model)[0] == 0
    save_file(load_file(SEED), model / "other.safetensors")
    code, error = merge(model=model)
    assert code == 2
    assert "several state dicts" in error
    assert merge(model=model / "diffusion.safetensors")[0] == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no tensors")
    for name in ("empty", "text.txt"):
        code, error = merge(model=tmp_path / name)
        assert code == 2
        assert "safetensors file" in error

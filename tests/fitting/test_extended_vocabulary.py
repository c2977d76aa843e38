"""`evomerge extend-vocabulary`: a base with the tokens that experts have added, and merges that have them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoints import check_compatible, open_source
from evomerge.checkpoints.vocabulary import embedding_rows, spare_rows, token_tensors
from evomerge.cli import run_command
from evomerge.errors import InvalidInput
from evomerge.extended_vocabulary import extended_base, resized_config
from evomerge.fitting import open_fitted
from evomerge.licenses import read_license
from evomerge.recipe import ModelRef

MakeRef = Callable[..., ModelRef]
EMBEDDINGS = "model.embed_tokens.weight"


def _extend(out: Path, *refs: ModelRef) -> int:
    return run_command(["extend-vocabulary", *(ref.location for ref in refs), "--out", str(out), "--json"])


@pytest.mark.parametrize("tied", [False, True])
def test_a_base_gets_the_tokens_that_experts_have_added_with_their_rows(
    make_ref: MakeRef, tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_ref("base", "abc", tied=tied)
    one = make_ref("one", "abc", added=["<x>"], tied=tied, tokenizer="base")
    two = make_ref("two", "bacd", added=["<y>", "<x>"], tied=tied, tokenizer="base")
    assert _extend(tmp_path / "out", base, one, two) == 0
    document = json.loads(capsys.readouterr().out)
    assert {token: facts["id"] for token, facts in document["tokens"].items()} == {"<x>": 3, "<y>": 4}
    assert document["left_out"] == {two.location: 1}  # d
    made, parents = open_source(ModelRef("base", str(tmp_path / "out"))), [open_source(ref) for ref in (base, one, two)]
    for name in (EMBEDDINGS,) if tied else (EMBEDDINGS, "lm_head.weight"):
        start, first, second = (parent.tensors[name] for parent in parents)
        expected = torch.stack([*start, (first[3] + second[5]) / 2, second[4]])
        torch.testing.assert_close(made.tensors[name], expected)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(["a", "<x>", "<y>"]) == [0, 3, 4]
    assert {"<x>", "<y>"} <= set(map(str, tokenizer.added_tokens_decoder.values()))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 5
    experts = [open_fitted(ref, base=made) for ref in (one, two)]
    assert check_compatible(made, experts)
    assert torch.equal(experts[1].tensors[EMBEDDINGS][4], made.tensors[EMBEDDINGS][4])


def test_the_one_tensor_of_a_tied_expert_gives_both_rows_of_an_untied_base(make_ref: MakeRef, tmp_path: Path) -> None:
    base, expert = make_ref("base", "abc"), make_ref("expert", "abc", added=["<x>"], tied=True)
    assert _extend(tmp_path / "out", base, expert) == 0
    made = load_file(tmp_path / "out" / "model.safetensors")
    row = load_file(Path(expert.location) / "model.safetensors")[EMBEDDINGS][3]
    assert torch.equal(made[EMBEDDINGS][3], row)
    assert torch.equal(made["lm_head.weight"][3], row)


def test_rows_that_sizes_were_rounded_up_with_are_used_before_new_ones(make_ref: MakeRef, tmp_path: Path) -> None:
    base, expert = make_ref("base", "abc", rows=8), make_ref("expert", "abc", added=["<x>"], rows=8)
    assert _extend(tmp_path / "out", base, expert) == 0
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert made[EMBEDDINGS].shape == (8, 8)
    assert torch.equal(made[EMBEDDINGS][3], load_file(Path(expert.location) / "model.safetensors")[EMBEDDINGS][3])


def test_a_vocabulary_of_a_nested_config_is_aligned_and_extended(make_ref: MakeRef, tmp_path: Path) -> None:
    base = make_ref("base", "abc", rows=4, nested=True)
    expert = make_ref("expert", "bacd", rows=6, added=["<x>", "<y>"], nested=True, tokenizer="base")
    start = open_source(base)
    (name,) = token_tensors(start)
    assert (embedding_rows(start), spare_rows(start)) == (4, 1)
    aligned = open_fitted(expert, base=start)
    assert not any("vocab_size" in warning for warning in check_compatible(start, [aligned]))
    theirs = aligned.weights.tensors[aligned.stored_names[name]]
    assert torch.equal(aligned.tensors[name][:3], theirs[[1, 0, 2]])
    assert _extend(tmp_path / "out", base, expert) == 0
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    rows = made.get_input_embeddings().weight
    assert made.config.get_text_config().vocab_size == len(rows) == 5
    assert torch.equal(rows[3:], theirs[4:])
    with pytest.raises(InvalidInput, match=r"config text_config.vocab_size is 4 and 6 \(`tokenizer: base`"):
        check_compatible(start, [open_fitted(replace(expert, tokenizer=None), base=start)])


def test_a_size_that_a_config_leaves_out_as_a_default_is_written_where_it_belongs() -> None:
    settings = {"text_config": {"vocab_size": 9}, "vision_config": {"vocab_size": 7}}
    config = {"text_config": {}, "vision_config": {}}
    assert resized_config(config, settings, 9, 12) == {"text_config": {"vocab_size": 12}, "vision_config": {}}


def test_an_extended_base_keeps_the_licence_of_the_base(make_ref: MakeRef, tmp_path: Path) -> None:
    base, expert = make_ref("base", "abc"), make_ref("expert", "abc", added=["<x>"])
    for name, text in (("README.md", "---\nlicense: apache-2.0\n---\n"), ("COPYING", "terms"), ("NOTICE", "thanks")):
        (Path(base.location) / name).write_text(text)
    assert _extend(tmp_path / "out", base, expert) == 0
    assert read_license(tmp_path / "out").names == ("apache-2.0",)
    assert {"COPYING", "NOTICE"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_an_extended_base_has_the_code_that_it_was_allowed_to_run(
    make_ref: MakeRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    base, expert = make_ref("base", "abc"), make_ref("expert", "abc", added=["<x>"])
    for ref in (base, expert):
        (Path(ref.location) / "modeling_own.py").write_text(
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
            "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        )
        config = Path(ref.location) / "config.json"
        own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "own", "auto_map": own}))
    extended_base(base.location, [expert.location], tmp_path / "out", allow=["remote_code"])
    made = open_source(ModelRef("made", str(tmp_path / "out")), allow=["remote_code"])
    assert (made.remote_code, embedding_rows(made)) == (True, 4)


def test_nothing_to_add_and_a_folder_that_exists_are_refused(
    make_ref: MakeRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, expert = make_ref("base", "abc"), make_ref("expert", "abcd")
    assert _extend(tmp_path / "out", base, expert) == 2
    assert "added no token that" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert _extend(Path(base.location), base, expert) == 2
    assert "exists; give --out a new folder" in capsys.readouterr().err

"""Digests of a model's tokenizer, templates, generation settings and code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.checkpoints import Source, open_source
from evomerge.checkpoints.files_beside_weights import alike_beside_weights, files_beside_weights
from evomerge.recipe import ModelRef

TOY = Path(__file__).parents[2] / "examples" / "toy" / "models"


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], Source]:
    """The copy of a toy model in `tmp_path / "model"`, opened as it is now."""
    shutil.copytree(TOY / "base", tmp_path / "model")
    return lambda: open_source(ModelRef("base", str(tmp_path / "model")), fingerprinted=False)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def different(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@pytest.mark.parametrize(
    ("file", "changes", "alike"),
    [
        ("config.json", {"_name_or_path": "elsewhere", "transformers_version": "0"}, True),
        ("config.json", {"rms_norm_eps": 0.5}, False),
        ("tokenizer_config.json", {"chat_template": "{{ messages[0].content }}"}, False),
        ("generation_config.json", {"repetition_penalty": 1.3}, False),
    ],
)
def test_two_models_are_alike_beside_their_weights_by_what_decides_a_score(
    tmp_path: Path, file: str, changes: dict[str, object], alike: bool
) -> None:
    shutil.copytree(TOY / "sort", tmp_path / "model")
    assert alike_beside_weights(TOY / "base", tmp_path / "model")
    edit(tmp_path / "model" / file, **changes)
    assert alike_beside_weights(TOY / "base", tmp_path / "model") is alike


def test_an_adapter_is_never_alike_to_its_base_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not alike_beside_weights(TOY / "base", tmp_path)
    assert not alike_beside_weights(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"chat_template": "{{ messages[0].content }}"}),
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("generation_config.json", {"repetition_penalty": 1.3}),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
    ],
)
def test_a_change_of_prompts_or_texts_is_found_in_its_file(
    opened: Callable[[], Source], tmp_path: Path, file: str, changes: dict[str, object]
) -> None:
    before = files_beside_weights(opened())
    edit(tmp_path / "model" / file, **changes)
    assert different(before, files_beside_weights(opened())) == [file]


def test_a_template_in_a_file_of_its_own_is_found(opened: Callable[[], Source], tmp_path: Path) -> None:
    before = files_beside_weights(opened())
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert different(before, files_beside_weights(opened())) == ["chat_template.jinja"]


def test_settings_that_another_release_of_transformers_saved_are_the_same(
    opened: Callable[[], Source], tmp_path: Path
) -> None:
    before = files_beside_weights(opened())
    edit(tmp_path / "model" / "generation_config.json", transformers_version="0.1")
    assert files_beside_weights(opened()) == before


def test_the_code_of_a_model_counts_where_it_may_run_and_has_no_pinned_revision(
    opened: Callable[[], Source], tmp_path: Path
) -> None:
    (tmp_path / "model" / "modeling_own.py").write_text("x = 1")
    source = opened()
    assert "modeling_own.py" not in files_beside_weights(source)
    assert "modeling_own.py" in files_beside_weights(replace(source, remote_code=True))
    assert "modeling_own.py" not in files_beside_weights(replace(source, remote_code=True, hub_id="owner/model"))

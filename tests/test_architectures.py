"""A fast part of `make architectures`: models that each stand for a kind, through a whole search and its export."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # scripts, which are no package

from architecture_examination import EQUAL, REFUSED, examine
from architecture_pack import write_pack
from architecture_zoo import ZOO

EXPECTED = {
    "phi3, long-rope": EQUAL,
    "olmo2, dynamic NTK beyond its length": EQUAL,
    "doge, keeps 24": EQUAL,
    "falcon, ALiBi": EQUAL,
    "recurrent_gemma": EQUAL,
    "rwkv": EQUAL,
    "llama, value head": EQUAL,
    "gemma, both tied names": EQUAL,
    "remote, code": EQUAL,
    "gpt_oss, float16": EQUAL,
    "qwen3_5, written as image-text-to-text": EQUAL,
    "mixtral": EQUAL,
    "inkling2_text": REFUSED,
    "bert, is_decoder: false": REFUSED,
}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, Path]:
    folder = tmp_path_factory.mktemp("packs")
    return {length: write_pack(folder / str(length), max_length=length) for length in (None, 512)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_model_is_equal_to_lm_eval_and_to_a_plain_merge_or_refused_by_check(
    name: str, packs: dict[int | None, Path], tmp_path: Path
) -> None:
    specimen = next(each for each in ZOO if each.name == name)
    row = examine(specimen, tmp_path, packs[specimen.max_length])
    assert row.verdict == EXPECTED[name], row.reason


def test_the_zoo_holds_enough_architectures_and_no_name_twice() -> None:
    assert len({each.model_type for each in ZOO}) >= 100
    assert len({each.name for each in ZOO}) == len(ZOO)

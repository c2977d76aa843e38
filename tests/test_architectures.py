"""A fast part of `make architectures`: models that each stand for a kind, through a whole search and its export."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # scripts, which are no package

from architecture_examination import EQUAL, REFUSED, examine
from architecture_models import make_model
from architecture_pack import write_pack
from architecture_zoo import ZOO, Specimen

from evomerge.catalogue.attention_heads import attention_heads
from evomerge.catalogue.unit_patterns import unit_groups

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


# Number of modules whose attention heads may change places.
HEADS = {
    "phi3, long-rope": 0,
    "doge, keeps 24": 0,
    "falcon, ALiBi": 0,
    "recurrent_gemma": 1,
    "llama, value head": 2,
    "qwen3_5, written as image-text-to-text": 1,
    "mixtral": 2,
}
SHARED_BLOCK = {
    "num_hidden_layers": 5,
    "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid"],
    "mamba_d_state": 8,
    "use_mamba_kernels": False,
    "head_dim": ...,  # twice what the model's width tells, as in the released models
}
WIDE = (
    Specimen(
        name="zamba, wide heads",
        group="Hybrids",
        model_type="zamba",
        changes={**SHARED_BLOCK, "num_key_value_heads": 4, "mamba_dt_rank": 4, "n_mamba_heads": 2},
    ),
    Specimen(
        name="zamba2, wide heads",
        group="Hybrids",
        model_type="zamba2",
        changes={**SHARED_BLOCK, "n_mamba_heads": 8, "mamba_headdim": 8, "chunk_size": 16},
    ),
)
MOVING = [(each, HEADS[each.name]) for each in ZOO if each.name in HEADS] + [(each, 2) for each in WIDE]


@torch.no_grad()
@pytest.mark.parametrize(("specimen", "heads"), MOVING, ids=lambda each: getattr(each, "name", ""))
def test_units_that_may_change_places_change_nothing_that_a_model_computes(specimen: Specimen, heads: int) -> None:
    model = make_model(specimen).float().eval()
    tensors = model.state_dict()
    groups = unit_groups(tensors, attention_heads(model.config.to_dict()))
    assert sum(any("q_proj" in member.name for member in group.members) for group in groups) == heads
    tokens = torch.arange(3, 12)[None]
    expected = model(tokens).logits
    moved: set[int] = set()
    for member, units in ((member, group.units) for group in groups for member in group.members):
        if (tensor := tensors[member.name]).data_ptr() in moved:  # a block that several layers share
            continue
        moved.add(tensor.data_ptr())
        rows = tensor.movedim(member.axis, 0)
        rows.copy_(rows.reshape(member.repeats, units, member.size, -1).roll(1, dims=1).reshape(rows.shape))
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_zoo_holds_enough_architectures_and_no_name_twice() -> None:
    assert len({each.model_type for each in ZOO}) >= 100
    assert len({each.name for each in ZOO}) == len(ZOO)

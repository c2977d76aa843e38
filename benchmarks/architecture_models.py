"""Writes the models of the zoo as checkpoints: a base and two perturbed experts, each in the form that is asked for."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from architecture_zoo import COMMON, Specimen
from made_up_models import toy_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from evomerge.passes.kernels import DTYPES

NAMES = ("base", "first", "second")
REMOTE_CODE = Path(__file__).with_name("remote_model.py")
PERTURBATION = 0.2  # of an expert, in standard deviations of each tensor

State = dict[str, torch.Tensor]


def write_sources(specimen: Specimen, folder: Path) -> dict[str, Path]:
    """Write base and experts with the toy models' tokenizer. Returns source name -> its directory."""
    return {name: _write(specimen, folder / name, seed) for seed, name in enumerate(NAMES)}


def make_config(specimen: Specimen) -> Any:
    """The specimen's config: the common sizes, where its class knows them, and the specimen's own settings."""
    if specimen.remote_code:
        from remote_model import RemoteConfig

        return RemoteConfig(**specimen.changes)
    known = type(AutoConfig.for_model(specimen.model_type))
    names = {field.name for field in fields(known)} | set(known.attribute_map)
    common = {} if specimen.nested else {name: value for name, value in COMMON.items() if name in names}
    settings = {name: value for name, value in (common | dict(specimen.changes)).items() if value is not ...}
    return known(**settings)


def _write(specimen: Specimen, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = make_model(specimen)
        _disperse(model, seed)
    model = model.to(DTYPES[specimen.stored])
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder, max_shard_size=specimen.shard_size)
    tokenizer = toy_tokenizer()
    tokenizer.model_max_length = 2048
    tokenizer.save_pretrained(folder)
    if specimen.remote_code:
        _name_code(folder)
    for form in specimen.forms:
        FORMS[form](folder, model)
    return folder


def make_model(specimen: Specimen) -> Any:
    """The specimen's model, with weights that its class draws."""
    config = make_config(specimen)
    if specimen.remote_code:
        from remote_model import RemoteForCausalLM

        return RemoteForCausalLM(config)
    maker = getattr(transformers, specimen.written_as)
    return maker.from_config(config)


@torch.no_grad()
def _disperse(model: Any, seed: int) -> None:
    """Move every weight a little: biases and norms start at 0 and 1, which would hide mix-ups; experts differ."""
    for number, parameter in enumerate(model.parameters()):
        spread = max(0.02, float(parameter.std())) if parameter.numel() > 1 else 0.02
        for key in {0, seed}:
            generator = torch.Generator().manual_seed(1000 * number + key)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread * PERTURBATION)


def _name_code(folder: Path) -> None:
    shutil.copyfile(REMOTE_CODE, folder / "modeling_remote.py")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {
        "AutoConfig": "modeling_remote.RemoteConfig",
        "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM",
    }
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def read_checkpoint(folder: Path) -> State:
    """Every tensor that a checkpoint stores, whatever the form, under its stored name."""
    state: State = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    for path in sorted(folder.glob("*.bin")):
        state |= torch.load(path, weights_only=True)
    return state


def _rewritten(change: Callable[[State, Any], State]) -> Callable[[Path, Any], None]:
    """A form that is a change of the one weights file."""

    def rewrite(folder: Path, model: Any) -> None:
        state = {name: tensor.clone() for name, tensor in change(read_checkpoint(folder), model).items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def _without_prefix(state: State, model: Any) -> State:
    return {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in state.items()}


def _gamma_and_beta(state: State, model: Any) -> State:
    names = {"weight": "gamma", "bias": "beta"}
    return {re.sub(r"LayerNorm\.(weight|bias)$", lambda m: f"LayerNorm.{names[m[1]]}", k): v for k, v in state.items()}


def _norms_in_float32(state: State, model: Any) -> State:
    return {name: tensor.float() if "norm" in name.lower() else tensor for name, tensor in state.items()}


def _compiled(state: State, model: Any) -> State:
    return {f"_orig_mod.{name}": tensor for name, tensor in state.items()}


def _both_tied_names(state: State, model: Any) -> State:
    head = model.get_output_embeddings().weight
    return state | {name: head.detach() for name, each in model.state_dict(keep_vars=True).items() if each is head}


def _old_buffers(state: State, model: Any) -> State:
    return state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(4.0)}


def _with_value_head(state: State, model: Any) -> State:
    return state | {"v_head.weight": torch.linspace(-1, 1, 32), "v_head.bias": torch.tensor([0.25])}


def _pickle(folder: Path, zipped: bool) -> None:
    state = read_checkpoint(folder)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


FORMS: dict[str, Callable[[Path, Any], None]] = {
    "without prefix": _rewritten(_without_prefix),
    "gamma and beta": _rewritten(_gamma_and_beta),
    "norms in float32": _rewritten(_norms_in_float32),
    "_orig_mod.": _rewritten(_compiled),
    "both tied names": _rewritten(_both_tied_names),
    "old buffers": _rewritten(_old_buffers),
    "value head": _rewritten(_with_value_head),
    "pickled": lambda folder, model: _pickle(folder, zipped=True),
    "pickled as before torch 1.6": lambda folder, model: _pickle(folder, zipped=False),
}

"""DAM per step, beside a plain implementation that lets autograd go through the merge.

    python benchmarks/dam.py [--json] [--steps 5] [--cases 32:float32 32:bfloat16 128:float32]

A case is the number of tokens of each text, and the dtype of the sources.

Both sides train the same coefficients of the same randomly initialised Llama-like model on the same tokens, with one
thread, KL and similarity losses, and the sources as teachers on the fly:

* ours: `evomerge.training.train_dam`, with MoFO and the published settings;
* plain: for every tensor sum_i c_i * W_i in torch operations that autograd records, `functional_call` on the result for
  each source in turn, the losses summed, one backward pass, and Adam.

Time and memory are taken as in `training_step.py`; the last column adds the bytes of the sources to both sides.

The targets are a time ratio of at most 0.8 and a memory ratio of at most 0.6. The longer the texts, the more
of the time is matrix products that both sides make, and the nearer both ratios come to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training_step import SOURCES, live_model, mapped_sources, run, token_ids

LEARNING_RATE = 1e-3


def case(text: str) -> dict[str, Any]:
    length, _, stored = text.partition(":")
    return {"length": int(length), "stored": stored or "float32"}


CASES = [case(text) for text in ("32:float32", "32:bfloat16", "128:float32")]


def main() -> None:
    run(
        "dam",
        __doc__.splitlines()[0],
        models=SOURCES,
        cases=CASES,
        case=case,
        our_steps=our_steps,
        plain_steps=plain_steps,
    )


def our_steps(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    from evomerge.evaluation.evaluator import CalibrationText
    from evomerge.recipe import ModelRef, Recipe, Rule
    from evomerge.training import DamSettings, TrainingInputs, train_dam

    model = live_model(options)
    live = model.state_dict(keep_vars=True)
    weights = mapped_sources(folder, SOURCES)
    count = options["steps"] + 1
    refs = tuple(ModelRef(name, name, fingerprint=name) for name in SOURCES)
    rule = Rule(
        tensors=tuple(live),
        method="linear",
        sources=SOURCES,
        parameters={"weight": (1.0,) * len(SOURCES)},
        options={"normalize": True},
    )
    inputs = TrainingInputs(
        model=model,
        live=live,
        weights=weights,
        texts={
            name: [CalibrationText(token_ids(options, source, step), 0) for step in range(count)]
            for source, name in enumerate(SOURCES)
        },
        initial=Recipe(base=refs[0], sources=refs, rules=(rule,), dtype=options["dtype"]),
        seed=0,
        files=folder,
    )
    for _ in train_dam(inputs, DamSettings(measured_items=1, learning_rate=LEARNING_RATE)):
        yield


def plain_steps(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    import torch
    from torch.func import functional_call

    from evomerge.training.dam import kl_loss, similarity

    model = live_model(options)
    weights = list(mapped_sources(folder, SOURCES).values())
    dtype = getattr(torch, options["dtype"])
    linear = [key for key, tensor in weights[0].items() if tensor.ndim == 2 and key != "model.embed_tokens.weight"]
    frozen = {
        key: (sum(source[key].float() for source in weights) / len(weights)).to(dtype)
        for key in weights[0]
        if key not in linear
    }
    coefficients = {
        key: torch.full((len(weights), weights[0][key].shape[1]), 1 / len(weights), requires_grad=True)
        for key in linear
    }
    for parameter in model.parameters():
        parameter.data = torch.empty(0)  # functional_call gives the model all of its weights
    optimizer = torch.optim.Adam(coefficients.values(), lr=LEARNING_RATE)
    for step in range(options["steps"] + 1):
        merged = {
            key: sum(c * source[key] for c, source in zip(coefficients[key], weights, strict=True)).to(dtype)
            for key in linear
        }
        loss = similarity(coefficients.values())
        for index, source in enumerate(weights):
            tokens = torch.tensor([token_ids(options, index, step)])
            arguments = {"input_ids": tokens, "use_cache": False}
            with torch.no_grad():
                own = {key: tensor.to(dtype) for key, tensor in source.items()}
                teacher = functional_call(model, own, (), arguments).logits
            student = functional_call(model, frozen | merged, (), arguments).logits
            loss = loss + kl_loss(student, teacher, torch.ones_like(tokens))
        del merged, student, teacher, own
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(coefficients.values(), 1.0)
        optimizer.step()
        del loss
        yield


if __name__ == "__main__":
    main()

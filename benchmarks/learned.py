"""A step of the trainer `learned`, beside a plain implementation that lets autograd go through the merge.

    python benchmarks/learned.py [--json] [--steps 5] [--cases 32:tensor 32:column 128:tensor 512:tensor]

A case is the number of tokens of each text, and the granularity of the coefficients.

Both sides learn the same coefficients of three sources beside a base, randomly initialised Llama-like models, on the
same tokens, one text per source and step, of which the second half is the answer, with one thread:

* ours: `evomerge.learned.train_learned`, without items to stop by;
* plain: for every tensor W_0 + sum_i c_i * (W_i - W_0) in torch operations that autograd records, `functional_call` on
  the result for all texts at once, the negative log-likelihood of the answers, one backward pass, and Adam.

Time and memory are taken as in `training_step.py`; the last column adds the bytes of the sources to both sides.

The targets, at 32 tokens, are a time ratio of at most 0.8 and a memory ratio of at most 0.6. The longer the texts, the
more of the time is matrix products that both sides make, and the nearer both ratios come to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training_step import SOURCES, live_model, mapped_sources, run, token_ids

LEARNING_RATE = 1e-3
BASE = "base"
MODELS = (BASE, *SOURCES)


def case(text: str) -> dict[str, Any]:
    length, _, granularity = text.partition(":")
    return {"length": int(length), "granularity": granularity or "tensor"}


CASES = [case(text) for text in ("32:tensor", "32:column", "128:tensor", "128:column", "512:tensor", "512:column")]


def main() -> None:
    run(
        "learned",
        __doc__.splitlines()[0],
        models=MODELS,
        cases=CASES,
        case=case,
        our_steps=our_steps,
        plain_steps=plain_steps,
    )


def our_steps(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    from evomerge.evaluation.evaluator import CalibrationText
    from evomerge.learned import LearnedSettings, train_learned
    from evomerge.optimisation.training_inputs import TrainingInputs
    from evomerge.recipe import ModelRef, Recipe

    model = live_model(options)
    base, *experts = (ModelRef(name, name, fingerprint=name) for name in MODELS)
    half = options["length"] // 2
    inputs = TrainingInputs(
        model=model,
        live=model.state_dict(keep_vars=True),
        weights=mapped_sources(folder, MODELS),
        texts={
            name: [CalibrationText(token_ids(options, source, step), half) for step in range(options["steps"] + 1)]
            for source, name in enumerate(SOURCES)
        },
        initial=Recipe(base=base, sources=tuple(experts), rules=(), dtype=options["dtype"]),
        seed=0,
        files=folder,
    )
    settings = LearnedSettings(
        granularity=options["granularity"],
        initial=0.5,
        steps=options["steps"] + 1,
        batch_size=1,
        learning_rate=LEARNING_RATE,
        stop_share=0.0,
        measured_items=1,
    )
    for _ in train_learned(inputs, settings):
        yield


def plain_steps(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    import torch
    from torch.func import functional_call

    model = live_model(options)
    weights = mapped_sources(folder, MODELS)
    base, experts = weights[BASE], [weights[name] for name in SOURCES]
    dtype = getattr(torch, options["dtype"])
    columns = options["granularity"] == "column"
    coefficients = {
        key: torch.full((len(experts), *(tensor.shape[-1:] if columns else ())), 0.5, requires_grad=True)
        for key, tensor in base.items()
    }
    for parameter in model.parameters():
        parameter.data = torch.empty(0)  # functional_call gives the model all of its weights
    optimizer = torch.optim.Adam(coefficients.values(), lr=LEARNING_RATE)
    half = options["length"] // 2
    for step in range(options["steps"] + 1):
        merged = {
            key: sum(
                (c * (source[key] - tensor) for c, source in zip(coefficients[key], experts, strict=True)), tensor
            ).to(dtype)
            for key, tensor in base.items()
        }
        tokens = torch.tensor([token_ids(options, source, step) for source in range(len(experts))])
        logits = functional_call(model, merged, (), {"input_ids": tokens, "use_cache": False}).logits
        scores = logits[:, half - 1 : -1].float().log_softmax(-1)
        loss = -scores.gather(-1, tokens[:, half:, None]).sum() / len(experts)
        del merged, logits, scores
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del loss
        yield


if __name__ == "__main__":
    main()

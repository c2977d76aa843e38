"""Evaluators by name: a class of this process or of an installed package, or a pack."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from evomerge.errors import unknown_name
from evomerge.evaluation import find_evaluator, known_evaluators
from evomerge.evaluation.evaluator import Evaluator
from evomerge.packs.items import Split
from evomerge.packs.pack import known_packs, load_pack
from evomerge.recipe import ModelRef
from evomerge.vllm_engine.engine_settings import VLLM, engine_settings


def build_evaluator(
    name: str,
    *,
    base: ModelRef,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    split: Split | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    allow: Collection[str] = (),
) -> Evaluator:
    """Build the evaluator of a name.

    Args:
        name: of a class in `EVALUATORS` or of an installed package, or else name or path of a pack.
        base: the model whose tokenizer a pack uses.
        seed: the study's.
        settings: of an evaluator class; for a pack, its engine, see `EngineSettings`.
        bounds: param -> (low, high), for analytic evaluators.
        split: the study's item split; None lets the evaluator compute it (at creation).
        batch_size: the study's; None lets a pack find it (at creation).
        device: named in the `lm_eval` commands that are printed.
        allow: what the user has allowed by name.

    Raises:
        InvalidInput: there is neither, its tasks or metrics do not exist, or its engine cannot be used.
        OtherSpec: the documents are not those of the given split.
    """
    classes = known_evaluators()
    if name in classes:
        built = find_evaluator(name)(dict(settings or {}), bounds=bounds or {}, seed=seed, split=split)
        return cast(Evaluator, built)
    if not Path(name).is_dir() and name not in known_packs():
        raise unknown_name("evaluator", name, [*known_packs(), *classes])
    pack = load_pack(name)
    chosen = engine_settings(pack.name, settings or {})
    from evomerge.checkpoints.tokenizer import load_tokenizer
    from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator, transformers_engine
    from evomerge.vllm_engine.engine_opener import VllmOpener

    return HarnessEvaluator(
        pack,
        load_tokenizer(base, allow=allow),
        split=split,
        seed=seed,
        batch_size=batch_size,
        device=device,
        allow=allow,
        engine=VllmOpener(base, chosen.engine_args, allow=allow) if chosen.engine == VLLM else transformers_engine,
        engine_identity=chosen.identity,
    )

"""Whether models can be merged at all: the same tensors, the same vocabulary, the same arithmetic around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from evomerge.checkpoints.source import Source
from evomerge.checkpoints.vocabulary import (
    Vocabulary,
    contradictions,
    differences,
    read_vocabulary,
    same_tokenizer,
    token_tensors,
)
from evomerge.errors import InvalidInput
from evomerge.messages import counted, some
from evomerge.tensors.computed_tensors import is_computed

# Settings that say how the tensors are used. Where one differs, the weights of one model mean nothing in the other.
DECISIVE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "num_experts_per_tok",
    "do_layer_norm_before",
    "use_parallel_residual",
)

# Settings that do not change what a forward pass of a trained model computes.
IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "_commit_hash",
        "architectures",
        "auto_map",
        "attention_dropout",
        "attn_pdrop",
        "bos_token_id",
        "classifier_dropout",
        "dropout",
        "activation_dropout",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "gradient_checkpointing",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "label2id",
        "layerdrop",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "resid_pdrop",
        "router_aux_loss_coef",
        "task_specific_params",
        "tie_word_embeddings",  # judged by the tensors themselves
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


_TOKENIZER = " (`tokenizer: base` in search.yaml aligns vocabularies by token)"
_TOKENS_OF_AN_ADAPTER = (
    "; it changes {names}, whose rows no policy aligns in an adapter: merge it into the model that it was trained on, "
    "and give that model with `tokenizer: base`"
)
_MISSING = " (`missing: base` in search.yaml takes what the base has)"


def check_compatible(base: Source, experts: Sequence[Source]) -> list[str]:
    """Checks every expert against the base. Returns warnings, one line each.

    Raises InvalidInput with one line per mismatch where some expert cannot be merged with the base.
    """
    errors: list[str] = []
    warnings = [warning for source in (base, *experts) if (warning := _unused_warning(source))]
    read_base = cache(lambda: read_vocabulary(base))
    for expert in experts:
        pair = f"{base.name!r} and {expert.name!r}"
        contradiction, further = _token_findings(base, expert, read_base)
        errors += [f"{pair}: {error}" for error in (*_errors(base, expert), *contradiction)]
        warnings += [f"{pair}: {warning}" for warning in (*_warnings(base, expert), *further)]
    if errors:
        raise InvalidInput("these models cannot be merged:\n" + "\n".join(f"- {error}" for error in errors))
    return warnings


def _errors(base: Source, expert: Source) -> Iterator[str]:
    decisive = list(_decisive_differences(base, expert))
    yield from decisive
    if base.is_tied != expert.is_tied:
        tied, untied = (base, expert) if base.is_tied else (expert, base)
        yield f"{_tied_tensors(tied)} are one tied tensor in {tied.name!r} and separate in {untied.name!r}{_MISSING}"
    else:
        hint = "" if decisive else _MISSING
        yield from (f"{difference}{hint}" for difference in _name_differences(base, expert))
    if shapes := _shape_differences(base, expert):
        yield f"{counted(len(shapes), 'tensor')} of another shape: {some(shapes)}"
    if kinds := _dtype_differences(base, expert, of_one_kind=False):
        yield f"{counted(len(kinds), 'tensor')} of floating-point numbers in one model only: {some(kinds)}"


def _warnings(base: Source, expert: Source) -> Iterator[str]:
    yield from expert.notes
    for key, ours, theirs in _setting_differences(base, expert):
        yield f"config {key} is {ours!r} and {theirs!r}; merges run with {ours!r}"
    dtypes = _dtype_differences(base, expert, of_one_kind=True)
    if dtypes and expert.adapted is None:  # the changes of an adapter are computed in a wider dtype
        yield f"{counted(len(dtypes), 'tensor')} of another dtype: {some(dtypes)}"
    if names := _unused_differences(base, expert):
        tensors = counted(len(names), "tensor")
        yield f"other values of {tensors} that no merge changes: {some(names)}; exports hold the base's"


def _unused_warning(source: Source) -> str | None:
    if not source.unused or source.architecture is None:
        return None
    unused = f"{counted(len(source.unused), 'tensor')}: {some(source.unused)}"
    return f"{source.name!r}: {source.architecture.name} does not load {unused}"


def _unused_differences(base: Source, expert: Source) -> list[str]:
    """Tensors that both models have and neither loads, with other values: exports hold the base's."""
    both = sorted(set(base.unused).intersection(expert.unused))
    return [name for name in both if base.weights.digest(name) != expert.weights.digest(name)]


def _decisive_differences(base: Source, expert: Source) -> Iterator[str]:
    ours, theirs = _flat(base.settings), _flat(expert.settings)
    for key in sorted(ours.keys() & theirs.keys()):
        own = key.rpartition(".")[2]
        if own in DECISIVE and ours[key] != theirs[key] and not _is_aligned(key, expert):
            yield f"config {key} is {ours[key]!r} and {theirs[key]!r}{_TOKENIZER if own == 'vocab_size' else ''}"


def _is_aligned(key: str, expert: Source) -> bool:
    """Whether a setting is the size of a vocabulary whose rows are aligned; the shapes are compared anyway."""
    return expert.ref.tokenizer == "base" and key.rpartition(".")[2] == "vocab_size"


def _setting_differences(base: Source, expert: Source) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = _flat(base.settings), _flat(expert.settings)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key) and not _is_aligned(key, expert):
            yield key, ours.get(key), theirs.get(key)


def _name_differences(base: Source, expert: Source) -> Iterator[str]:
    ours, theirs = base.header.keys(), expert.header.keys()
    if missing := sorted(ours - theirs):
        yield f"{expert.name!r} lacks {counted(len(missing), 'tensor')} of {base.name!r}: {some(missing)}"
    if extra := sorted(theirs - ours):
        yield f"{expert.name!r} has {counted(len(extra), 'tensor')} that {base.name!r} lacks: {some(extra)}"


def _shape_differences(base: Source, expert: Source) -> list[str]:
    return [
        f"{name} {list(base.header[name][0])} and {list(expert.header[name][0])}"
        for name in base.header
        if name in expert.header and base.header[name][0] != expert.header[name][0]
    ]


def _dtype_differences(base: Source, expert: Source, *, of_one_kind: bool) -> list[str]:
    """Tensors with other dtypes: both floating-point or both not, or one of each kind."""
    found = []
    for entry in base.catalogue.entries:
        if entry.name not in expert.catalogue or entry.dtype == expert.catalogue[entry.name].dtype:
            continue
        theirs = expert.catalogue[entry.name]
        if (entry.is_floating == theirs.is_floating) == of_one_kind:
            found.append(f"{entry.name} {entry.dtype} and {theirs.dtype}")
    return found


def _token_findings(base: Source, expert: Source, read_base: Callable[[], Vocabulary]) -> tuple[list[str], list[str]]:
    """The contradiction between the vocabularies, if there is one, and warnings."""
    if expert.adapted is not None and not expert.tokenizer_files:  # it is used with the base's
        return [], []
    if same_tokenizer(base, expert):
        return [], []
    try:
        ours, theirs = read_base(), read_vocabulary(expert)
    except InvalidInput as error:
        return [], [f"the vocabularies cannot be compared: {error}"]
    changed = _changed_tokens(base, expert)
    aligned = expert.ref.tokenizer == "base" and not changed
    found = [] if aligned else contradictions(ours, theirs)
    hint = _TOKENS_OF_AN_ADAPTER.format(names=some(changed)) if changed else _TOKENIZER
    errors = [f"the vocabularies give {len(found)} ids to other tokens: {some(found)}{hint}"] if found else []
    return errors, list(differences(ours, theirs))


def _changed_tokens(base: Source, expert: Source) -> list[str]:
    """The tensors with a row per token that an adapter changes; of a whole model none, since its rows are aligned."""
    if expert.adapted is None:
        return []
    return [name for name in token_tensors(base) if is_computed(expert.tensors, name)]


def _tied_tensors(source: Source) -> str:
    counts = Counter(source.tied.values())
    name = next(iter(counts))
    return " and ".join([name, *sorted(alias for alias, target in source.tied.items() if target == name)])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that can matter, nested ones (`rope_parameters`, `text_config`) under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in IRRELEVANT:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

"""The catalogue: what tensors a model has, and which layer and part of the model each belongs to.

Plain data, built from names and shapes alone. It knows no architecture: a layer is an index in the longest numbered
module list of the language model ("model.layers.7."), a part is found by name patterns, which a search space may
override.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

PARTS = ("embedding", "norm", "attention", "mlp", "head", "rest")

# The first pattern that matches the name decides; norms come first because "self_attn_layer_norm" is a norm.
PART_PATTERNS: tuple[tuple[str, str], ...] = (
    (
        "norm",
        r"(^|[._])(ln|norm|layernorm|rmsnorm)[\d_]*(\.|$)|norm(_f|\d*)\.(weight|bias)$|(^|\.)ln_\w+\.(weight|bias)$",
    ),
    ("head", r"(^|\.)(lm_head|output_projection|embed_out|classifier|score)\."),
    (
        "embedding",
        r"(^|\.)(embed\w*|wte|wpe|word_embeddings|tok_embeddings|position_embeddings|token_type_embeddings)\.",
    ),
    ("attention", r"(^|\.)(self_attn|self_attention|attn|attention|q_proj|k_proj|v_proj|o_proj|qkv_proj|c_attn)\."),
    ("mlp", r"(^|\.)(mlp|ffn|feed_forward|feedforward|fc1|fc2|gate_proj|up_proj|down_proj|experts|block_sparse_moe)\."),
)

# Parts of names of modules that read something else than text.
_TOWER = re.compile(r"(^|[._])(vision|visual|vit|image|img|video|audio|speech|vq|vqmodel|codec)([._]|$)")

_NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of the model. `layer` is None for tensors outside the layer stack."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layer: int | None
    part: str
    aliases: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def is_floating(self) -> bool:
        return self.dtype.startswith(("float", "bfloat"))


@dataclass(frozen=True)
class TensorCatalogue:
    """All tensors of a model by name, in sorted order. A tied tensor is listed once; its other names are `aliases`."""

    entries: tuple[TensorEntry, ...]
    _by_name: Mapping[str, TensorEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {entry.name: entry for entry in self.entries})

    def __getitem__(self, name: str) -> TensorEntry:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def mergeable(self) -> tuple[TensorEntry, ...]:
        """Floating-point tensors; integer buffers are copied from the base."""
        return tuple(entry for entry in self.entries if entry.is_floating)

    @property
    def depth(self) -> int:
        """Number of layers of the language model (0 where it has no numbered module list)."""
        return 1 + max((entry.layer for entry in self.entries if entry.layer is not None), default=-1)

    @property
    def parameters(self) -> int:
        return sum(entry.numel for entry in self.entries)


def layer_of(names: Iterable[str], language: Collection[str] = ()) -> dict[str, int | None]:
    """For each tensor name its index in the longest numbered module list of the language model, or None outside of it.

    The list is the dotted prefix before a number that has the most distinct numbers ("model.layers" in
    "model.layers.3.mlp.up_proj.weight"). A list inside an element of another list (the experts of a layer) is never the
    layer stack, however long it is. Of equally long lists the one with the shortest prefix wins. Lists that by their
    names read images or sounds come last.

    Args:
        language: the tensors of the language model, where they are known: the list is then one of theirs, if they have
            any.
    """
    names = list(names)
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if match := _NUMBERED.search(name):
            numbers[name[: match.start()]].add(int(match.group(1)))
    if not numbers:
        return dict.fromkeys(names)
    spoken = {name[: match.start()] for name in language if (match := _NUMBERED.search(name))}
    stack = min(
        spoken & numbers.keys() or numbers,
        key=lambda prefix: (bool(_TOWER.search(prefix)), -len(numbers[prefix]), prefix.count("."), prefix),
    )
    pattern = re.compile(re.escape(stack) + r"(?:^|\.)(\d+)\.")
    found = ((name, pattern.match(name)) for name in names)
    return {name: int(match.group(1)) if match else None for name, match in found}


def part_of(name: str, patterns: Iterable[tuple[str, str]] = PART_PATTERNS) -> str:
    """The part of the model that a tensor belongs to, by the first matching pattern; "rest" where none matches."""
    return next((part for part, pattern in patterns if re.search(pattern, name)), "rest")


def build_catalogue(
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    tied: Mapping[str, str] | None = None,
    patterns: Iterable[tuple[str, str]] = PART_PATTERNS,
    language: Collection[str] = (),
) -> TensorCatalogue:
    """The catalogue of a model.

    Args:
        tensors: name -> (shape, dtype name such as "bfloat16").
        tied: alias -> the name of the shared tensor in `tensors`.
        patterns: (part, regular expression) pairs, tried in order.
        language: the tensors of the language model, where they are known: its layers are the layers.
    """
    tied = tied or {}
    patterns = tuple(patterns)
    layers = layer_of(tensors, language)
    aliases: dict[str, list[str]] = defaultdict(list)
    for alias, name in tied.items():
        aliases[name].append(alias)
    entries = tuple(
        TensorEntry(
            name=name,
            shape=tuple(shape),
            dtype=dtype,
            layer=layers[name],
            part=part_of(name, patterns),
            aliases=tuple(sorted(aliases.get(name, ()))),
        )
        for name, (shape, dtype) in sorted(tensors.items())
        if name not in tied
    )
    return TensorCatalogue(entries)

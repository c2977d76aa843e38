"""Facts about sources that a first search.yaml follows from, read from small JSON files: no weights are opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from evomerge.checkpoints.compatibility import DECISIVE
from evomerge.checkpoints.json_files import read_object, read_object_if_there
from evomerge.checkpoints.location import is_hub_id
from evomerge.errors import InvalidInput
from evomerge.forms import expanded, is_folder
from evomerge.messages import first_line

_SMALL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """A source by its configuration.

    Attributes:
        place: directory or hub id, as it was given.
        config: content of config.json; of an adapter that of its adapter_config.json; None where nothing is known.
        adapter: whether it is a LoRA adapter.
        unseen: why nothing is known of it; "" where something is.
    """

    place: str
    config: Mapping[str, Any] | None = None
    adapter: bool = False
    unseen: str = ""

    @property
    def words(self) -> str:
        """The source in a few words, for a comment."""
        if self.config is None:
            return "not looked at"
        if self.adapter:
            return f"LoRA adapter of rank {self.config.get('r', '?')}"
        layers = self.setting("num_hidden_layers") or self.setting("n_layer")
        kind = str(self.setting("model_type") or "model of an unknown kind")
        return f"{kind}, {layers} layers" if layers else kind

    def setting(self, key: str) -> Any:
        """A setting of the model, also where a part of its config has it."""
        config = self.config or {}
        inner = config.get("text_config")
        return config.get(key, inner.get(key) if isinstance(inner, Mapping) else None)


@dataclass(frozen=True, kw_only=True)
class SourceSurvey:
    """Base and experts of a search as far as their configurations tell.

    Attributes:
        experts: name -> facts.
        other_vocabulary: experts with another number of tokens than the base.
        other_ties: experts that tie their embeddings where the base does not, or the other way round.
        notes: sentences on what could not be looked at.
    """

    base: SourceFacts
    experts: Mapping[str, SourceFacts]
    other_vocabulary: tuple[str, ...] = ()
    other_ties: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def depth(self) -> int | None:
        """Number of layers, None where nobody knows."""
        depth = self.base.setting("num_hidden_layers") or self.base.setting("n_layer")
        return depth if isinstance(depth, int) else None

    @property
    def dtype(self) -> str | None:
        """The dtype of the base's weights as its config says it."""
        dtype = self.base.setting("dtype") or self.base.setting("torch_dtype")
        return dtype if dtype in ("float32", "bfloat16", "float16") else None

    @property
    def adapters(self) -> tuple[str, ...]:
        """The experts that are LoRA adapters."""
        return tuple(name for name, facts in self.experts.items() if facts.adapter)


def survey_sources(base: str, experts: Mapping[str, str]) -> SourceSurvey:
    """Look at a base and its fine-tunes. Of a model on the hub only the small files are downloaded.

    Raises:
        InvalidInput: a directory does not exist or holds no model, the base is an adapter, or an expert has another
            architecture than the base; one line for each.
    """
    ours = _facts("base", base)
    if ours.adapter:
        raise InvalidInput(
            f"the base {base} is an adapter, which cannot be a base; give the model that it was trained on"
        )
    found = {name: _facts(name, place) for name, place in experts.items()}
    whole = {name: facts for name, facts in found.items() if facts.config is not None and not facts.adapter}
    errors = [f"- {name!r}: {error}" for name, facts in whole.items() for error in _differences(ours, facts)]
    if errors:
        raise InvalidInput("these models cannot be merged with the base:\n" + "\n".join(errors))
    every = {"base": ours, **found}
    return SourceSurvey(
        base=ours,
        experts=found,
        other_vocabulary=_others(ours, whole, "vocab_size"),
        other_ties=_others(ours, whole, "tie_word_embeddings"),
        notes=tuple(f"{name}: {facts.unseen}" for name, facts in every.items() if facts.unseen),
    )


def _facts(name: str, place: str) -> SourceFacts:
    folder = expanded(place)
    if is_folder(folder):
        return _in_folder(name, place, folder)
    if not is_hub_id(place) or (len(folder.parts) > 1 and is_folder(Path(folder.parts[0]))):
        raise InvalidInput(f"source {name!r}: there is no directory {folder.absolute()}, and {place!r} is no hub id")
    try:
        return _in_folder(name, place, Path(snapshot_download(place, allow_patterns=list(_SMALL_FILES))))
    except (HfHubHTTPError, HFValidationError, OSError) as error:  # an absent network is an OSError too
        return SourceFacts(place=place, unseen=f"could not be looked at on the hub ({first_line(error)})")


def _in_folder(name: str, place: str, folder: Path) -> SourceFacts:
    adapter = read_object_if_there(folder / "adapter_config.json")
    if adapter is not None:
        return SourceFacts(place=place, config=adapter, adapter=True)
    if not (folder / "config.json").is_file():
        raise InvalidInput(f"source {name!r}: {place} is no model: it has neither config.json nor adapter_config.json")
    return SourceFacts(place=place, config=read_object(folder / "config.json"))


def _differences(base: SourceFacts, expert: SourceFacts) -> Iterator[str]:
    """Settings in which an expert of another architecture differs; the number of tokens can be fitted."""
    for key in DECISIVE:
        ours, theirs = base.setting(key), expert.setting(key)
        if key != "vocab_size" and ours is not None and theirs is not None and ours != theirs:
            yield f"{key} is {theirs!r}, and {ours!r} in the base"


def _others(base: SourceFacts, experts: Mapping[str, SourceFacts], key: str) -> tuple[str, ...]:
    """The experts that say otherwise than the base, where both say something."""
    ours = base.setting(key)
    theirs = {name: facts.setting(key) for name, facts in experts.items()}
    return tuple(name for name, value in theirs.items() if ours is not None and value not in (None, ours))

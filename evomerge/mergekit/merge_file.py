"""A file of mergekit's, read and checked for its form: documents of slices, models and parameters, with their lines.

Nothing here knows the models themselves: what a document means for their tensors is in `import_yaml.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.documents import Document, read_documents
from evomerge.errors import InvalidInput, nearest
from evomerge.mergekit.model_names import adapted_model
from evomerge.mergekit.parameter_settings import faults

KIND = "mergekit file"
DTYPES = ("float32", "bfloat16", "float16")

Keys = tuple[str | int, ...]

_KEYS = frozenset(
    {
        "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
        "tokenizer", "name",
    }
)  # fmt: skip

_WITHOUT_COUNTERPART = {
    "modules": "evomerge merges language models, of which there is one module",
    "chat_template": "an export has the chat template of the base; change it there, or in the exported tokenizer",
    "input_model_parameters": "give the parameters to each model",
    "genome": "this is the configuration of a search, not of a merge; write a search.yaml with `genome:` in its space",
    "experts": "this is a mixture of experts, which evomerge does not build from dense models",
}


@dataclass(frozen=True, kw_only=True)
class InputModel:
    """One model of a slice, or of the whole merge.

    Attributes:
        model: the model as the file names it; an adapter with its model, as BASE+ADAPTER.
        layers: [first, last) of its layers; None for all.
        keys: where it is in the document.
    """

    model: str
    layers: tuple[int, int] | None
    parameters: Mapping[str, Any]
    keys: Keys


@dataclass(frozen=True, kw_only=True)
class OutputSlice:
    """A run of layers of the result, and the models that it is merged of. `models:` is one slice of all layers."""

    models: tuple[InputModel, ...]
    parameters: Mapping[str, Any]
    keys: Keys

    @property
    def first(self) -> str:
        """The first model, of an adapter the model under it."""
        name = self.models[0].model
        return adapted_model(name) or name


@dataclass(frozen=True, kw_only=True)
class MergeDocument:
    """One merge of a file.

    Attributes:
        name: by which later documents take its result as a model; None for the last one.
        slices: at least one, each with at least one model.
        sliced: whether the file has `slices:`, so that every model has layers.
        dtype: of the result; None where the file does not say.
        computed_in: dtype of mergekit's arithmetic, if the file says.
        tokenizer: model that gives the tokenizer; None where the file does not say.
    """

    name: str | None
    method: str
    slices: tuple[OutputSlice, ...]
    sliced: bool
    base_model: str | None
    parameters: Mapping[str, Any]
    dtype: str | None
    computed_in: str | None
    tokenizer: str | None
    file: Path
    _document: Document = field(repr=False)

    def refusal(self, keys: Keys, reason: str) -> InvalidInput:
        """The error that names the line of the value under these keys."""
        return InvalidInput(f"{self.file}, {self.note(keys, reason)}")

    def note(self, keys: Keys, sentence: str) -> str:
        """The sentence with the line of the value under these keys."""
        return f"line {self._document.line(keys)}: {sentence}"

    @property
    def tokenizer_keys(self) -> Keys:
        """The place of the tokenizer's source in the document, which has two forms."""
        return ("tokenizer", "source") if self._document.content.get("tokenizer") else ("tokenizer_source",)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that the document names, each once: base, tokenizer's, and those that are merged."""
        merged = [model.model for each in self.slices for model in each.models]
        return tuple(dict.fromkeys(name for name in (self.base_model, self.tokenizer, *merged) if name is not None))


def read_merge_file(path: Path) -> list[MergeDocument]:
    """The documents of a file; those before the last have names.

    Raises:
        InvalidInput: this is no file of mergekit's, or says something that no recipe says; names the line.
    """
    documents = read_documents(path, KIND)
    read = [_DocumentReader(path, document).read() for document in documents]
    names = [each.name for each in read[:-1]]
    for place, each in enumerate(read[:-1]):
        if each.name is None or each.name in names[:place]:
            raise each.refusal((), "of several documents all but the last have a `name` of their own")
    return read


class _DocumentReader:
    """Checks one document."""

    def __init__(self, path: Path, document: Document) -> None:
        self._path = path
        self._document = document
        self._content = document.content

    def read(self) -> MergeDocument:
        self._check_keys(self._content, _KEYS, ())
        base_model = self._optional_model("base_model")
        slices = self._slices()
        first = base_model or slices[0].first
        dtype = self._dtype("out_dtype", DTYPES)
        computed_in = self._dtype("dtype", DTYPES if dtype is None else (*DTYPES, "float64"))
        return MergeDocument(
            name=self._optional_text("name"),
            method=self._text(self._content, "merge_method", ()),
            slices=slices,
            sliced="slices" in self._content,
            base_model=base_model,
            parameters=self._parameters(self._content, ()),
            dtype=dtype or computed_in,
            computed_in=computed_in,
            tokenizer=self._tokenizer(first),
            file=self._path,
            _document=self._document,
        )

    def _refusal(self, keys: Keys, reason: str) -> InvalidInput:
        return InvalidInput(f"{self._path}, line {self._document.line(keys)}: {reason}")

    def _check_keys(self, content: Mapping[str, Any], known: Collection[str], keys: Keys) -> None:
        for key in content:
            if key in known:
                continue
            if reason := _WITHOUT_COUNTERPART.get(str(key)):
                raise self._refusal((*keys, key), f"`{key}` has no counterpart here: {reason}")
            close = nearest(str(key), known)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
            raise self._refusal((*keys, key), f"`{key}` is not known; {hint}")

    def _slices(self) -> tuple[OutputSlice, ...]:
        given = [key for key in ("models", "slices") if self._content.get(key) is not None]
        if len(given) != 1:
            raise self._refusal(tuple(given[-1:]), "a merge has either `models` or `slices`")
        if given == ["models"]:
            models = self._models(self._content["models"], ("models",), sliced=False)
            return (OutputSlice(models=models, parameters={}, keys=("models",)),)
        slices = self._list(self._content["slices"], ("slices",))
        return tuple(self._slice(each, ("slices", place)) for place, each in enumerate(slices))

    def _slice(self, content: Any, keys: Keys) -> OutputSlice:
        if not isinstance(content, dict):
            raise self._refusal(keys, "a slice has `sources`, and may have `parameters`")
        self._check_keys(content, {"sources", "parameters"}, keys)
        models = self._models(content.get("sources"), (*keys, "sources"), sliced=True)
        return OutputSlice(models=models, parameters=self._parameters(content, keys), keys=keys)

    def _models(self, content: Any, keys: Keys, *, sliced: bool) -> tuple[InputModel, ...]:
        found = [self._model(each, (*keys, place), sliced) for place, each in enumerate(self._list(content, keys))]
        names = [each.model for each in found]
        for place, each in enumerate(found):
            if each.model in names[:place]:
                raise self._refusal(each.keys, f"{each.model} is there twice; a recipe merges a model once")
        return tuple(found)

    def _model(self, content: Any, keys: Keys, sliced: bool) -> InputModel:
        if not isinstance(content, dict):
            raise self._refusal(keys, "a model is given as `model: PATH`, with `parameters` if it has some")
        self._check_keys(content, {"model", "parameters", *(["layer_range"] * sliced)}, keys)
        return InputModel(
            model=self._model_name(self._text(content, "model", keys), (*keys, "model")),
            layers=self._layers(content.get("layer_range"), (*keys, "layer_range")) if sliced else None,
            parameters=self._parameters(content, keys),
            keys=keys,
        )

    def _layers(self, content: Any, keys: Keys) -> tuple[int, int]:
        numbers = content if isinstance(content, list) else []
        if len(numbers) != 2 or any(type(each) is not int for each in numbers) or not 0 <= numbers[0] < numbers[1]:
            raise self._refusal(keys, f"`layer_range` is [first, last + 1], but is {content!r}")
        return numbers[0], numbers[1]

    def _parameters(self, content: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
        parameters = content.get("parameters")
        if parameters is None:
            return {}
        if not isinstance(parameters, dict):
            raise self._refusal((*keys, "parameters"), "`parameters` has names and values")
        for name, setting in parameters.items():
            for inside, fault in faults(setting):
                raise self._refusal((*keys, "parameters", name, *inside), f"{name}: {fault}")
        return {str(name): setting for name, setting in parameters.items()}

    def _dtype(self, key: str, allowed: Collection[str]) -> str | None:
        name = self._optional_text(key)
        if name is not None and name not in allowed:
            raise self._refusal((key,), f"weights in {name} are not written here; {key} is one of {', '.join(allowed)}")
        return name

    def _tokenizer(self, first: str) -> str | None:
        """The model that gives the tokenizer.

        Args:
            first: the model that `base` means.
        """
        keys: Keys = ("tokenizer_source",)
        source = self._content.get("tokenizer_source")
        settings = self._content.get("tokenizer")
        if settings is not None:
            if source is not None or not isinstance(settings, dict):
                raise self._refusal(
                    ("tokenizer",), "give either `tokenizer_source: MODEL` or `tokenizer: {source: MODEL}`"
                )
            keys, source = ("tokenizer", "source"), settings.get("source") or "union"  # mergekit's default
            for key in settings:
                if key != "source" and settings[key]:
                    raise self._refusal(("tokenizer", key), f"`{key}` changes the vocabulary, which no merge does here")
        if source is None:
            return None
        if not isinstance(source, str):
            raise self._refusal(keys, f"the source of the tokenizer is `base` or a model, not {source!r}")
        if source == "union":
            raise self._refusal(
                keys, "a union of vocabularies is not built here; models that share one vocabulary need only `base`"
            )
        return first if source == "base" else self._whole_model(source.removeprefix("model:"), keys)

    def _optional_model(self, key: str) -> str | None:
        name = self._optional_text(key)
        return None if name is None else self._whole_model(name, (key,))

    def _whole_model(self, name: str, keys: Keys) -> str:
        if adapted_model(name) is not None:
            raise self._refusal(
                keys, f"{name} is a model with an adapter, which is merged and no base; merge the two first"
            )
        return name

    def _model_name(self, name: str, keys: Keys) -> str:
        if name.count("+") > 1 or name.startswith("+") or name.endswith("+"):
            raise self._refusal(keys, f"a model is MODEL, or BASE+ADAPTER for an adapter of the base, not {name}")
        return name

    def _list(self, content: Any, keys: Keys) -> list[Any]:
        if not isinstance(content, list) or not content:
            raise self._refusal(keys, f"`{keys[-1]}` is a list with at least one entry")
        return content

    def _optional_text(self, key: str) -> str | None:
        return None if self._content.get(key) is None else self._text(self._content, key, ())

    def _text(self, content: Mapping[str, Any], key: str, keys: Keys) -> str:
        value = content.get(key)
        if not isinstance(value, str) or not value:
            given = f", not {value!r}" if value is not None else ""
            raise self._refusal((*keys, key), f"`{key}` is a text{given}")
        return value

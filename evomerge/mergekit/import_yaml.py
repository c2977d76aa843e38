"""Documents of mergekit's as recipes: the inverse of `export_yaml.py`, with the options of mergekit's definitions.

A recipe means what mergekit's documentation says of the file. Where mergekit itself computes otherwise, in 16 bits or
with masks that it draws, a note says so; a file that no recipe expresses is refused, with the line and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from evomerge.catalogue import TensorCatalogue
from evomerge.mergekit.imported_parameters import MethodReader
from evomerge.mergekit.imported_slices import imported_path
from evomerge.mergekit.merge_file import InputModel, MergeDocument, OutputSlice
from evomerge.mergekit.model_names import adapted_model
from evomerge.mergekit.parameter_settings import place_in_stack
from evomerge.messages import counted
from evomerge.recipe import ModelRef, PathLayer, Recipe, Rule, check_ingredients

_NARROW = ("bfloat16", "float16")

_STAGE = re.compile(r"merge-\d+-(?=.)")  # before the label of an ingredient that `export_yaml` has written


@dataclass(frozen=True)
class ImportedMerge:
    """The recipe of a file, and one sentence for every difference to mergekit, with its line."""

    recipe: Recipe
    notes: tuple[str, ...]


def real_models(documents: Sequence[MergeDocument]) -> tuple[str, ...]:
    """The models of a file that are not results of its own documents, the base of the last one first.

    Raises:
        InvalidInput: an adapter is of another model than this base; names the line.
    """
    named, base = {each.name for each in documents[:-1]}, base_of(documents)
    for document in documents:
        _check_adapters(document, base)
    every = [base, *(model for each in documents for model in each.models)]
    return tuple(dict.fromkeys(model for model in every if model not in named))


def base_of(documents: Sequence[MergeDocument]) -> str:
    """The model that gives config and tokenizer of a file's result, and the base of its task vectors if it has some."""
    return _base_of(documents[-1], {each.name: each for each in documents[:-1] if each.name is not None})


def import_merge(
    documents: Sequence[MergeDocument],
    refs: Mapping[str, ModelRef],
    catalogue: TensorCatalogue,
    *,
    seed: int = 0,
    spare_rows: int = 0,
) -> ImportedMerge:
    """The recipe of a file.

    Args:
        refs: model as the file names it -> the model, for all of `real_models`, in the order of the recipe's sources.
            There may be more of them.
        catalogue: of the base.
        seed: key of the random masks, which mergekit's files do not state.
        spare_rows: rows of the base's embeddings that have no token.

    Raises:
        InvalidInput: no recipe expresses the file; names the line.
    """
    named = {each.name: each for each in documents[:-1] if each.name is not None}
    made: dict[str, tuple[str, Recipe]] = {}
    notes: list[str] = []
    for document in documents:
        labels = {name: label for name, (label, _) in made.items()}
        known = {model: ref.name for model, ref in refs.items()} | labels
        importer = _Importer(document, catalogue, known)
        # All merges of one recipe have one base; where a method takes nothing from it, it is that of the last document.
        base = refs[_base_of(document, named) if importer.has_base else base_of(documents)]
        used = {document.base_model, *(model.model for each in document.slices for model in each.models)}
        ingredients = dict(made[name] for name in made if name in used)
        layers, rules = importer.path(base.name) if importer.is_path else ((), tuple(importer.rules()))
        recipe = Recipe(
            base=base,
            sources=tuple(ref for ref in refs.values() if ref.name != base.name),
            rules=rules,
            dtype=importer.dtype(),
            seed=seed,
            layers=layers,
            ingredients=ingredients,
        )
        check_ingredients(recipe)
        notes += importer.notes(spare_rows)
        if document.name is not None and document is not documents[-1]:
            made[document.name] = _STAGE.sub("", document.name, count=1), recipe
    return ImportedMerge(recipe, tuple(notes))


def _base_of(document: MergeDocument, named: Mapping[str, MergeDocument]) -> str:
    reader = MethodReader(document)
    given = document.base_model
    if given is not None and reader.has_base:
        if given in named:
            raise document.refusal(("base_model",), f"{given} is a merge of this file, and the base has to be a model")
        if document.tokenizer not in (None, given):
            raise document.refusal(
                document.tokenizer_keys, "config and tokenizer are the base's here; write `tokenizer_source: base`"
            )
        return given
    found = document.tokenizer or given or document.slices[0].first
    return _base_of(named[found], named) if found in named else found


def _check_adapters(document: MergeDocument, base: str) -> None:
    for model in (model for each in document.slices for model in each.models):
        if adapted_model(model.model) not in (None, base):
            raise document.refusal(
                (*model.keys, "model"),
                f"{model.model} is a model with an adapter, and here adapters are those of the base, {base}; merge it "
                "into its model first",
            )


class _Importer:
    """The rules, or the path of layers, of one document."""

    def __init__(self, document: MergeDocument, catalogue: TensorCatalogue, known: Mapping[str, str]) -> None:
        """
        Args:
            known: model as the file names it -> its name in the recipe.
        """
        self._document = document
        self._catalogue = catalogue
        self._known = known
        self._reader = MethodReader(document)

    @property
    def has_base(self) -> bool:
        """Whether task vectors are taken from a base that the document names."""
        return self._reader.has_base and self._document.base_model is not None

    @property
    def is_path(self) -> bool:
        """Whether layers are taken as they are, from wherever the file says."""
        return self._document.sliced and self._reader.info.name == "passthrough"

    def path(self, base: str) -> tuple[tuple[PathLayer, ...], tuple[Rule, ...]]:
        """The layers, and the rules for what is outside of layers and not the base's."""
        return imported_path(self._document, self._reader, self._catalogue, self._known, base=base)

    def rules(self) -> Iterator[Rule]:
        """One rule for all tensors that are merged in the same way, in the order of their first tensors."""
        if self._document.sliced:
            self._check_slices()
        groups: dict[tuple[object, ...], list[Rule]] = {}
        for name, each, place in self._places():
            rule = self._rule(name, each, place)
            key = (rule.sources, tuple(rule.parameters.items()), tuple(rule.options.items()))
            groups.setdefault(key, []).append(rule)
        for rules in groups.values():
            yield replace(rules[0], tensors=tuple(name for rule in rules for name in rule.tensors))

    def dtype(self) -> str:
        """The dtype of the result: without one in the file that of the base."""
        if self._document.dtype is not None:
            return self._document.dtype
        found = self._dtypes_of_base()
        if len(found) > 1:
            raise self._document.refusal((), f"the base has tensors in {' and '.join(found)}; give `dtype`")
        return found[0]

    def notes(self, spare_rows: int) -> Iterator[str]:
        """Sentences on what mergekit would make otherwise; `spare_rows` of the embeddings have no token."""
        document = self._document
        if document.dtype is None:
            yield document.note((), f"no `dtype`, so the result is in that of the base, {self.dtype()}")
        yield from self._notes_on_arithmetic()
        first = document.base_model or document.slices[0].first
        if document.tokenizer not in (None, first):
            yield document.note(
                document.tokenizer_keys,
                f"config and tokenizer are {document.tokenizer}'s; mergekit has the config of {first}",
            )
        if document.tokenizer is not None and spare_rows:
            yield document.note(
                document.tokenizer_keys,
                f"mergekit makes embeddings with one row for each token here; evomerge keeps the {spare_rows} rows of "
                "the base that have none",
            )
        yield from self._notes_on_adapters()
        yield from self._notes_on_slices()
        yield from self._reader.notes()

    def _notes_on_arithmetic(self) -> Iterator[str]:
        """A sentence where mergekit rounds in between: in the `dtype` of the file, or else in that of the models."""
        document, narrow = self._document, self._narrow_dtype()
        ours = f"evomerge in float32, rounding once to {self.dtype()}"
        if document.computed_in not in (None, "float32"):
            yield document.note(("dtype",), f"mergekit adds in {document.computed_in}, {ours}")
        elif document.computed_in is None and narrow is not None:
            yield document.note(
                (), f"without `dtype` mergekit adds in that of the models, which is {narrow} in the base; {ours}"
            )

    def _notes_on_adapters(self) -> Iterator[str]:
        models = (model for each in self._document.slices for model in each.models)
        adapter = next((model for model in models if adapted_model(model.model) is not None), None)
        narrow = self._narrow_dtype()
        if adapter is not None and narrow is not None:
            yield self._document.note(
                (*adapter.keys, "model"),
                f"mergekit adds adapters to the base in {narrow}, unless it is run with `--lora-merge-dtype "
                "float32`; evomerge adds them in float32",
            )

    def _notes_on_slices(self) -> Iterator[str]:
        first, last = self._document.slices[0], self._document.slices[-1]
        if len(last.models) > len(first.models):
            yield self._document.note(
                (*last.keys, "sources"),
                f"behind the layers mergekit merges {counted(len(first.models), 'model')} of this slice, "
                "as many as the first slice has; evomerge merges all of them",
            )

    def _narrow_dtype(self) -> str | None:
        """A dtype of the base in which sums are rounded earlier than in float32; None where it has none."""
        return next((dtype for dtype in self._dtypes_of_base() if dtype in _NARROW), None)

    def _dtypes_of_base(self) -> list[str]:
        return sorted({entry.dtype for entry in self._catalogue.mergeable})

    def _places(self) -> Iterator[tuple[str, OutputSlice, Fraction]]:
        """(tensor, its slice, its place on gradients): outside of layers the first values of a slice."""
        slices = self._document.slices
        for entry in self._catalogue.mergeable:
            if entry.layer is None:
                before = entry.part == "embedding"
                yield entry.name, slices[0 if before else -1], Fraction(0)
            elif not self._document.sliced:
                yield entry.name, slices[0], place_in_stack(entry.layer, self._catalogue.depth)
            else:
                each = next(each for each in slices if entry.layer < _layers(each)[1])
                first, last = _layers(each)
                yield entry.name, each, place_in_stack(entry.layer - first, last - first)

    def _rule(self, name: str, each: OutputSlice, place: Fraction) -> Rule:
        models = self._merged(each)
        parameters, options = self._reader.values(name, place, each, models)
        return Rule(
            tensors=(name,),
            method=self._reader.info.name,
            sources=tuple(self._known[model.model] for model in models),
            parameters=parameters,
            options=options,
        )

    def _merged(self, each: OutputSlice) -> tuple[InputModel, ...]:
        """The models of a slice that are sources of the rule, in their order there."""
        base_model, reader = self._document.base_model, self._reader
        if base_model is None:
            if reader.needs_base_model:
                raise self._document.refusal(("merge_method",), f"{self._document.method} needs a `base_model`")
            return each.models
        others = tuple(model for model in each.models if model.model != base_model)
        if reader.has_base:
            return others
        if reader.needs_base_model:  # it is the first of the two
            own = InputModel(model=base_model, layers=None, parameters={}, keys=("base_model",))
            return (next((model for model in each.models if model.model == base_model), own), *others)
        if self._document.sliced or len(others) < len(each.models):  # mergekit adds a base to `models` alone
            return each.models
        if reader.info.sources is None:  # it is merged like the others
            return (*each.models, InputModel(model=base_model, layers=None, parameters={}, keys=("base_model",)))
        raise self._document.refusal(
            ("base_model",),
            f"{self._document.method} has no base, and {base_model} is not among its models; list it, or leave "
            "`base_model` out",
        )

    def _check_slices(self) -> None:
        """Refuse slices that put layers of several models into other places than their own."""
        first = 0
        for each in self._document.slices:
            if len({model.layers for model in each.models}) > 1 or _layers(each)[0] != first:
                raise self._document.refusal(
                    each.keys,
                    f"layers are merged in their own places only, here from layer {first}; a stack of other layers is "
                    "`merge_method: passthrough` with one model a slice, whose layers can be merged before",
                )
            first = _layers(each)[1]
        if first != self._catalogue.depth:
            raise self._document.refusal(
                self._document.slices[-1].keys, f"the models have {self._catalogue.depth} layers, the slices {first}"
            )


def _layers(each: OutputSlice) -> tuple[int, int]:
    return each.models[0].layers or (0, 0)

"""`evomerge merge` and `evomerge import mergekit`: the bits of an export, from a file, without a search."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from evomerge.artefacts import model_writer
from evomerge.bank import WeightBank
from evomerge.checkpoints import Source, open_source, tensor_digests
from evomerge.cli import run_command
from evomerge.mergekit.export_yaml import to_mergekit
from evomerge.methods import METHODS, resolve_options, resolve_parameters
from evomerge.passes.kernels import DTYPES
from evomerge.recipe import ModelRef, PathLayer, Recipe, Rule, copying_rule
from evomerge.static_merges.static_merge import merge_file

READ = sorted(name for name, info in METHODS.items() if info.mergekit is not None)


def _open(directories: list[str], *, fingerprinted: bool = True) -> list[Source]:
    base = open_source(ModelRef("base", directories[0]), fingerprinted=fingerprinted)
    names = ("math", "code")
    refs = [ModelRef(name, directory) for name, directory in zip(names, directories[1:], strict=True)]
    return [base, *(open_source(ref, like=base, fingerprinted=fingerprinted) for ref in refs)]


def _recipe(sources: list[Source], *methods: str, dtype: str = "float32", **content: Any) -> Recipe:
    """One rule by method, over the mergeable tensors in turn."""
    names = [entry.name for entry in sources[0].catalogue.mergeable]
    rules = []
    for place, method in enumerate(methods):
        merged = ("math", "code")[: METHODS[method].sources or 2]
        parameters = resolve_parameters(method, {}, len(merged))
        options = resolve_options(method, {}, semantics="mergekit")
        tensors = tuple(names[place :: len(methods)])
        rules.append(Rule(tensors=tensors, method=method, sources=merged, parameters=parameters, options=options))
    base, *experts = (source.ref for source in sources)
    return Recipe(base=base, sources=tuple(experts), rules=tuple(rules), dtype=dtype, seed=5, **content)


def _expected(sources: list[Source], recipe: Recipe) -> dict[str, str]:
    """Digests of the tensors that `evomerge export` writes."""
    bank = WeightBank(sources[0], sources[1:], dtype=DTYPES[recipe.dtype], device=torch.device("cpu"))
    return tensor_digests(bank.merged(recipe))


def _tensors(out: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def _written(out: Path) -> dict[str, str]:
    return tensor_digests(_tensors(out).items())


def _file(tmp_path: Path, recipe: Recipe) -> Path:
    path = tmp_path / "recipe.json"
    path.write_text(recipe.to_json())
    return path


def _merge(*arguments: object) -> int:
    return run_command(["merge", "--device", "cpu", *map(str, arguments)])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_has_the_bits_of_an_export_and_loads(
    dtype: str, tied: bool, make_models: Callable[..., list[str]], tmp_path: Path
) -> None:
    sources = _open(make_models(tied=tied, dtype=DTYPES[dtype], max_shard_size="30KB"))
    assert len(list(sources[0].directory.glob("*.safetensors"))) > 1
    recipe = _recipe(sources, "linear", "ties", "dare_ties", "della", dtype="bfloat16")
    out = tmp_path / "out"
    assert _merge(_file(tmp_path, recipe), "--out", out) == 0
    assert _written(out) == _expected(sources, recipe)
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    assert json.loads((out / "generation_config.json").read_text())["max_new_tokens"] == 7
    assert Recipe.from_json((out / "recipe.json").read_text()).digest == recipe.digest
    assert "evomerge merge" in (out / "README.md").read_text()


@pytest.mark.parametrize("method", READ)
def test_a_file_of_mergekits_gives_the_bits_of_the_recipe_that_it_was_written_from(
    method: str, make_models: Callable[..., list[str]], tmp_path: Path
) -> None:
    sources = _open(make_models())
    recipe = _recipe(sources, method)
    if METHODS[method].random:
        recipe = replace(recipe, seed=0)
    text, reason = to_mergekit(recipe, sources[0].catalogue)
    assert text is not None, reason
    path, out = tmp_path / "merge.yml", tmp_path / "out"
    path.write_text(text)
    assert _merge(path, "--out", out) == 0
    assert _written(out) == _expected(sources, recipe)


def test_the_command_in_the_card_makes_the_same_bits(make_models: Callable[..., list[str]], tmp_path: Path) -> None:
    base, *experts = (shutil.copytree(each, tmp_path / f"a {Path(each).name}") for each in make_models())
    models = [{"model": str(each), "parameters": {"weight": 0.5, "density": 0.5}} for each in experts]
    content = {"merge_method": "dare_ties", "base_model": "the base", "models": models, "dtype": "float32"}
    path, out = tmp_path / "my merge.yml", tmp_path / "my merge"
    path.write_text(yaml.safe_dump(content))
    options = ("--source", f"the base={base}", "--seed", 7, "--allow", "pickle_weights", "--no-fingerprints")
    assert _merge(path, *options, "--out", out) == 0
    written = _written(out)
    program, *words = shlex.split((out / "README.md").read_text().partition("```\n")[2].partition("\n```")[0])
    assert {"--seed", "--allow", "--device", "--no-fingerprints"} < set(words)
    assert program == "evomerge"
    shutil.rmtree(out)
    assert run_command(words) == 0
    assert _written(out) == written


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(
    make_models: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = _file(tmp_path, _recipe(_open(make_models()), "linear"))
    assert run_command(["merge", str(path), "--device", "cuda", "--out", str(tmp_path / "out")]) == 2
    assert "--device cuda: torch finds no GPU on this machine; give cpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_path_of_layers_is_written_with_its_depth(make_models: Callable[..., list[str]], tmp_path: Path) -> None:
    sources = _open(make_models())
    layers = (
        PathLayer("base", 0, 1.0),
        PathLayer("math", 1, 0.5),
        PathLayer("math", 2, 1.0),
        PathLayer("code", 2, 1.0),
    )
    recipe = replace(
        _recipe(sources), rules=(copying_rule("code", ("lm_head.weight", "model.norm.weight")),), layers=layers
    )
    out = tmp_path / "out"
    assert _merge(_file(tmp_path, recipe), "--out", out) == 0
    assert _written(out) == _expected(sources, recipe)
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 4


def test_a_merge_of_merges_leaves_nothing_beside_the_result(
    make_models: Callable[..., list[str]], tmp_path: Path
) -> None:
    sources = _open(make_models())
    soup = _recipe(sources, "linear", dtype="bfloat16")
    recipe = _recipe(sources, "ties", ingredients={"soup": soup})
    recipe = replace(recipe, rules=(replace(recipe.rules[0], sources=("soup", "code")),))
    out = tmp_path / "made" / "out"
    assert _merge(_file(tmp_path, recipe), "--out", out) == 0
    assert _written(out) == _expected(sources, recipe)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def _over(recipe: Recipe, *names: str, **content: Any) -> Recipe:
    """The same merge of other sources."""
    return replace(recipe, rules=(replace(recipe.rules[0], sources=names),), **content)


def test_two_ingredients_may_be_merges_of_the_same_ingredient(
    make_models: Callable[..., list[str]], tmp_path: Path
) -> None:
    sources = _open(make_models())
    soup = {"soup": _recipe(sources, "linear", dtype="bfloat16")}
    left = _over(_recipe(sources, "linear"), "soup", "code", ingredients=soup)
    right = _over(_recipe(sources, "ties"), "soup", "code", ingredients=soup)
    recipe = _over(_recipe(sources, "linear"), "left", "right", ingredients={"left": left, "right": right})
    assert _merge(_file(tmp_path, recipe), "--out", tmp_path / "out") == 0
    assert _written(tmp_path / "out") == _expected(sources, recipe)


def test_two_documents_of_a_mergekit_file_may_merge_the_same_third_one(
    make_models: Callable[..., list[str]], tmp_path: Path
) -> None:
    _, math, code = make_models()

    def document(*models: str, **more: Any) -> dict[str, Any]:
        half = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
        return {"merge_method": "linear", "dtype": "float32", "models": half, **more}

    documents = [
        document(math, code, name="soup"),
        document("soup", code, name="left"),
        document("soup", math, name="right"),
        document("left", "right"),
    ]
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump_all(documents))
    assert _merge(path, "--out", tmp_path / "out") == 0
    made, math_tensors, code_tensors = (_tensors(Path(each)) for each in (tmp_path / "out", math, code))
    for name, tensor in made.items():  # each of the two models counts half along every way
        torch.testing.assert_close(tensor, (math_tensors[name] + code_tensors[name]) / 2)


def test_a_crash_leaves_the_earlier_result_and_nothing_half_written(
    make_models: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = _open(make_models())
    path, out = _file(tmp_path, _recipe(sources, "linear")), tmp_path / "made" / "out"
    assert _merge(path, "--out", out) == 0
    before = _written(out)

    def crash(*_: object) -> None:
        raise OSError("no more")

    monkeypatch.setattr(model_writer, "write_text", crash)
    assert _merge(_file(tmp_path, _recipe(sources, "ties")), "--out", out) == 1
    assert _written(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_models_that_were_moved_are_given_by_name_and_changed_ones_are_refused(
    make_models: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = make_models()
    sources = _open(directories)
    path, out = _file(tmp_path, _recipe(sources, "linear")), tmp_path / "out"
    expected = _expected(sources, _recipe(sources, "linear"))
    moved = Path(directories[2]).rename(tmp_path / "moved")
    assert _merge(path, "--out", out) == 2
    assert "there is no directory" in capsys.readouterr().err
    assert _merge(path, "--out", out, "--source", f"coed={moved}") == 2
    assert "did you mean 'code'?" in capsys.readouterr().err
    assert _merge(path, "--out", out, "--source", f"code={moved}") == 0
    assert _written(out) == expected
    assert _merge(path, "--out", out, "--source", f"code={directories[1]}") == 2
    assert "has changed" in capsys.readouterr().err
    assert _merge(path, "--out", out, "--source", f"code={directories[1]}", "--no-fingerprints") == 0


@pytest.mark.parametrize(("options", "computed"), [((), False), (("--fingerprints",), True)])
def test_fingerprints_that_a_recipe_lacks_are_computed_where_it_is_asked(
    make_models: Callable[..., list[str]], tmp_path: Path, options: tuple[str, ...], computed: bool
) -> None:
    recipe = _recipe(_open(make_models(), fingerprinted=False), "linear")
    assert _merge(_file(tmp_path, recipe), "--out", tmp_path / "out", *options) == 0
    made = Recipe.from_json((tmp_path / "out" / "recipe.json").read_text())
    assert [bool(ref.fingerprint) for ref in (made.base, *made.sources)] == [computed] * 3


def test_a_recipe_whose_text_was_changed_is_refused(
    make_models: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _file(tmp_path, _recipe(_open(make_models()), "linear"))
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 6'))
    assert _merge(path, "--out", tmp_path / "out") == 2
    assert "remove the line `digest` if you have changed the recipe" in capsys.readouterr().err


FIRST = "model.embed_tokens.weight"

TIES = {"density": (0.5, 0.5), "weight": (1.0, 1.0), "lambda": 1.0}


def _with_options(**options: Any) -> dict[str, Any]:
    return {"options": resolve_options("ties", {}) | options}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_with_options(agg="dis_mean"), "the option agg is 'dis_mean'; write it as 'dis-mean'"),
        (_with_options(kept_rule="bogus"), "unknown value of 'ties' option 'kept_rule': 'bogus'; known: exact"),
        (_with_options(semantics="mergekit"), "`semantics` is no option of a recipe"),
        ({"options": {}}, "it lacks the option trim_scope (global | tensor | layer_group)"),
        ({"parameters": TIES | {"density": (5.0, 0.5)}}, "density = 5.0 is outside of what the method allows (0 to 1)"),
        ({"parameters": TIES | {"weight": (1.0,)}}, "weight has 1 values for 2 sources"),
        ({"parameters": TIES | {"weight": 1.0}}, "one number for each source: write [1.0, 1.0]"),
        ({"parameters": {"weight": (1.0, 1.0)}}, "it lacks the parameter density (0 to 1)"),
        ({"parameters": TIES | {"densty": 0.5}}, "unknown parameter of 'ties' 'densty'; did you mean 'density'?"),
        ({"sources": ("math", "coed")}, "unknown source 'coed'; did you mean 'code'?"),
        ({"method": "slerp"}, "slerp merges exactly 2 sources, but got 1"),
        ({"method": "tise"}, "unknown merge method 'tise'"),
        (
            {"tensors": ("model.embed_token.weight",)},
            f"the base has no tensor 'model.embed_token.weight'; did you mean '{FIRST}'?",
        ),
        ({"tensors": (FIRST, FIRST)}, f"it merges {FIRST}, as rules[0] does; name each tensor once"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_rule_that_says_no_merge_is_refused_with_what_is_allowed(
    inside: bool,
    change: dict[str, Any],
    reason: str,
    make_models: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sources = _open(make_models(), fingerprinted=False)
    whole = _recipe(sources, "ties")
    if change.get("method") == "slerp":
        change = {"method": "slerp", "sources": ("math",), "parameters": {"t": 0.5}, "options": {}}
    wrong = replace(whole, rules=(replace(whole.rules[0], **change),))
    recipe = replace(_recipe(sources, "linear"), ingredients={"soup": wrong}) if inside else wrong
    assert _merge(_file(tmp_path, recipe), "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert reason in " ".join(told.split())
    if "merge method" not in reason:
        where = "ingredient 'soup' of the recipe" if inside else "the recipe"
        assert f"{where}, rules[0] ({wrong.rules[0].method}): " in " ".join(told.split())
    assert not (tmp_path / "out").exists()


def test_a_recipe_names_each_tensor_in_one_rule_and_has_a_known_dtype_and_models_of_their_own_names(
    make_models: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = _open(make_models(), fingerprinted=False)
    recipe = _recipe(sources, "linear", "ties")
    one, other = recipe.rules
    again = replace(recipe, rules=(one, replace(other, tensors=(*other.tensors, one.tensors[0]))))
    named = replace(recipe, sources=(*recipe.sources, replace(recipe.sources[0], location="elsewhere")))
    for wrong, reason in (
        (again, f"rules[1] (ties): it merges {one.tensors[0]}, as rules[0] does; name each tensor once"),
        (replace(recipe, dtype="float8"), "the recipe is of dtype 'float8'; known are float32, bfloat16 and float16"),
        (named, "the recipe has two models named 'math'; give each a name of its own"),
    ):
        assert _merge(_file(tmp_path, wrong), "--out", tmp_path / "out") == 2
        assert reason in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("method", sorted(name for name, info in METHODS.items() if any(o.late for o in info.options)))
def test_a_recipe_from_before_there_was_an_option_means_its_first_choice(
    method: str, make_models: Callable[..., list[str]], tmp_path: Path
) -> None:
    sources = _open(make_models(), fingerprinted=False)
    made = {}
    for late in (True, False):
        recipe = _recipe(sources, method)
        options = resolve_options(method, {})
        options = {each.name: options[each.name] for each in METHODS[method].options if late or not each.late}
        recipe = replace(recipe, rules=(replace(recipe.rules[0], options=options),))
        assert _merge(_file(tmp_path, recipe), "--out", tmp_path / str(late)) == 0
        made[late] = _written(tmp_path / str(late))
    assert made[True] == made[False]


@pytest.mark.parametrize(("method", "what"), [("fisher", "statistics"), ("column_linear", "coefficients")])
def test_what_a_search_has_measured_or_trained_is_refused_with_the_reason(
    method: str, what: str, make_models: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(_open(make_models()), "linear")
    recipe = replace(recipe, rules=(replace(recipe.rules[0], method=method),))
    assert _merge(_file(tmp_path, recipe), "--out", tmp_path / "out") == 2
    assert f"merges by {method}, with {what} that a search has measured or trained" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [False, True])
def test_two_opposite_experts_of_a_mergekit_file_leave_the_base_as_mergekit_does(
    rows: bool, make_models: Callable[..., list[str]], tmp_path: Path
) -> None:
    base, one, other = make_models()
    start = _tensors(Path(base))
    # Multiples of a power of two that neither sum rounds.
    moves = {name: ((torch.arange(each.numel()) % 7 - 3) * 2**-9).reshape(each.shape) for name, each in start.items()}
    coarse = {name: (each * 2**10).round() / 2**10 for name, each in start.items()}
    for directory, sign in ((base, 0), (one, 1), (other, -1)):
        made = {name: each + sign * moves[name] for name, each in coarse.items()}
        save_file(made, Path(directory) / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "merge.yml"
    models = [{"model": one}, {"model": other}]
    stock = {"merge_method": "model_stock", "base_model": base, "models": models, "dtype": "float32"}
    path.write_text(yaml.safe_dump(stock | {"parameters": {"filter_wise": rows}}))
    assert _merge(path, "--out", tmp_path / "out") == 0
    made = _tensors(tmp_path / "out")
    assert all(torch.equal(made[name], each) for name, each in _tensors(Path(base)).items())


def test_an_imported_file_is_a_recipe_that_merges_to_the_same_bits_and_its_differences_are_said(
    make_models: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, math, code = make_models(dtype=torch.bfloat16)
    content = {
        "merge_method": "dare_ties",
        "base_model": base,
        "models": [
            {"model": base},
            {"model": math, "parameters": {"weight": [1.0, 0.2], "density": 0.9}},
            {"model": code, "parameters": {"weight": [{"filter": "mlp", "value": 0.7}, {"value": 0.4}]}},
        ],
        "parameters": {"int8_mask": True},
        "dtype": "bfloat16",
    }
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    recipe = tmp_path / "recipe.yaml"
    named = ("--source", f"expert={math}", "--seed", "3")
    assert run_command(["import", "mergekit", str(path), "--out", str(recipe), *named]) == 0
    told = capsys.readouterr()
    assert "line 18: `int8_mask` saves memory in mergekit and changes nothing; ignored" in told.err
    assert "line 19: mergekit adds in bfloat16" in told.err
    assert "3 differences, above" in told.out
    assert _merge(recipe, "--out", tmp_path / "one") == 0
    assert _merge(path, "--out", tmp_path / "two", *named) == 0
    assert _written(tmp_path / "one") == _written(tmp_path / "two")
    made = yaml.safe_load(recipe.read_text())
    assert [source["name"] for source in made["sources"]] == ["expert", "code"]
    assert made["sources"][0]["fingerprint"]
    assert run_command(["import", "mergekit", str(recipe), "--out", str(tmp_path / "again.yaml")]) == 2


def test_rows_of_embeddings_without_a_token_are_kept_in_merges_and_in_the_file_beside_them(
    make_models: Callable[..., list[str]], tmp_path: Path
) -> None:
    base, math, code = make_models()
    words = WordLevel({f"t{number}": number for number in range(60)}, unk_token="t0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(base)
    models = [{"model": model, "parameters": {"weight": 0.5}} for model in (math, code)]
    content = {"merge_method": "task_arithmetic", "base_model": base, "models": models, "dtype": "float32"}
    path = tmp_path / "merge.yml"
    notes = []
    for given in (content, content | {"tokenizer_source": "base"}):
        path.write_text(yaml.safe_dump(given, sort_keys=False))
        notes.append(merge_file(path, tmp_path / "out", places={}, device="cpu")["notes"])
    assert notes[0] == []
    assert "evomerge keeps the 4 rows of the base that have none" in notes[1][0]
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].shape[0] == 64
    assert "tokenizer_source" not in (tmp_path / "out" / "mergekit.yaml").read_text()


def test_the_export_of_a_search_is_made_again_byte_by_byte(write_spec: Callable[..., Path], tmp_path: Path) -> None:
    spec = write_spec(budget={"trials": 2}, space="ties-per-block", dtype="bfloat16")
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    exported, again = tmp_path / "exported", tmp_path / "again"
    assert run_command(["export", str(spec), "--out", str(exported)]) == 0
    assert run_command(["merge", str(exported), "--out", str(again)]) == 0
    different = [
        path.name
        for path in sorted(exported.iterdir())
        if not (again / path.name).exists() or path.read_bytes() != (again / path.name).read_bytes()
    ]
    assert different == ["README.md"]


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def test_memory_does_not_grow_with_what_has_been_merged(make_models: Callable[..., list[str]], tmp_path: Path) -> None:
    sources = _open(make_models(hidden_size=1024, intermediate_size=2048), fingerprinted=False)
    held: list[int] = []
    path = _file(tmp_path, _recipe(sources, "task_arithmetic"))
    made = merge_file(
        path, tmp_path / "out", places={}, device="cpu", progress=lambda *_: held.append(_anonymous_bytes())
    )
    assert made["bytes"] == 4 * sources[0].catalogue.parameters
    assert max(held) - min(held) < made["bytes"] / 2  # of which the allocator keeps a part


def test_merging_loads_neither_optuna_nor_ray_nor_lm_eval(
    make_models: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = _file(tmp_path, _recipe(_open(make_models()), "linear"))
    code = (
        "import sys\nfrom evomerge.cli import run_command\n"
        f"assert run_command(['merge', {str(path)!r}, '--out', {str(tmp_path / 'out')!r}]) == 0\n"
        "print(*{'optuna', 'ray', 'lm_eval', 'datasets', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""

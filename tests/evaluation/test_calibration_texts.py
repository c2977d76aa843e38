"""Calibration texts: the right prompt, the right answer, the right items."""

import json
from types import SimpleNamespace

import pytest
from tiny_pack import TASKS, make_tokenizer, write_pack
from tokenizers.processors import TemplateProcessing

from evomerge.errors import InvalidInput
from evomerge.evaluation import load_pack
from evomerge.evaluation.calibration_texts import read_texts, tokenised, wrong_options
from evomerge.evaluation.evaluator import CalibratingEvaluator, CalibrationText
from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator
from evomerge.evaluation.synthetic import SyntheticEvaluator


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    folder = write_pack(tmp_path_factory.mktemp("pack") / "tiny")
    return HarnessEvaluator(load_pack(str(folder)), make_tokenizer(), seed=3, batch_size=8)


def read(text):
    decode = make_tokenizer().decode
    return decode(text.tokens), decode(text.tokens[text.answer :])


@pytest.mark.parametrize("task", ["toy_pick", "toy_letter", "toy_write", "toy_last", "toy_read"])
def test_every_kind_of_task_gives_its_prompt_and_its_right_answer(evaluator, task):
    texts = evaluator.calibration(task, 10)
    ids = evaluator.split.parts["calibration"][task]
    assert len(texts) == len(ids) == 3
    for item, text in zip(ids, texts, strict=True):
        document = list(evaluator.tasks[task].eval_docs)[item]
        expected = {
            "toy_pick": (f"which tree: {document['word']}?", f" {document['word']}"),
            "toy_letter": (f"first letter of {document['word']}:", document["word"][0]),
            "toy_write": (f"write {document['word']} {document['number']}:", f" {'lm'[int(document['number']) % 2]}"),
            "toy_last": (f"number {document['number']} is the", f" {document['word']}"),
            "toy_read": ("", document["text"]),
        }[task]
        assert read(text) == ("".join(expected), expected[1])


CHAT = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}\n{% endfor %}a:"


@pytest.mark.parametrize(
    ("prefix", "begins"), [({}, ""), ({"gen_prefix": "it is"}, "it is "), ({"gen_prefix": "it is "}, "it is ")]
)
def test_the_answer_of_a_chat_begins_as_those_of_the_examples_in_the_prompt(tmp_path, prefix, begins):
    task = {"task": "toy_write", "metric": "exact_match", "num_fewshot": 1}
    settings = {"apply_chat_template": True, "tasks": [task]}
    folder = write_pack(tmp_path / "tiny", settings, {"toy_write": {**TASKS["toy_write"], **prefix}})
    tokenizer = make_tokenizer()
    # A prefix is a message of the assistant that is left open.
    tokenizer.chat_template = CHAT.removesuffix("a:").replace("\n", "") if prefix else CHAT
    for text in HarnessEvaluator(load_pack(str(folder)), tokenizer, seed=3).calibration("toy_write", 3):
        whole, answer = read(text)
        assert answer.strip() in ("l", "m")
        assert any(f"a:{begins}{letter}" in whole[: -len(answer)] for letter in "lm")  # an example
        assert whole.endswith(f"a:{begins}{answer.strip()}")


def test_a_text_that_begins_with_the_start_token_is_given_no_second_one(tmp_path):
    tasks = [{"task": "toy_pick", "metric": "acc"}, {"task": "toy_write", "metric": "exact_match"}]
    folder = write_pack(tmp_path / "tiny", {"apply_chat_template": True, "tasks": tasks})
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "<s>" + CHAT
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "<s>oak"}\n{"prompt": "<s>an oak", "completion": " is a tree"}\n{"text": "elm"}\n')
    evaluator = HarnessEvaluator(load_pack(str(folder)), tokenizer, seed=3)
    texts = [*evaluator.read_calibration(file, 3), *evaluator.calibration("toy_write", 3)]
    picks = evaluator.calibration("toy_pick", 3)
    for text in [*texts, *picks, *(other for pick in picks for other in pick.others)]:
        assert text.tokens[0] == tokenizer.bos_token_id
        assert text.tokens.count(tokenizer.bos_token_id) == 1


def test_an_item_with_options_has_its_prompt_with_every_wrong_one(evaluator):
    ids = evaluator.split.parts["calibration"]["toy_letter"]
    for item, text in zip(ids, evaluator.calibration("toy_letter", 10), strict=True):
        word = list(evaluator.tasks["toy_letter"].eval_docs)[item]["word"]
        wrong = [letter for letter in "abcefhlopy" if letter != word[0]]
        assert [read(other) for other in text.others] == [
            (f"first letter of {word}:{letter}", letter) for letter in wrong
        ]


@pytest.mark.parametrize("task", ["toy_write", "toy_last", "toy_read"])
def test_an_item_without_options_has_none_beside_its_answer(evaluator, task):
    assert all(text.others == () for text in evaluator.calibration(task, 10))


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{word}}:",
    "doc_to_choice": "{{options}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.mark.parametrize(
    "target",
    [
        {"doc_to_target": "digit"},  # a field: lm-eval looks its text up among the options
        {"doc_to_target": "{{digit}}"},  # a template: lm-eval takes a number as a position
        {"doc_to_target": "{{options[1]}}"},
        {"doc_to_target": "{{options.index(digit)}}"},
    ],
    ids=lambda target: target["doc_to_target"],
)
def test_the_answer_is_the_option_that_lm_eval_counts_as_right(tmp_path, target):
    folder = write_pack(
        tmp_path / "tiny", {"tasks": [{"task": "digits", "metric": "acc"}]}, {"digits": {**CHOICE, **target}}
    )
    for file in ("all", "examples"):
        path = folder / "items" / f"{file}.jsonl"
        items = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text(
            "".join(
                json.dumps({**item, "options": ["2", "0", "1"], "digit": str(number % 3)}) + "\n"
                for number, item in enumerate(items)
            )
        )
    evaluator = HarnessEvaluator(load_pack(str(folder)), make_tokenizer(), seed=3)
    task, documents = evaluator.tasks["digits"], list(evaluator.tasks["digits"].eval_docs)
    ids = evaluator.split.parts["calibration"]["digits"]
    for item, text in zip(ids, evaluator.calibration("digits", 10), strict=True):
        chosen = [[(0.0 if at == option else -9.0, False) for at in range(3)] for option in range(3)]
        marks = [task.process_results(documents[item], results)["acc"] for results in chosen]
        right = documents[item]["options"][marks.index(1.0)]
        assert read(text)[1] == f" {right}"
        assert [read(other)[1] for other in text.others] == [f" {each}" for each in ("2", "0", "1") if each != right]


def test_a_text_that_is_to_be_written_may_be_one_of_several_choices(tmp_path):
    content = {**CHOICE, "output_type": "generate_until", "doc_to_target": "{{options.index(word)}}"}
    content["metric_list"] = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    folder = write_pack(tmp_path / "tiny", {"tasks": [{"task": "write", "metric": "exact_match"}]}, {"write": content})
    evaluator = HarnessEvaluator(load_pack(str(folder)), make_tokenizer(), seed=3)
    documents = list(evaluator.tasks["write"].eval_docs)
    ids = evaluator.split.parts["calibration"]["write"]
    for item, text in zip(ids, evaluator.calibration("write", 10), strict=True):
        assert read(text)[1] == f" {documents[item]['word']}"


def test_answers_without_a_prompt_are_no_options():
    document = {"options": ["yes", "no"]}
    task = SimpleNamespace(doc_to_choice=lambda document: document["options"], doc_to_target=lambda document: 1)
    requests = [
        SimpleNamespace(request_type="loglikelihood", doc=document, args=args)
        for args in [("is it?", " yes"), ("is it?", " no"), ("", "yes"), ("", "no")]  # acc_mutual_info
    ]
    assert wrong_options(task, requests) == [("is it?", " yes")]


def test_the_options_of_a_long_item_are_cut_as_it_is():
    long, short = CalibrationText((5, 6, 7, 8, 9), 3), CalibrationText((5, 6), 1)
    text = CalibrationText((5, 6, 1), 2, (long, short))
    assert text.cut(3) == CalibrationText((5, 6, 1), 2, (CalibrationText((7, 8, 9), 1), short))


def test_no_item_of_another_part_calibrates(evaluator):
    for parts in (evaluator.split.parts["search"], evaluator.split.parts["held_out"]):
        assert not set(evaluator.split.parts["calibration"]["toy_pick"]) & set(parts["toy_pick"])


def test_fewer_items_are_the_first_of_more(evaluator):
    assert evaluator.calibration("toy_pick", 2) == evaluator.calibration("toy_pick", 3)[:2]


def test_an_unknown_task_is_answered_with_the_nearest(evaluator):
    with pytest.raises(InvalidInput, match="did you mean 'toy_pick'"):
        evaluator.calibration("toy_pik", 2)


def test_a_task_without_calibration_items_says_what_to_do(tmp_path):
    pack = load_pack(str(write_pack(tmp_path / "tiny", count=8)))
    with pytest.raises(InvalidInput, match="has no calibration items; give its split a calibration part"):
        HarnessEvaluator(pack, make_tokenizer(), seed=3).calibration("toy_pick", 2)


def test_an_evaluator_without_texts_is_none_that_calibrates(evaluator):
    assert isinstance(evaluator, CalibratingEvaluator)
    assert not isinstance(SyntheticEvaluator(), CalibratingEvaluator)


def test_files_hold_a_text_per_line_or_prompts_with_completions(tmp_path):
    encode = make_tokenizer().encode
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("first\n\nsecond\nthird\n")
    assert [read(text) for text in read_texts(plain, 2, encode)] == [("first", "first"), ("second", "second")]
    contents = [{"prompt": "one plus one is ", "completion": "two"}, {"text": "elm"}]
    lines.write_text("".join(json.dumps(content) + "\n" for content in contents))
    assert [read(text) for text in read_texts(lines, 9, encode)] == [("one plus one is two", "two"), ("elm", "elm")]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", "\n\n", "is empty"),
        ("a.jsonl", "{", "text 1"),
        ("a.jsonl", '{"prompt": "x"}', r"has the keys \['prompt'\]; each needs"),
        ("a.jsonl", '["x"]', "each needs `text`"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InvalidInput, match=reason):
        read_texts(path, 5, make_tokenizer().encode)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_texts(tmp_path / "none.txt", 5, make_tokenizer().encode)


def test_the_answer_starts_where_the_tokens_leave_those_of_the_prompt():
    merged = {"ab": [1], "a": [2], "b": [3], "abc": [1, 4]}
    assert tokenised("a", "b", merged.__getitem__).answer == 0  # one token spans both
    assert tokenised("ab", "c", merged.__getitem__).answer == 1

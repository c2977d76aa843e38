"""The probe on the toy models: sane ones, a merge that loops, tokenizers that cannot write the text, templates."""

import shutil
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import MergeError
from evomerge.sanity.judgement import judge_sanity
from evomerge.sanity.sanity_probe import WINDOW, SanityProbe

TOY = Path(__file__).parents[2] / "examples" / "toy" / "models"


def loaded(name="base"):
    return AutoModelForCausalLM.from_pretrained(TOY / name, dtype=torch.float32).eval()


@pytest.fixture
def model():
    return loaded()


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(TOY / "base")


def silence(model):
    """Let attention and MLP write nothing: the token read last is the likeliest, for ever."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                tensor.zero_()


def test_n42_a_merge_that_loops_is_found_and_a_fine_one_passes(model, tokenizer):
    probe = SanityProbe(model, tokenizer)
    base = probe.run()
    assert probe.run() == base
    assert base.continuations == base.answers == 8
    sources = {"base": base}
    state = model.state_dict()
    half = {name: (tensor + state[name]) / 2 for name, tensor in loaded("sort").state_dict().items()}
    model.load_state_dict(half)
    assert judge_sanity(probe.run(), sources).faults == ()
    silence(model)
    assert judge_sanity(probe.run(), sources).faults == (
        f"loops in 8 of 8 continuations, no source in more than {base.loops}",
    )


def test_a_model_without_numbers_is_an_error(model, tokenizer):
    probe = SanityProbe(model, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(MergeError, match="not numbers"):
        probe.run()


def test_n13_the_probe_leaves_the_global_generators_alone(model, tokenizer):
    before = torch.random.get_rng_state()
    SanityProbe(model, tokenizer).run()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_tokenizer_that_cannot_write_the_text_leaves_loops_alone(model, tmp_path):
    shutil.copytree(TOY / "base", tmp_path / "base")
    file = tmp_path / "base" / "tokenizer.json"
    text = file.read_text()
    for letter in "etaoinsr":  # unknown from here on
        text = text.replace(f'"{letter}": ', f'"<{letter}>": ')
    file.write_text(text)
    probe = SanityProbe(model, AutoTokenizer.from_pretrained(tmp_path / "base"))
    found = probe.run()
    assert (found.nats, found.strays, found.refusals, found.endless) == (None, None, None, None)
    silence(model)
    judgement = judge_sanity(probe.run(), {"base": found})
    assert judgement.faults == (f"loops in 8 of 8 continuations, no source in more than {found.loops}",)
    assert "the tokenizer of the base cannot write the neutral text" in judgement.says("trial 1")


def test_behind_a_chat_template_an_end_is_expected(model, tokenizer):
    tokenizer.chat_template = "{% for each in messages %}{{ each['content'] }}{% endfor %}"
    silence(model)
    assert SanityProbe(model, tokenizer).run().endless == 8


def test_a_long_template_is_read_from_its_start_token_where_the_model_has_room(tokenizer):
    config = loaded().config
    config.max_position_embeddings = 2048
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config).eval()
    tokenizer.chat_template = (
        "{{ bos_token }}" + "think. " * 60 + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    probe = SanityProbe(model, tokenizer)
    assert {prompt.tokens[0] for prompt in probe._answered} == {tokenizer.bos_token_id}
    assert min(len(prompt.tokens) for prompt in probe._answered) > WINDOW
    assert probe.run().answers == 8


def test_a_template_that_asks_for_today_has_the_same_questions_every_day(model, tokenizer, monkeypatch):
    tokenizer.chat_template = "{{ strftime_now('%d') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    questions = []
    for day in (1, 2):
        clock = SimpleNamespace(now=partial(datetime, 2031, 1, day))
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        questions.append([prompt.tokens for prompt in SanityProbe(model, tokenizer)._answered])
    assert questions[0] == questions[1]


def test_a_template_that_cannot_be_filled_in_is_none(model, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert SanityProbe(model, tokenizer).run().endless is None


def test_a_special_token_without_a_role_is_a_stray_of_an_answer(model, tokenizer):
    written = tokenizer.encode("seven", add_special_tokens=False)
    tokenizer.add_tokens([AddedToken(tokenizer.convert_ids_to_tokens(written[-1]), special=True)])
    assert written[-1] not in tokenizer.all_special_ids
    assert SanityProbe(model, tokenizer)._strays(written) == [tokenizer.decode(written[-1:])]

"""Texts of any length as attributes below 2 kB."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InvalidInput
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text, write_text


class Attributes:
    """Stands for a study or a trial, and can be killed in the middle of its writes."""

    def __init__(self, lives: int = 10**9) -> None:
        self.user_attrs: dict[str, Any] = {}
        self.lives = lives

    def set_user_attr(self, key: str, value: Any) -> None:
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.user_attrs[key] = json.loads(json.dumps(value))  # as a storage does


@given(st.text() | st.text(min_size=1400, max_size=1600) | st.text("\x00\ud800ü𝄞\\\"'", min_size=0, max_size=4000))
def test_any_text_comes_back_and_every_attribute_is_below_2_kb(text: str) -> None:
    target = Attributes()
    write_text(target, "evomerge:spec", text)
    assert read_text(target, "evomerge:spec") == text
    assert all(len(json.dumps(value).encode()) < 2000 for value in target.user_attrs.values())


def test_what_was_never_written_is_none() -> None:
    assert read_text(Attributes(), "evomerge:spec") is None


@given(old=st.integers(0, 6000), new=st.integers(0, 6000), writes=st.integers(0, 5))
def test_a_torn_write_is_noticed_or_changed_nothing(old: int, new: int, writes: int) -> None:
    target = Attributes()
    write_text(target, "k", "o" * old)
    target.lives = writes
    with contextlib.suppress(KeyboardInterrupt):
        write_text(target, "k", "n" * new)
    try:
        assert read_text(target, "k") in ("o" * old, "n" * new)
    except InvalidInput:
        assert target.lives == 0


def test_a_shorter_text_replaces_a_longer_one() -> None:
    target = Attributes()
    write_text(target, "k", "long" * 2000)
    write_text(target, "k", "short")
    assert read_text(target, "k") == "short"


def test_a_foreign_value_under_the_key_is_refused() -> None:
    target = Attributes()
    target.set_user_attr("k", "text")
    with pytest.raises(InvalidInput, match="did not write"):
        read_text(target, "k")


def test_studies_and_trials_hold_texts(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    text = "spec: ü\n" * 1000
    write_text(study, attributes.SPEC, text)
    trial = study.ask()
    write_text(trial, "evomerge:note", text)
    study.tell(trial, 1.0)
    again = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name=study.study_name)
    assert read_text(again, attributes.SPEC) == text
    assert read_text(again.trials[0], "evomerge:note") == text


def test_keys_are_distinct_and_have_the_prefix() -> None:
    keys = [value for name, value in vars(attributes).items() if name.isupper() and name[0] != "_" and name != "PREFIX"]
    assert len(set(keys)) == len(keys) > 10
    assert all(isinstance(key, str) and key.startswith(attributes.PREFIX) for key in keys)

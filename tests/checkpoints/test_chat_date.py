"""The date of chats: the same on every day, in whatever form a template asks for it, and all else as it is."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from evomerge.checkpoints.chat_date import _WRITTEN, asks_for_today, on_one_date

LLAMA = """{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
Today Date: {{ date_string }}
{{ messages[0].content }}"""
IN_A_MACRO = """
  {%- macro system() -%}Current date: {{ strftime_now("%Y-%m-%d") }}{% endmacro %}
  {% if messages %}
{{ system() }}, year {{ strftime_now("%Y") | int + 1 }}
{% endif %}"""


def rendered(template: str) -> str:
    texts, _ = render_jinja_template([[{"role": "user", "content": "hello"}]], chat_template=template)
    return str(texts[0])


def set_today(monkeypatch: pytest.MonkeyPatch, today: datetime) -> None:
    clock = SimpleNamespace(now=lambda: today)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)


BLANKS_FIRST = "\n  {% if messages %}\n    {{ strftime_now('%B %Y') }}\n  {% endif %}\n"


@pytest.mark.parametrize("template", [LLAMA, IN_A_MACRO, BLANKS_FIRST])
def test_a_template_writes_every_day_what_it_writes_on_the_one_date(
    monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    set_today(monkeypatch, datetime(2024, 7, 26))
    expected = rendered(template)
    assert "2024" in expected
    set_today(monkeypatch, datetime(2031, 1, 2, 13, 14, 15))
    assert rendered(template) != expected
    assert rendered(on_one_date(template)) == expected


@pytest.mark.parametrize("code", [code for code in _WRITTEN if not code.startswith("%-")])
def test_a_part_of_the_date_is_written_as_python_writes_it(code: str) -> None:
    assert _WRITTEN[code] == datetime(2024, 7, 26).strftime(code)


def test_templates_that_ask_for_no_date_are_left_as_they_are() -> None:
    plain = "{{ messages[0].content }} my_strftime_now_too"
    assert on_one_date(plain) == plain
    assert on_one_date(None) is None
    several = {"default": plain, "tool_use": LLAMA}
    assert not asks_for_today(several)
    assert on_one_date(several)["default"] == plain
    assert asks_for_today({"default": LLAMA})

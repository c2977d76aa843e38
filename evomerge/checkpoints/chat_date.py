"""One date for all chats: some chat templates write today's, so that a prompt would change from day to day."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

DATE: Final = "26 Jul 2024"  # that of Llama's template where it is told none
WARNING: Final = (
    "the chat template of the base writes today's date into every prompt; here that is always "
    f"{DATE}, so that candidates of different days are asked the same"
)
_TODAY: Final = re.compile(r"\bstrftime_now\b")  # what transformers calls it; it cannot be given another one

_WRITTEN: Final = MappingProxyType(
    {
        "%a": "Fri", "%A": "Friday", "%b": "Jul", "%B": "July", "%c": "Fri Jul 26 00:00:00 2024", "%d": "26",
        "%-d": "26", "%D": "07/26/24", "%e": "26", "%F": "2024-07-26", "%H": "00", "%-H": "0", "%I": "12", "%j": "208",
        "%m": "07", "%-m": "7", "%M": "00", "%p": "AM", "%S": "00", "%T": "00:00:00", "%u": "5", "%w": "5",
        "%x": "07/26/24", "%X": "00:00:00", "%y": "24", "%Y": "2024", "%z": "", "%Z": "",
    }
)  # fmt: skip
_REPLACED: Final = "".join(f'|replace("{code}", "{text}")' for code, text in _WRITTEN.items())
# Both ends of the macro leave the blanks of the template as they are: the newline behind a block is dropped.
_MACRO: Final = f"{{%- macro strftime_now(format) -%}}{{{{- format{_REPLACED} -}}}}{{%- endmacro %}}\n"


def on_one_date(template: Any) -> Any:
    """A chat template, or several by name, with `DATE` for today. One that asks for no date is left as it is."""
    if isinstance(template, Mapping):
        return {name: on_one_date(each) for name, each in template.items()}
    return _MACRO + template if _asks(template) else template


def asks_for_today(template: Any) -> bool:
    """Whether a chat template asks for today's date; of several, the one that chats without tools are written by."""
    return _asks(template.get("default") if isinstance(template, Mapping) else template)


def _asks(template: Any) -> bool:
    return isinstance(template, str) and _TODAY.search(template) is not None

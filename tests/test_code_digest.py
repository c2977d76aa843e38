from __future__ import annotations

import os
import subprocess
import sys

from evomerge.code_digest import code_digest

TEXT = """
from functools import cached_property

class Marked:
    LEVEL = {level}
    TABLE = {{"levels": [{listed}]}}

    def mark(self, text, most={most}):
        return [each for each in text if each < {level}]

    @property
    def half(self):
        return {level} / 2

    @cached_property
    def known(self):
        return self.LEVEL in {{"a", "{known}"}}

    @staticmethod
    def nothing():
        "{comment}"
"""


GIVEN = {"level": 1, "most": 2, "comment": "none", "listed": 3, "known": "b"}


def marked(**changes):
    """A class without a text that Python could find, as those of a notebook."""
    names: dict[str, type] = {}
    exec(TEXT.format(**{**GIVEN, **changes}), names)
    return names["Marked"]


def double(number):
    return 2 * number


def indented():
    def double(number):
        return 2 * number

    return double


def test_the_text_of_a_function_is_its_digest_wherever_it_is_indented():
    assert code_digest(double) == code_digest(indented())


def test_code_without_a_text_has_the_digest_of_its_functions_and_values():
    assert code_digest(marked()) == code_digest(marked())
    others = [marked(level=3), marked(most=3), marked(comment="other"), marked(listed=4), marked(known="c")]
    assert len({code_digest(each) for each in (marked(), *others)}) == 6


def test_values_that_have_an_address_do_not_change_the_digest():
    def build():
        names: dict[str, type] = {}
        exec("class Odd:\n    thing = object()\n    def mark(self): return 1\n", names)
        return names["Odd"]

    assert code_digest(build()) == code_digest(build())


def test_the_digest_is_the_same_in_another_process():
    code = f"from evomerge.code_digest import code_digest\nexec({TEXT.format(**GIVEN)!r})\nprint(code_digest(Marked))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {code_digest(marked())}

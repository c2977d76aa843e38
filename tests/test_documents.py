"""YAML of others as it is read, where YAML 1.1 and 1.2 differ."""

from pathlib import Path

import pytest

from evomerge.documents import read_document, read_documents
from evomerge.errors import InvalidInput

TEXT = "notify: {on: [best], off: 1}\nyes: true\ntrue: no\n"


def test_words_that_yaml_1_1_takes_for_truth_values_are_keys(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TEXT, encoding="utf-8")
    expected = {"notify": {"on": ["best"], "off": 1}, "yes": True, True: False}
    assert read_document(tmp_path / "a.yaml", "document") == expected
    assert [each.content for each in read_documents(tmp_path / "a.yaml", "document")] == [expected]


def test_halves_of_characters_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text('name: a\nspace: "\\ud800"\n', encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"line 2: \\ud800 to \\udfff are halves of characters"):
        read_document(file, "search spec")

"""Licences read from the files of a model, the table, and what several of them mean for a merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.licenses import (
    DeclaredLicense,
    LicenseJudgement,
    SourceLicense,
    judge_licenses,
    name_problems,
    read_license,
)
from evomerge.licenses.license_terms import KINDS, find_terms, license_table, recognised

APACHE_TEXT = "                                 Apache License\n                           Version 2.0, January 2004\n"
NC_TEXT = "Attribution-NonCommercial 4.0 International\n\n" + "=" * 80


def _judged(**licenses: str | None) -> LicenseJudgement:
    """The judgement on sources by name, each with a licence or with none."""
    return judge_licenses(
        [
            SourceLicense(name, DeclaredLicense(names=() if each is None else (each,), file="README.md"))
            for name, each in licenses.items()
        ]
    )


def _model(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "names", "link"),
    [
        ("---\nlicense: apache-2.0\n---\n# Card", ("apache-2.0",), None),
        ("---\nlicense: Apache 2.0\n---\n", ("apache-2.0",), None),
        ("\n  \n--- \nlicense: mit\n---\n", ("mit",), None),
        ("\ufeff---\nlicense: mit\n---\n", ("mit",), None),
        ("---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\n---\n", ("llama3",), "LICENSE"),
        ("---\nlicense: other\nlicense_name: house-rules\n---\n", ("house-rules",), None),
        ("---\nlicense: [mit, cc-by-4.0]\n---\n", ("mit", "cc-by-4.0"), None),
        ("---\nlicense: unknown\n---\n", (), None),
        ("---\ntags: [a]\n---\n", (), None),
        ("# No front matter\n", (), None),
        ("---\nlicense: [unclosed\n---\n", (), None),
        ("---\nlicense: 3\n---\n", (), None),
    ],
)
def test_the_licence_comes_from_the_front_matter(
    tmp_path: Path, text: str, names: tuple[str, ...], link: str | None
) -> None:
    found = read_license(_model(tmp_path, README_md=text))
    assert found.names == names
    assert found.link == link
    assert found.file == ("README.md" if names else None)


def test_without_front_matter_it_comes_from_the_licence_file_or_the_config(tmp_path: Path) -> None:
    _model(tmp_path, config_json=json.dumps({"license": "mit"}))
    assert read_license(tmp_path) == DeclaredLicense(names=("mit",), file="config.json")
    _model(tmp_path, LICENSE=APACHE_TEXT)
    assert read_license(tmp_path).names == ("apache-2.0",)
    assert read_license(tmp_path).file == "LICENSE"


def test_a_licence_or_later_has_the_text_of_its_first_version_and_may_be_taken_as_a_later_one(tmp_path: Path) -> None:
    (text,) = license_table()["gpl-2.0"].text
    _model(tmp_path, README_md="---\nlicense: other\nlicense_name: GPL-2.0+\n---\n", LICENSE=text)
    declared = read_license(tmp_path)
    assert declared.all_names == ("gpl-2.0-or-later",)
    others = [SourceLicense("base", DeclaredLicense(names=("gpl-3.0",), file="README.md"))]
    assert judge_licenses([*others, SourceLicense("math", declared)]).problems == ()


def test_files_that_cannot_be_read_declare_nothing(tmp_path: Path) -> None:
    _model(tmp_path, config_json="{", LICENSE="All rights reserved, forever.")
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert read_license(tmp_path) == DeclaredLicense()


def test_every_row_of_the_table_is_found_by_its_names_and_texts_by_their_own_row() -> None:
    table = license_table()
    assert len(table) > 80
    for terms in table.values():
        assert all(find_terms(name.upper()) == terms for name in (terms.id, *terms.aliases))
        assert terms.kind in KINDS
        assert set(terms.compatible) | set(terms.incompatible) <= set(table)
        assert not terms.text or recognised(" \n ".join(terms.text).upper()) == terms
    spellings = [name for terms in table.values() for name in (terms.id, *terms.aliases)]
    assert len(spellings) == len(set(spellings))


# The identifiers that the hub accepts in the field `license`, as its documentation lists them.
HUB = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql
ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
llama3.2 llama3.3 llama4 grok2-community gemma
"""


def test_the_table_has_every_identifier_of_the_hub_and_marks_no_other_one_as_such() -> None:
    assert {terms.id for terms in license_table().values() if terms.hub} == set(HUB.split())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mit", "permissive"),
        ("cc-by-4.0", "permissive"),
        ("lgpl-3.0", "weak copyleft"),
        ("gpl-3.0", "share-alike"),
        ("cc-by-sa-4.0", "share-alike"),
        ("llama3.1", "custom terms"),
        ("gemma", "custom terms"),
        ("bigscience-openrail-m", "custom terms"),
        ("cc-by-nc-4.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("mrl", "non-commercial"),
        ("cc-by-nd-4.0", "no derivatives"),
        ("cc-by-nc-nd-4.0", "no derivatives"),
        ("house-rules", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_strictest_licence_is_that_of_the_merge(name: str | None, kind: str) -> None:
    judged = _judged(base="mit", math=name)
    assert judged.kind == kind
    if kind != "permissive":
        assert judged.meaning.startswith("'math' has ")


def test_one_licence_of_all_sources_is_that_of_the_merge_and_different_ones_are_other() -> None:
    same = _judged(base="apache-2.0", math="apache-2.0")
    assert (same.license, same.license_name, same.problems) == ("apache-2.0", None, ())
    assert "commercially, with the notices" in same.meaning
    mixed = _judged(base="apache-2.0", math="mit")
    assert (mixed.license, mixed.license_name, mixed.license_link) == ("other", "licenses-of-the-sources", None)
    assert mixed.problems == ()
    assert _judged(base="apache-2.0", math=None).license == "other"
    assert _judged(base=None).license == "other"


def test_a_licence_that_the_hub_has_no_identifier_for_is_other_by_its_name() -> None:
    research = _judged(base="qwen-research", math="qwen-research")
    assert (research.license, research.license_name) == ("other", "qwen-research")
    assert research.license_link == "https://huggingface.co/Qwen/Qwen2.5-3B/blob/main/LICENSE"
    link = "https://example.org/rules"
    house = judge_licenses([SourceLicense("base", DeclaredLicense(names=("house-rules",), link=link))])
    assert (house.license, house.license_name, house.license_link) == ("other", "house-rules", link)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (None, "the licence of 'math' is unknown, as it names none: all rights are reserved by default"),
        ("house-rules", "the licence of 'math', house-rules, is not known here; read it"),
        ("cc-by-nc-nd-4.0", "forbids derivatives: a merge is one"),
        ("cc-by-nc-4.0", "forbids commercial use, also of the merge"),
    ],
)
def test_a_licence_that_stands_in_the_way_is_a_problem(name: str | None, says: str) -> None:
    (problem,) = _judged(base="apache-2.0", math=name).problems
    assert says in problem


def test_sources_without_a_licence_are_one_problem_together() -> None:
    (problem,) = _judged(base=None, math=None, code=None).problems
    assert problem.startswith("the licence of all sources is unknown, as they name none")


def test_a_permissive_claim_beside_another_text_is_a_conflict(tmp_path: Path) -> None:
    readme = "---\nlicense: apache-2.0\n---\n"
    declared = read_license(_model(tmp_path, README_md=readme, LICENSE=NC_TEXT))
    judged = judge_licenses([SourceLicense("base", DeclaredLicense(names=("mit",))), SourceLicense("math", declared)])
    assert judged.kind == "non-commercial"
    assert any(
        problem.startswith("'math' says apache-2.0 in README.md, but its LICENSE is cc-by-nc-4.0")
        for problem in judged.problems
    )
    alone = judge_licenses([SourceLicense("math", declared)])
    assert (alone.license, alone.license_name) == ("other", "licenses-of-the-sources")
    same = read_license(_model(tmp_path, README_md=readme, LICENSE=APACHE_TEXT))
    assert judge_licenses([SourceLicense("math", same)]).problems == ()


@pytest.mark.parametrize("base", ["cc-by-nc-4.0", "llama3.1", "gpl-3.0"])
def test_a_freer_claim_of_a_fine_tune_does_not_free_the_merge_from_its_base(base: str) -> None:
    judged = _judged(base=base, math="apache-2.0")
    assert any(
        f"'math' says apache-2.0, but is made of 'base', which is under {base}" in each for each in judged.problems
    )
    assert not any("is made of" in each for each in _judged(base="mit", math=base).problems)


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        ("gpl-3.0", "cc-by-nc-4.0", True),
        ("gpl-3.0", "llama3.1", True),
        ("gpl-2.0", "apache-2.0", True),
        ("gpl-2.0", "gpl-3.0", True),
        ("gpl-2.0-or-later", "gpl-3.0", False),
        ("gpl-2.0-or-later", "gpl-2.0", False),
        ("gpl-2.0-or-later", "agpl-3.0", False),
        ("gpl-2.0-or-later", "apache-2.0", False),
        ("gpl-2.0-or-later", "cc-by-sa-4.0", False),
        ("gpl-2.0-or-later", "cc-by-nc-4.0", True),
        ("gpl", "eupl-1.1", False),
        ("cc-by-sa-4.0", "gpl-2.0", True),
        ("cc-by-sa-4.0", "cc-by-nc-sa-4.0", True),
        ("cc-by-nc-sa-4.0", "qwen-research", True),
        ("gpl-3.0", "apache-2.0", False),
        ("gpl-3.0", "agpl-3.0", False),
        ("cc-by-sa-4.0", "gpl-3.0", False),
        ("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", False),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", False),
        ("lgpl-3.0", "llama3.1", False),
        ("llama3.1", "gemma", False),
        ("mit", "cc-by-nc-4.0", False),
    ],
)
def test_licences_that_no_licence_of_the_merge_meets_contradict_each_other(
    first: str, second: str, conflict: bool
) -> None:
    for sources in ({"base": first, "math": second}, {"base": second, "math": first}):
        problems = _judged(**sources).problems
        assert any("contradict each other" in problem for problem in problems) == conflict


def test_duties_and_names_are_those_of_every_licence() -> None:
    judged = _judged(base="llama3.1", math="gemma")
    assert judged.displays == ("Built with Llama",)
    llama, gemma = judged.duties
    assert llama.startswith("llama3.1 asks you to begin the name of the merge with “Llama”; show “Built with Llama”; ")
    assert gemma.startswith("gemma asks you to hand on its limits of use")
    assert name_problems(judged.prefixes, "me/Llama-3.1-8B-merge") == []
    assert name_problems(judged.prefixes, "llamas/merge") == [
        "llama3.1 asks for a name that begins with 'Llama', which 'merge' does not"
    ]
    assert name_problems({"Llama 3": "llama3"}, "me/llama-3-merge") == []

"""The page of errors: what it advises for a study that is there can be done to that study."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from evomerge.packs.pack import Pack, load_pack
from evomerge.spec import SearchSpec, load_spec

ROOT = Path(__file__).parent.parent
FAILURES = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").partition("\n## 5: ")[2].partition("\n## ")[0]
OF_A_SPEC = {each.alias or name for name, each in SearchSpec.model_fields.items()}
REMEDIES = [
    (remedy, "new `name`" in row)
    for row in re.findall(r"^\|.*\|$", FAILURES, flags=re.MULTILINE)
    for remedy in re.findall(r"`([a-z_]+(?:: [^`]+)?)`", row)
    if remedy != "name"
]


def identity_with(write_spec, remedy):
    spec = load_spec(write_spec(**{"workers": {"count": 2, "gpus": 0.5}, "dtype": "float32", **remedy}))
    return spec.identity({source.name: "weights" for source in spec.sources}, "evaluator", {})


def fingerprint_with(folder, line):
    shutil.copytree(ROOT / "evaluators" / "toy-skills", folder)
    settings = folder / "evaluator.yaml"
    settings.write_text(settings.read_text(encoding="utf-8") + line, encoding="utf-8")
    return load_pack(folder).fingerprint


@pytest.mark.parametrize(("remedy", "is_new"), REMEDIES)
def test_a_remedy_keeps_the_identity_of_the_study_or_is_said_to_need_a_new_name(remedy, is_new, write_spec, tmp_path):
    key, _, value = remedy.partition(": ")
    if key in OF_A_SPEC:
        changed = identity_with(write_spec, {key: yaml.safe_load(value)}) != identity_with(write_spec, {})
    else:
        assert key in Pack.model_fields
        changed = fingerprint_with(tmp_path / "changed", f"{key}: 64\n") != fingerprint_with(tmp_path / "given", "")
    assert changed == is_new


def test_the_page_advises_something_of_both_kinds():
    assert {is_new for _, is_new in REMEDIES} == {True, False}

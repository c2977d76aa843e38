"""A pack that real searches of the toy models are scored on in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ITEMS = {"calibration": 16, "search": 20, "held_out": 20}


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy skills with two tasks, `toy_reverse` and `toy_sort`, and few items."""
    folder = tmp_path_factory.mktemp("packs") / "two-skills"
    shutil.copytree(ROOT / "evaluators" / "toy-skills", folder)
    content = yaml.safe_load((folder / "evaluator.yaml").read_text())
    content["tasks"] = [task for task in content["tasks"] if task["task"] in ("toy_reverse", "toy_sort")]
    (folder / "evaluator.yaml").write_text(yaml.safe_dump({**content, "name": "two-skills"}))
    for items in (folder / "items").iterdir():
        lines, left = [], dict(ITEMS)
        for line in items.read_text().splitlines(keepends=True):
            part = json.loads(line)["part"]
            left[part] -= 1
            lines += [line] * (left[part] >= 0)
        items.write_text("".join(lines))
    return folder

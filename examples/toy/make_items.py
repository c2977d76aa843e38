"""Write the items of the evaluator pack `toy-skills`: `python examples/toy/make_items.py`. Running it again writes the
same bytes.
"""

import json
import random
from pathlib import Path

from skills import SKILLS, Item, Skill, draw_item

ITEMS_FOLDER = Path(__file__).parents[2] / "evaluators" / "toy-skills" / "items"
PART_SIZES = {"calibration": 128, "search": 200, "held_out": 400}


def draw_unique_items(skill: Skill, number: int) -> list[Item]:
    """Items with different prompts, all of them reserved for evaluation."""
    rng = random.Random(f"items of {skill.name}")
    items: dict[str, Item] = {}
    while len(items) < number:
        item = draw_item(skill, rng, reserved=True)
        items[item.prompt] = item
    return list(items.values())


def render_line(item: Item, part: str) -> str:
    fields: dict[str, object] = {"part": part, "prompt": item.prompt, "answer": item.answer}
    if item.choices:
        fields["choices"] = item.choices
    return json.dumps(fields) + "\n"


def main() -> None:
    ITEMS_FOLDER.mkdir(parents=True, exist_ok=True)
    parts = [part for part, size in PART_SIZES.items() for _ in range(size)]
    for skill in SKILLS:
        items = draw_unique_items(skill, len(parts))
        lines = [render_line(item, part) for item, part in zip(items, parts, strict=True)]
        (ITEMS_FOLDER / f"toy_{skill.name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()

"""The items of the four tasks: `python examples/smollm2/items.py` writes those that are evaluated into `skills/items`.

They come from small packages of PyPI, the extra `smollm2`. Running it again writes the same bytes.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from numerals import french_items, in_french
from parts import Item, evaluated_items
from prepare import MODELS
from sounds import pronunciations, rhyme_items, sounds_of, syllable_items
from transformers import AutoTokenizer
from verbs import past_tense_items, past_tenses_of

ITEMS = Path(__file__).resolve().parent / "skills" / "items"
TASKS = ("french", "past", "rhymes", "syllables")
# The vocabulary begins with the frequent pieces of text: a word among the first tokens is a common one.
FIRST_TOKENS = 16_000
SPACE = "Ġ"  # how a byte-level vocabulary writes the space before a word


def common_words(vocabulary: Mapping[str, int]) -> list[str]:
    """The lower-case English words that are one early token, sorted."""
    early = [token for token, number in vocabulary.items() if number < FIRST_TOKENS and token.startswith(SPACE)]
    words = [token.removeprefix(SPACE) for token in early]
    return sorted(word for word in words if word.isascii() and word.isalpha() and word.islower())


def all_items(words: Collection[str]) -> dict[str, list[Item]]:
    """Task -> its items, those for training among them."""
    sounds = sounds_of(words, pronunciations)
    return {
        "french": list(french_items(in_french)),
        "past": list(past_tense_items(words, past_tenses_of)),
        "rhymes": list(rhyme_items(sounds)),
        "syllables": list(syllable_items(sounds)),
    }


def load_items() -> dict[str, list[Item]]:
    """The items of the tasks, over the words of the base model's vocabulary."""
    return all_items(common_words(AutoTokenizer.from_pretrained(MODELS / "base").get_vocab()))


def render_line(item: Item, part: str) -> str:
    fields: dict[str, object] = {"part": part, "prompt": item.prompt, "answer": item.answer}
    if item.choices:
        fields["choices"] = item.choices
    return json.dumps(fields, ensure_ascii=False) + "\n"


def write_items(items: Mapping[str, Iterable[Item]], folder: Path) -> None:
    """Write the evaluated items of each task, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, of_task in items.items():
        parts = evaluated_items(task, of_task)
        lines = [render_line(item, part) for part, chosen in parts.items() for item in chosen]
        (folder / f"smollm2_{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    write_items(load_items(), ITEMS)


if __name__ == "__main__":
    main()

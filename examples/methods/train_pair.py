"""Train two models of one architecture and the same skills from different initial weights, into models/{first,second}:
`python examples/methods/train_pair.py`.

Neither is a fine-tune of the other and they have no base: sources that only a merge with an alignment can take. Takes a
minute on one CPU thread.
"""

import argparse
import random
import time
from pathlib import Path

import torch
import toy_folder  # noqa: F401
from character_tokenizer import BOS, CHARACTERS, EOS, PAD, SPECIAL_TOKENS, build_tokenizer
from skills import SKILLS
from train import MAX_LENGTH, Course, Share, read_evaluated_prompts, save, train
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

MODELS_FOLDER = Path(__file__).parent / "models"
SEEDS = {"first": 1, "second": 2}
WIDTH = 64
LEARNT = ("shift", "swap")
COURSE = Course(
    steps=600,
    learning_rate=3e-3,
    warmup=30,
    shares={skill.name: Share(weight=float(skill.name in LEARNT), all_letters=1.0) for skill in SKILLS},
)


def build_model(seed: int) -> LlamaForCausalLM:
    """Two layers of the toy architecture, with initial weights of the seed."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(CHARACTERS),
        hidden_size=WIDTH,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=WIDTH**-0.5, generator=generator)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two models of the same skills from different initial weights.")
    parser.add_argument("--out", type=Path, default=MODELS_FOLDER, help="folder to write the models to")
    models_folder: Path = parser.parse_args().out

    disable_progress_bar()
    torch.set_num_threads(1)  # the order of floating-point sums depends on the number of threads
    torch.use_deterministic_algorithms(True)
    evaluated = read_evaluated_prompts()
    tokenizer = build_tokenizer(MAX_LENGTH)
    for name, seed in SEEDS.items():
        started = time.perf_counter()
        model = build_model(seed)
        loss = train(model, tokenizer, COURSE, random.Random(f"training of {name}"), evaluated)
        save(model, tokenizer, models_folder / name)
        print(f"{name:8} {COURSE.steps} steps  loss {loss:.3f}  {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()

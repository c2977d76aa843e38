"""Train tiny models with modality experts into models/modality-experts:
`python examples/methods/train_modality_experts.py`.

Three files: `seed`, a shared tower after its first steps; `shared`, whose experts all began as that tower; `unshared`,
whose experts began with initial weights of their own. Takes a minute on one CPU thread.
"""

import argparse
import time
from pathlib import Path

import digits
import torch
from modality_model import ModalityModel, correct, train, with_experts
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "models" / "modality-experts"
SEED_STEPS = 300
EXPERT_STEPS = 150


def train_models(seed: int, seed_steps: int = SEED_STEPS, expert_steps: int = EXPERT_STEPS) -> dict[str, ModalityModel]:
    """The seed, experts that began as it, and experts that began apart and were trained as long altogether.

    Args:
        seed: of all initial weights and draws.
        seed_steps: of the shared tower before the experts part; with 0 they only begin at the same place.
    """
    images, _ = digits.load()
    tower = ModalityModel(shared=True, seed=seed)
    train(tower, images, steps=seed_steps, seed=seed)
    shared = with_experts(tower)
    train(shared, images, steps=expert_steps, seed=seed + 1000)
    unshared = ModalityModel(shared=False, seed=seed)
    train(unshared, images, steps=seed_steps + expert_steps, seed=seed)
    return {"seed": tower, "shared": shared, "unshared": unshared}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train tiny models with modality experts.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write the models to")
    folder: Path = parser.parse_args().out

    torch.set_num_threads(1)  # the order of floating-point sums depends on the number of threads
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    _, test = digits.load()
    for name, model in train_models(seed=0).items():
        tensors = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in model.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        accuracies = [round(float(each), 3) for each in correct(model, test).double().mean(1)]
        print(f"{name:9} image, text, match: {accuracies}  {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()

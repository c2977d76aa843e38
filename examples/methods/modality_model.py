"""A transformer with modality experts: vision, language and, in the last block, cross-modal copies of every module.

Built like the model of arXiv 2304.14933: below, images pass the vision experts and texts the language experts; in the
last block a pair of both passes the cross-modal experts together. The tasks are the digit of an image, the digit of a
misspelt name, and whether an image and a name belong together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from digits import LETTERS, NAME_LENGTH, NAMES, Digits, misspelt
from torch import Tensor, nn

EXPERTS = ("v", "l", "vl")
PATTERNS = tuple(f"blocks.*.{module}.{{expert}}.*" for module in ("norm1", "attn", "norm2", "mlp"))
TASKS = ("image", "text", "match")
WIDTH = 32
HEADS = 4
BLOCKS = 3
ROWS = 8


class Attention(nn.Module):
    """Self-attention of [N, L, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        queries, keys, values = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(hidden).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """One hidden layer of twice the width."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


class Block(nn.Module):
    """A transformer block in which every module exists once for each expert, or once for all of them.

    Args:
        experts: their names; none: one shared set.
    """

    def __init__(self, experts: tuple[str, ...]) -> None:
        super().__init__()
        self.norm1 = _copies(lambda: nn.LayerNorm(WIDTH), experts)
        self.attn = _copies(Attention, experts)
        self.norm2 = _copies(lambda: nn.LayerNorm(WIDTH), experts)
        self.mlp = _copies(Mlp, experts)

    def forward(self, hidden: Tensor, expert: str) -> Tensor:
        norm1, attn, norm2, mlp = (_of(each, expert) for each in (self.norm1, self.attn, self.norm2, self.mlp))
        hidden = hidden + attn(norm1(hidden))
        return hidden + mlp(norm2(hidden))


class ModalityModel(nn.Module):
    """The model with experts, or with one shared tower.

    Args:
        shared: one set of modules for images, texts and pairs: the form that merged experts have.
        seed: of the initial weights; each expert has its own.
    """

    def __init__(self, *, shared: bool, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.patches = nn.Linear(ROWS, WIDTH)
            self.letters = nn.Embedding(LETTERS + 1, WIDTH)
            self.image_positions = nn.Parameter(0.1 * torch.randn(ROWS, WIDTH))
            self.text_positions = nn.Parameter(0.1 * torch.randn(NAME_LENGTH, WIDTH))
            experts = [() if shared else EXPERTS[:2] for _ in range(BLOCKS - 1)] + [() if shared else EXPERTS]
            self.blocks = nn.ModuleList(Block(each) for each in experts)
            self.heads = nn.ModuleDict({"v": nn.Linear(WIDTH, len(NAMES)), "l": nn.Linear(WIDTH, len(NAMES))})
            self.heads["vl"] = nn.Linear(WIDTH, 2)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the image's digit, of the text's digit and of both belonging together; images and texts are one to
        one: [N, 64] and [N, NAME_LENGTH]."""
        image = self.patches(images.unflatten(1, (ROWS, ROWS))) + self.image_positions
        text = self.letters(texts) + self.text_positions
        for block in self.blocks[:-1]:
            image, text = block(image, "v"), block(text, "l")
        last = self.blocks[-1]
        pair = last(torch.cat([image, text], dim=1), "vl")
        found = {"v": last(image, "v"), "l": last(text, "l"), "vl": pair}
        image_logits, text_logits, match = (self.heads[expert](found[expert].mean(1)) for expert in EXPERTS)
        return image_logits, text_logits, match


def batch_of(digits: Digits, generator: torch.Generator) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Inputs of the model and the answers of the tasks: half of the texts are the name of the image's digit."""
    other = torch.randint(len(NAMES), digits.labels.shape, generator=generator)
    named = torch.where(torch.rand(len(digits), generator=generator) < 0.5, digits.labels, other)
    inputs = {"images": digits.images, "texts": misspelt(named, generator)}
    return inputs, (digits.labels, named, (named == digits.labels).long())


def train(model: ModalityModel, digits: Digits, *, steps: int, seed: int, learning_rate: float = 2e-3) -> None:
    """Train the model in place on the three tasks together."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        inputs, answers = batch_of(digits.draw(128, generator), generator)
        losses = [F.cross_entropy(*pair) for pair in zip(model(**inputs), answers, strict=True)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def correct(model: ModalityModel, digits: Digits) -> Tensor:
    """Whether each answer is right, [tasks, N]; always with the same misspelt names."""
    inputs, answers = batch_of(digits, torch.Generator().manual_seed(99))
    return torch.stack([found.argmax(1) == right for found, right in zip(model(**inputs), answers, strict=True)])


def with_experts(seed: ModalityModel) -> ModalityModel:
    """The model whose experts all begin as the modules of a shared tower."""
    model = ModalityModel(shared=False, seed=0)
    shared = seed.state_dict()
    model.load_state_dict({name: shared[_shared_name(name)] for name in model.state_dict()})
    return model


def _shared_name(name: str) -> str:
    segments = name.split(".")
    return ".".join(segments[:3] + segments[4:]) if segments[0] == "blocks" else name


def _copies(make: Callable[[], nn.Module], experts: tuple[str, ...]) -> nn.Module:
    return nn.ModuleDict({expert: make() for expert in experts}) if experts else make()


def _of(module: nn.Module, expert: str) -> nn.Module:
    return module[expert] if isinstance(module, nn.ModuleDict) else module

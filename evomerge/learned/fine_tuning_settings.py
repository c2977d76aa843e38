"""The settings of the trainer `fine-tune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from evomerge.documents import Frozen, Positive
from evomerge.learned.learned_settings import LearnedSettings

AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FineTuneSettings(Frozen):
    """Settings of a training of all weights of a merge on right answers.

    Attributes:
        steps: the most steps. By default as many texts are read with gradients as the baseline `learned` may read.
        batch_size: texts of each source in a step; of a source with fewer texts to train on, all of them.
        learning_rate: of AdamW, constant over all steps.
        weight_decay: decoupled.
        clip: largest global norm of the gradient.
        stop_share: share of each source's texts that are not trained on: the weights with the least loss on them are
            the result, the initial ones among them. 0: none, the last weights are the result.
        stop_every: steps between measurements on these texts.
        patience: measurements in a row without a new least loss, after which the training ends.
        task_weights: source -> weight of its loss; 1 for a source without an entry. Filled in from the objective.
        max_length: longer texts lose their beginning.
        checkpoint_every: steps between checkpoints, each of which is as large as four models in float32.
        measured_items: texts of each source on which the loss before and after is measured where none are kept for
            stopping.
        max_tokens: padded tokens of one forward pass.
    """

    steps: Positive = 200
    batch_size: Positive = 8
    learning_rate: AboveZero = 1e-4
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    clip: AboveZero = 1.0
    stop_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    stop_every: Positive = 5
    patience: Positive = 6
    task_weights: Mapping[str, AboveZero] = {}
    max_length: Annotated[int, Field(gt=1)] = 2048
    checkpoint_every: Positive = 50
    measured_items: Positive = 128
    max_tokens: Positive = 8192

    @property
    def learning(self) -> LearnedSettings:
        """The settings under which `learned` reads the same texts, with the same loss."""
        shared = LearnedSettings.model_fields.keys() - {"learning_rate"}
        return LearnedSettings(**{name: value for name, value in self if name in shared})

"""The settings of DAM, with the published values as defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from evomerge.documents import Frozen, Positive

Weight = Annotated[float, Field(ge=0)]
TrainableKind = Literal["linear", "bias", "norm", "embedding"]


class LossWeights(Frozen):
    """Factor of each loss; 0 switches it off.

    Attributes:
        kl: KL divergence from each source's predictions on its own texts.
        mse: squared differences of all logits, in place of `kl`; published with 1.
        entropy: of the predictions; published with 0.1.
        similarity: cosines between the coefficients of different sources.
        overlap: coefficients of different sources that are large at the same places; published with 1e-5.
        weighted_overlap: the same, weighed by the angle of the task vectors: parallel and orthogonal columns do not
            count; published with 1e-5.
        l1_l2: L1 and L2 norm of the coefficients; published with 1e-6.
    """

    kl: Weight = 1.0
    mse: Weight = 0.0
    entropy: Weight = 0.0
    similarity: Weight = 0.01
    overlap: Weight = 0.0
    weighted_overlap: Weight = 0.0
    l1_l2: Weight = 0.0


class DamSettings(Frozen):
    """Settings of a DAM training (arXiv 2410.08371; defaults as in the authors' code).

    Attributes:
        steps: number of steps; without it as many as `epochs` have.
        epochs: passes over the shortest calibration set; 1 where `steps` are not given either.
        batch_size: texts of each source in a step.
        learning_rate: constant over all steps.
        optimizer: "mofo" (Adam that moves only the entries with the largest momentum) or "adamw".
        alpha: share of the entries that MoFO moves, per source and tensor.
        weight_decay: decoupled; without it 0.01 for mofo, 0 for adamw.
        clip: largest global norm of the gradient.
        temperature: of teacher and student in the KL divergence and the entropy.
        losses: weights of the losses.
        trainable: what has a coefficient per column or element (linear, embedding, norm) or per source (bias) that is
            trained; the rest keeps its initial weight. An embedding that is also the head is linear.
        phi: function that a coefficient goes through before it weighs; relu has no slope at 0, where no source can
            begin.
        kl_norm: divide the KL divergence by the tokens of the batch and by its size, or by the tokens alone.
        token_mask: the positions that count: all that are no padding, or those that predict a token of the answer.
        teacher: run each source on its texts at every step ("live"), or keep the `top_k` largest probabilities of each
            position and the sum of the others ("cached"), on the CPU and as long as a step still reads them.
        top_k: probabilities of each position that a cached teacher keeps.
        max_length: longer texts lose their beginning.
        include_base: the base is one more source, the last.
        start: "recipe" begins with the weights of the initial recipe; "uniform" with 1/n for each source, the base
            among them under `include_base`.
        checkpoint_every: steps between checkpoints.
        measured_items: texts of each source on which the loss before and after is measured.
        max_tokens: padded tokens of one forward pass; sources are run apart where they are more together.
    """

    steps: Positive | None = None
    epochs: Positive | None = None
    batch_size: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    optimizer: Literal["mofo", "adamw"] = "mofo"
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.3
    weight_decay: Weight | None = None
    clip: Annotated[float, Field(gt=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 2.0
    losses: LossWeights = LossWeights()
    trainable: tuple[TrainableKind, ...] = ("linear", "bias")
    phi: Literal["identity", "tanh", "sigmoid", "relu"] = "identity"
    kl_norm: Literal["tokens_and_batch", "tokens"] = "tokens_and_batch"
    token_mask: Literal["all", "answer"] = "all"
    teacher: Literal["live", "cached"] = "live"
    top_k: Positive = 128
    max_length: Annotated[int, Field(gt=1)] = 2048
    include_base: bool = False
    start: Literal["recipe", "uniform"] = "recipe"
    checkpoint_every: Positive = 50
    measured_items: Positive = 128
    max_tokens: Positive = 8192

    @model_validator(mode="after")
    def _consistent(self) -> DamSettings:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.losses.kl == self.losses.mse == 0:
            raise ValueError("a merge learns from its sources by losses.kl or losses.mse; give one of them a weight")
        if self.losses.mse and self.teacher == "cached":
            raise ValueError(
                "losses.mse compares all logits, and a cached teacher has kept the largest; use teacher: live"
            )
        if not self.trainable:
            raise ValueError("trainable names nothing; give at least one of linear, bias, norm, embedding")
        return self

    @property
    def batches(self) -> int:
        """Batches of each source in a step."""
        return 1

    @property
    def measurements(self) -> int:
        """Passes over the measured texts: by source and merge, before and after."""
        return 4

    @property
    def decay(self) -> float:
        """The weight decay, with the default of the optimizer filled in."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.01 if self.optimizer == "mofo" else 0.0

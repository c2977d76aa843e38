"""Weights that were trained as they are, and are stored in a file."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, TensorParameter

STORED = MethodInfo(
    name="stored",
    title="Weights from a file, as a training of all weights has left them",
    paper="none: fine-tuning",
    formula="W = the stored weights; of the source, shape and place alone",
    cost="one pass over the file, which is as large as the model, and before it a training of all weights",
    unsuited="a merge: it is the result of a training, as large as the model",
    merge="evomerge.elementwise.stored:merge_stored",
    elementwise=True,
    sources=1,
    tensors=(TensorParameter("weights", "for the one source {tensor name: tensor}, of the shape of the weight"),),
)

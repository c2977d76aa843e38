"""The shared parts of trainings: texts in batches, a live merge with its gradients, an optimiser, exact resumption.

Holds: `TrainingInputs`, batches, the student, trainable coefficients, gradients of them, MoFO and Adam, checkpoints.
Does not hold: losses and courses of trainings (`training/`).
Start reading at: `student.py`, then `batches.py`.
"""

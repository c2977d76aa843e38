"""State that a live model keeps between forward passes, beside its weights: put back so that no pass sees another's.

Rotary embeddings that grow with the longest sequence seen so far keep their frequencies in buffers and attributes of
the module; a sequence scored later would be rotated by them.

Covered: attributes of modules that a forward pass binds anew, and buffers that no checkpoint holds. Not covered: lists
and dictionaries that a module changes in place; `model_check` refuses a model that has such a memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class _Buffer:
    """A tensor that is computed, not stored, as it was before the first pass.

    `version` is torch's count of in-place writes, by which a change is noticed without reading the tensor.
    """

    tensor: torch.Tensor
    content: torch.Tensor
    version: int

    def restore(self) -> None:
        if self.tensor._version != self.version:
            self.tensor.copy_(self.content)
            self.version = self.tensor._version


class LiveState:
    """The state of a model between forward passes, as it was when this was made.

    Weights, stored buffers and inputs are not part of it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._modules = [_ModuleState(module) for module in model.modules()]
        self._changing: list[_ModuleState] = []

    def restore(self) -> None:
        """Put back everything, and remember the modules that a pass has changed."""
        changed = [module for module in self._modules if module.restore()]
        self._changing += [module for module in changed if module not in self._changing]

    def reset(self) -> None:
        """Put back the modules that have been seen to change: what `restore` does, at next to no cost."""
        for module in self._changing:
            module.restore()


class _ModuleState:
    """Attributes and computed buffers of one module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._attributes = dict(vars(module))
        names = sorted(module._non_persistent_buffers_set)
        tensors = {name: tensor for name in names if (tensor := module._buffers.get(name)) is not None}
        tensors |= {name: value for name, value in self._attributes.items() if isinstance(value, torch.Tensor)}
        self._buffers = {name: _Buffer(each, each.detach().clone(), each._version) for name, each in tensors.items()}

    def restore(self) -> bool:
        """Put the module back. Returns whether anything had changed."""
        changed = self._restore_attributes()
        for name, buffer in self._buffers.items():
            registered = self._module._buffers
            if name in registered and registered[name] is not buffer.tensor:
                registered[name] = buffer.tensor
                changed = True
            changed = changed or buffer.tensor._version != buffer.version
            with torch.no_grad():
                buffer.restore()
        return changed

    def _restore_attributes(self) -> bool:
        now, before = vars(self._module), self._attributes
        if len(now) == len(before) and all(now.get(name) is value for name, value in before.items()):
            return False
        now.clear()
        now.update(before)
        return True

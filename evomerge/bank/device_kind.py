"""The device of a bank: chosen, and its kind, by which a merge has the same bits."""

from __future__ import annotations

import platform

import torch

from evomerge.errors import InvalidInput


def default_device() -> str:
    """The accelerator where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_device(given: str | None) -> torch.device:
    """The device that a command was given; None: the accelerator where there is one.

    Raises:
        InvalidInput: there is no such device on this machine.
    """
    if given == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device cuda: torch finds no GPU on this machine; give cpu, or leave it out")
    return torch.device(given or default_device())


def device_kind(device: torch.device, *, streams: bool = False) -> str:
    """A device with its model, such as `cuda NVIDIA H200` or `cpu x86_64 AVX512`.

    Another GPU, or a processor with other vector instructions, may add in another order and round the last bit of a sum
    differently.

    Args:
        streams: whether sources are streamed to the device from main memory. Some sums are then made by the processor,
            so that both decide: `cuda NVIDIA H200, streamed from cpu x86_64 AVX512`.
    """
    if device.type != "cuda":
        return _processor(device.type)
    name = f"cuda {torch.cuda.get_device_name(device)}"
    return f"{name}, streamed from {_processor('cpu')}" if streams else name


def _processor(device: str) -> str:
    return f"{device} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"

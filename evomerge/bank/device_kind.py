"""The kind of a device: where a merge has the same bits."""

from __future__ import annotations

import platform

import torch


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

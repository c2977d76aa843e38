"""The kind of a device: where a merge has the same bits."""

from __future__ import annotations

import platform

import torch


def device_kind(device: torch.device) -> str:
    """A device with its model, such as `cuda NVIDIA H200` or `cpu x86_64 AVX512`.

    Another GPU, or a processor with other vector instructions, may add in another order and round the last bit of a sum
    differently.
    """
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"

"""Time and memory that a job takes of this process; on a GPU, the memory of the GPU."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from evomerge.jobs import Cost

if TYPE_CHECKING:
    import torch

__all__ = ["JobMeter"]

_STATUS: Final = Path("/proc/self/status")
_PEAK_RESET: Final = Path("/proc/self/clear_refs")


class JobMeter:
    """Measures one job. It begins with a peak of its own, so that a job is not charged for what another one took.

    Args:
        device: of the sources, where they are open already.
        gpus: that the worker has, a share of one too.
    """

    def __init__(self, device: torch.device | None, gpus: float) -> None:
        self._gpus = gpus
        self._began = time.perf_counter()
        if _is_cuda(device):
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):  # not on every system; the peak is then that of the process
            _PEAK_RESET.write_text("5")

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.perf_counter() - self._began

    def cost(self, known: Cost, seconds: float, device: torch.device | None) -> Cost:
        """Complete a cost by time and memory.

        Args:
            known: tokens, items and candidates; seconds where the job has measured its own.
            seconds: of the job with its earlier attempts.
            device: of the sources, where they are open by now.
        """
        seconds = known.seconds or seconds
        if _is_cuda(device):
            import torch

            peak = torch.cuda.max_memory_allocated(device)
            return replace(known, seconds=seconds, gpu_seconds=seconds * self._gpus, peak_bytes=peak)
        return replace(known, seconds=seconds, peak_bytes=_peak_memory())


def _is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


def _peak_memory() -> int:
    """The largest resident memory of this process since its peak was forgotten, in bytes."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Where there is no /proc: since the process began; in KiB, on macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

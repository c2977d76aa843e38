"""See `vllm`."""

from dataclasses import dataclass, field


@dataclass
class IPCTrainerInitInfo:
    rank: int = field(kw_only=True)
    packed: bool = False
    packed_buffer_size_bytes: int = 2**30

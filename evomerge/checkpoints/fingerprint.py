"""The fingerprint of a model: a digest over what it computes with, wherever and in however many files it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

BOOKKEEPING = ("_name_or_path", "transformers_version")  # say where a model came from, not what it is


def fingerprint(config: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """SHA-256 over the canonical config and the tensors' digests, sorted by name."""
    kept = {key: value for key, value in config.items() if key not in BOOKKEEPING}
    content = json.dumps([kept, dict(digests)], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()

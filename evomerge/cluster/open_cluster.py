"""Whether a Ray cluster takes jobs from anyone: then whoever reaches its dashboard can run code on all its machines."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Final

SECONDS: Final = 5.0


def answers_anyone(dashboard: str) -> bool | None:
    """Whether the Jobs API at HOST:PORT answers without a token. None where nothing that speaks HTTP is there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{dashboard}/api/jobs/", timeout=SECONDS) as answer:
            return int(answer.status) == 200
    except urllib.error.HTTPError:
        return False
    except OSError:
        return None

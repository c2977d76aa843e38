"""The status of a search in one line."""

from __future__ import annotations

from rich.text import Text

from evomerge.messages import duration, in_percent, plain_score
from evomerge.study.status import Status


def status_line(status: Status) -> Text:
    """done/total · best · cost · rate · time left · workers."""
    parts = [f"{status.finished}/{status.budget} trials"]
    if status.best is not None:
        parts.append(f"best {plain_score(status.best)} (trial {status.best_trial})")
    if status.dropped:
        parts.append(f"{status.dropped} dropped early")
    if status.failed:
        parts.append(f"{status.failed} failed")
    if status.forwards is not None:
        parts.append(f"{status.forwards:,.0f} forwards")
    if status.trials_per_hour is not None:
        rate = status.trials_per_hour
        parts.append(f"{rate:.0f} trials/h" if rate >= 9.95 else f"{rate:.2g} trials/h")
    if status.seconds_left:
        parts.append(f"{duration(status.seconds_left)} left")
    if status.bar is not None and status.chance is not None and status.chance < 1:
        hope = "hardly passes" if status.is_futile else "may pass"
        parts.append(f"{hope} {status.bar[0]} ({in_percent(status.chance)})")
    workers = ", ".join(f"{count} {state}" for state, count in status.workers.items())
    if workers:
        parts.append(f"workers: {workers}" + (f", {status.restarts} restarted" if status.restarts else ""))
    if status.state == "paused":
        parts.append("paused: `evomerge resume` goes on")
    if status.ended:
        parts.append(status.ended)
    return Text(" · ".join(parts), style="bold" if status.state == "running" else "")

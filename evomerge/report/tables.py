"""Tables of a leaderboard for a terminal: objective, tasks, Pareto front, cost, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.jobs import Cost
from evomerge.leaderboard import SHOWN, Line, PartScore, left_out_of, meets_constraints
from evomerge.messages import LESS_IS_BETTER, duration, in_bytes, in_lines, in_thousands, listed, p_value, task_label
from evomerge.plain_table import plain_table
from evomerge.sanity.probe_records import winner_warning
from evomerge.study.command_line import command_line
from evomerge.study.stored_search import StoredSearch
from evomerge.verdict import Verdict, read_winner
from evomerge.verdict.records import read_verdict
from evomerge.verdict.sentences import amount
from evomerge.verdict.verdict import Unit

FRONT_SHOWN = 20
_SCORE = 5  # characters of a score
_TASK = 10  # characters of the column of a task
_BESIDE = 56  # characters of a terminal of 80 columns beside the names of rows


def leaderboard_tables(stored: StoredSearch, lines: Sequence[Line], further: Sequence[RenderableType] = ()) -> Group:
    """The leaderboard for a terminal: objective, tasks, cost, further tables, and the verdict."""
    verdict = read_verdict(stored.study)
    shown = _not_only_of_the_front(lines)
    tables: list[RenderableType] = [_summary(stored, shown), *_detail(shown), *_front(lines), _costs(shown), *further]
    tables += [Text(f"{line.label} leaves out {line.without}.\n") for line in shown if line.without]
    tables += [Text(_models(line) + "\n") for line in shown if line.models]
    tables += [Text(_origin(line) + "\n") for line in shown if line.kind == "best" and line.corner is not None]
    for name, reason in left_out_of(stored, lines).items():
        tables.append(Text(f"{name} is left out: {reason}\n", style="yellow"))
    winner = read_winner(stored.study.user_attrs)
    if winner is not None and not meets_constraints(stored.study, winner.trial):
        tables.append(Text("No trial meets all constraints; the best one misses some, too.\n", style="yellow"))
    warning = winner_warning(stored.study)
    if warning and (verdict is None or verdict.warning != warning):
        tables.append(Text(f"{warning}\n", style="bold yellow"))
    if verdict is not None:
        tables += [_comparisons(verdict), Text(verdict.sentence, style="bold"), Text()]
    if verdict is not None and winner is not None and winner.trial != verdict.trial:
        renewal = command_line(stored.spec, "run")
        tables.append(Text(f"This verdict is on an earlier winner; `{renewal}` renews it.\n", style="yellow"))
    return Group(*tables)


_STYLES = {"best": "bold green", "trial": "dim", "mean": "dim", "source": "", "baseline": ""}


def _summary(stored: StoredSearch, lines: Sequence[Line]) -> Table:
    paths = any(line.layers for line in lines)  # else all have as many layers as the sources
    columns = ("search", "±", "held-out", "±", "forwards", "s each")
    table = _table(f"{stored.study.study_name}: objective", (*columns, "layers") if paths else columns)
    for line in lines:
        seconds = f"{line.seconds:.1f}" if line.seconds else "–"
        depth = [str(line.layers or "–")] if paths else []
        forwards = "–" if line.forwards is None else f"{line.forwards:,.0f}"
        cells = (*_cells(line.search), *_cells(line.held_out), forwards, seconds, *depth)
        table.add_row(_name(line), *cells, style=_STYLES[line.kind])
    return table


def _models(line: Line) -> str:
    """The models of a row that is several, with the tasks that each is given."""
    stated = line.models["stated"]
    tasks = (
        f"{task} to {model} ({'as the spec says' if task in stated else 'best on its search items'})"
        for task, model in line.models["tasks"].items()
    )
    return f"{line.label} is several models ({len(line.models['recipes'])}), not one: it gives {listed(list(tasks))}."


def _origin(line: Line) -> str:
    return f"{line.label} {'is' if line.is_corner else 'grew from'} {line.corner}{' itself' if line.is_corner else ''}."


def _not_only_of_the_front(lines: Sequence[Line]) -> list[Line]:
    """Without trials that are listed for the front alone: they may be hundreds, and the front has its own table."""
    unproven = [line for line in lines if line.kind == "trial" and line.front and not line.held_out]
    hidden = {line.trial for line in unproven[0 if any(line.held_out for line in lines) else SHOWN :]}
    return [line for line in lines if line.trial not in hidden]


def _front(lines: Sequence[Line]) -> list[Table]:
    """The Pareto front, on the items that it was found on; nothing with one objective.

    First the points that dominate rarely dominated baselines, so that the table has a point for each of them.
    """
    found = [line for line in lines if line.front]
    if not found:
        return []
    share = {name: 1 / count for name, count in Counter(name for line in found for name in line.betters).items()}
    front = sorted(found, key=lambda line: (-sum(share[name] for name in line.betters), line.trial or 0))
    names = {line.label: line.name for line in lines}
    tasks = list(front[0].search.tasks) if front[0].search else []
    labels = _labels(front[0].search)
    title = "Pareto front, on the search items: none of these is beaten on every task"
    table = _table(_with_key(title, labels.values()), ())
    _add_tasks(table, list(labels.values()))
    table.add_column("as good on every task as", overflow="fold")
    for line in front[:FRONT_SHOWN]:
        if line.search:
            scores = (_number(line.search.tasks[task]["value"]) for task in tasks)
            table.add_row(
                line.label, *scores, ", ".join(names[label] for label in line.betters) or "–", style=_STYLES[line.kind]
            )
    if len(front) > FRONT_SHOWN:
        table.caption = f"and {len(front) - FRONT_SHOWN} more; --json has all of them"
    return [table]


def _detail(lines: Sequence[Line]) -> list[Table]:
    """Scores by task, in as many tables as a terminal of 80 columns needs."""
    held_out = any(line.held_out for line in lines)
    parts = [(line, part) for line in lines if (part := line.held_out if held_out else line.search) is not None]
    named = _labels(parts[0][1] if parts else None)
    groups = _side_by_side(named)
    tables = []
    for place, group in enumerate(groups, start=1):
        title = f"every task, on the {'held-out' if held_out else 'search'} items"
        numbered = f"{title} ({place} of {len(groups)})" if len(groups) > 1 else title
        table = _table(_with_key(numbered, [named[task] for task in group]), ())
        _add_tasks(table, [named[task] for task in group])
        for line, part in parts:
            scores = (_number(part.tasks[task]["value"]) for task in group)
            table.add_row(_name(line), *scores, style=_STYLES[line.kind])
        tables.append(table)
    return tables


def _add_tasks(table: Table, names: Sequence[str]) -> None:
    """A column of scores for each task, whose name continues below where it is long."""
    for name in names:
        table.add_column(in_lines(name, _TASK), justify="right", overflow="fold", min_width=_SCORE, max_width=_TASK)


def _side_by_side(named: Mapping[str, str]) -> list[list[str]]:
    """The tasks in groups that fit beside the names of the rows."""
    groups: list[list[str]] = [[]]
    room = _BESIDE
    for task, name in named.items():
        width = min(max(len(name), _SCORE), _TASK) + 2
        if width > room and groups[-1]:
            groups.append([])
            room = _BESIDE
        groups[-1].append(task)
        room -= width
    return groups


def _costs(lines: Sequence[Line]) -> Table:
    columns = ("merges", "tokens", "trained", "time", "GPU", "memory")
    table = _table("what it took to choose it", columns)
    for line in lines:
        if line.cost is not None:
            table.add_row(_name(line), *_cost_cells(line.cost), style=_STYLES[line.kind])
    return table


def _cost_cells(cost: Cost) -> tuple[str, ...]:
    nothing = cost == Cost()
    return (
        f"{cost.candidates:,}",
        in_thousands(cost.forward_tokens),
        in_thousands(cost.gradient_tokens),
        "–" if nothing else duration(cost.seconds),
        duration(cost.gpu_seconds) if cost.gpu_seconds else "–",
        in_bytes(cost.peak_bytes) if cost.peak_bytes else "–",
    )


def _comparisons(verdict: Verdict) -> Table:
    table = _table(
        f"{verdict.winner} against the others, on {verdict.items:,} held-out items",
        ("difference", "95 % interval", "p (corrected)", ""),
    )
    for each in verdict.comparisons:
        ends = [_points(end, verdict.unit) for end in (each.low, each.high) if end is not None]
        interval = " … ".join(ends) or "–"
        answer = "is beaten" if each.worse else each.outcome
        cells = (_points(each.difference, verdict.unit), interval, p_value(each.adjusted_p), answer)
        table.add_row(each.name, *cells)
    return table


def _points(difference: float, unit: Unit) -> str:
    """A difference in a column: without the name of the unit, and with the minus of the other columns."""
    return amount(difference, unit, signed=True).removesuffix(" points").replace("−", "-")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = plain_table(title)
    table.add_column("model", overflow="fold")  # where a terminal is narrow, names are wrapped, and numbers never cut
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _labels(part: PartScore | None) -> dict[str, str]:
    """The tasks with their short names, marked where less is better."""
    scores = {} if part is None else part.tasks
    short = dict(zip(scores, _short(list(scores)), strict=True))
    return {task: task_label(short[task], score["higher_is_better"]) for task, score in scores.items()}


def _with_key(title: str, labels: Iterable[str]) -> str:
    """A title with the meaning of the mark, where a label has it."""
    return f"{title}; {LESS_IS_BETTER}" if any(label.endswith("↓") for label in labels) else title


def _short(tasks: Sequence[str]) -> list[str]:
    """Task names without a first word that they all share."""
    first = {task.partition("_")[0] for task in tasks}
    shared = len(tasks) > 1 and len(first) == 1 and all("_" in task for task in tasks)
    return [task.partition("_")[2] if shared else task for task in tasks]


def _name(line: Line) -> Text:
    return Text(f"best found ({line.label})" if line.kind == "best" else line.name)


def _cells(part: PartScore | None) -> tuple[str, str]:
    return ("–", "") if part is None else (_number(part.value), _number(part.stderr))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

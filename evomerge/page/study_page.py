"""The page of a study: one HTML file that needs no network, and its pictures as files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evomerge.charts.search_course import SearchCourse, search_course
from evomerge.page.page_content import PageContent, page_content
from evomerge.page.pictures import check_installed, write_pictures
from evomerge.page.study_comparison import StudyComparison, obstacle, study_comparison
from evomerge.study.stored_search import StoredSearch
from evomerge.whole_files import write_whole

SCHEMA = 1
_FOLDER = Path(__file__).parent


def write_report(
    stored: StoredSearch, out: Path | None, *, compare: StoredSearch | None = None, png: Path | None = None
) -> dict[str, Any]:
    """Write the page of a study, or its pictures, or both.

    Args:
        out: the HTML file; an earlier one is replaced.
        compare: a second study, shown beside it.
        png: folder of the pictures as PNG files.

    Returns:
        The document of `evomerge report --json`.

    Raises:
        InvalidInput: matplotlib or Jinja is not installed.
    """
    check_installed()
    content = page_content(stored, *_other_course(stored, compare))
    comparison = None
    if compare is not None:
        comparison = study_comparison(stored, compare, content, page_content(compare))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, rendered(content, comparison).encode())
    pictures = [] if png is None else write_pictures(list(content.pictures.values()), png)
    return {
        "schema": SCHEMA,
        "study": content.name,
        "headline": content.headline.text,
        "belief": content.headline.belief,
        "page": None if out is None else str(out.resolve()),
        "pictures": [str(path.resolve()) for path in pictures],
    }


def _other_course(stored: StoredSearch, compare: StoredSearch | None) -> tuple[Mapping[str, SearchCourse], str]:
    """The course of the second study by its name, or none, and a sentence that says why."""
    if compare is None:
        return {}, ""
    name = f"{compare.spec.name} (the other)" if compare.spec.name == stored.spec.name else compare.spec.name
    course, reason = search_course(compare), obstacle(stored, compare)
    if not reason and course.unit != search_course(stored).unit:
        reason = "What the two spent is counted in different units."
    return ({}, f"{name} has no line here. {reason}") if reason else ({name: course}, "")


def rendered(content: PageContent, comparison: StudyComparison | None = None) -> str:
    """The page as HTML. All texts are escaped; the pictures are our own."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    script = (_FOLDER / "table_sorting.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html.j2").render(
        content=content,
        comparison=comparison,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=version("evomerge"),
    )

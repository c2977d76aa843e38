"""Drawings of matplotlib for a page and for files, in both colour schemes of a browser.

Colours are names of roles. In SVG each becomes a CSS variable of the page, so that one drawing is light and dark;
in PNG it is the light one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from evomerge.errors import InvalidInput
from evomerge.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Role -> its light colour, which is also the mark that is replaced in SVG: no two may be the same.
COLOURS: Final = {
    "ink": "#1f2328",
    "muted": "#6e7681",
    "grid": "#d9dee4",
    "winner": "#1a6fd4",
    "other": "#8b949e",
    "second": "#c2571a",
    "positive": "#1b6fd3",
    "negative": "#c2561a",
    "paper": "#fffffe",
}
_WIDTH: Final = 4.4  # inches; at 72 to the inch somewhat less than a phone's page is wide
_STYLE: Final = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "evomerge",
    "text.parse_math": False,
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "legend.frameon": False,
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as a page shows it.

    Attributes:
        name: of its file, and of its place in the page.
        title, text: what it shows, in a few words and in a sentence.
        svg: the drawing, to be put into HTML as it is.
        png: the same as bytes of a PNG file.
    """

    name: str
    title: str
    text: str
    svg: str
    png: bytes


def check_installed() -> None:
    """Refuse to draw without matplotlib and Jinja.

    Raises:
        InvalidInput: one of them is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InvalidInput(
            f"the report needs {error.name}, which is not installed: pip install 'evomerge[report]'"
        ) from error


def drawn(name: str, title: str, text: str, height: float, draw: Callable[[Axes], None]) -> Picture:
    """A picture of one plot, `height` inches high."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        return Picture(name=name, title=title, text=text, svg=_svg(figure, name), png=_png(figure))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure, name: str) -> str:
    """The SVG element alone, its ids made unique in the page, its colours the page's."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" xmlns="http://www.w3.org/2000/svg">', text
    )
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:)?href="#([^"]+)"', rf'href="#{name}-\2"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    return text


def write_pictures(pictures: Sequence[Picture], folder: Path) -> list[Path]:
    """The pictures as PNG files of a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{picture.name}.png" for picture in pictures]
    for path, picture in zip(paths, pictures, strict=True):
        write_whole(path, picture.png)
    return paths

"""The terminal of a command: our own lines reach it, output of libraries and their processes goes to a log."""

from __future__ import annotations

import codecs
import errno
import io
import json
import logging
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from evomerge.report.output_log import OutputLog

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

# In the place of what a terminal's encoding lacks; each as wide as the original, since tables are laid out before.
_PLAIN = str.maketrans({"–": "-", "—": "-", "…": ".", "·": "|", "±": "~", "×": "x", "→": ">", "“": '"', "”": '"'})


class Terminal:
    """The terminal of a person: results on standard output, everything else on standard error.

    Args:
        out, err: its streams; the process's own ones of the moment without them.
        log: takes over the process's standard streams, with the first command that asks for it.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, log: OutputLog | None = None) -> None:
        self._out = out
        self._err = err
        self._log = log
        self._errors: Console | None = None

    @property
    def console(self) -> Console:
        """The one console of standard error, so that a live line and messages do not overwrite each other."""
        if self._errors is None:
            self._errors = _console(self._err, stderr=True)
        return self._errors

    @property
    def log(self) -> Path | None:
        """The log of what others print, None before it has a name."""
        return self._log.path if self._log is not None else None

    def divert(self) -> None:
        """Leave the terminal to our own lines: all other output of the process goes to the log from now on."""
        if self._log is not None and not self._log.is_open:
            self._log.open()
            logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True)
            ours = _Messages(self)
            ours.setFormatter(logging.Formatter("warning: %(message)s"))
            logging.getLogger("evomerge").addHandler(ours)

    def log_to(self, file: Path) -> None:
        """Write the log to a file, after its content."""
        if self._log is not None:
            self._log.move(file)

    def bound_log(self) -> None:
        """Keep the log small, however long the command runs."""
        if self._log is not None:
            self._log.bound()

    def keep(self, text: str) -> Path:
        """Add a text, such as a traceback, to the log, and keep the log from now on."""
        return (self._log or OutputLog()).keep(text)

    def show(self, renderable: RenderableType) -> None:
        """Print a result. Lines that are too long continue below their own indent."""
        from rich.text import Text

        console = _console(self._out)
        console.print(_hanging(renderable, console) if isinstance(renderable, Text) else renderable, highlight=False)

    def document(self, content: dict[str, Any]) -> None:
        """Print a result as the one JSON document of standard output."""
        out = self._out or sys.stdout
        unicode = (out.encoding or "utf-8").lower().startswith("utf")
        print(json_text(content, indent=2, ensure_ascii=not unicode), file=out, flush=True)

    def write(self, text: str) -> None:
        """Print lines on standard output as they are."""
        print(text, file=self._out or sys.stdout, flush=True)

    def last_words(self, text: str) -> None:
        """Print a line on standard error past all buffers and locks, for a process that ends without any clean-up."""
        descriptor = (self._err or sys.stderr).fileno()
        restored = "\r\x1b[?25h" if os.isatty(descriptor) else ""  # a live line hides the cursor
        with suppress(OSError):
            os.write(descriptor, f"{restored}{text}\n".encode("utf-8", "replace"))

    def tell(self, text: str, style: str = "") -> None:
        """Print a line on standard error."""
        from rich.text import Text

        self.console.print(Text(text, style=style), soft_wrap=True)


def json_text(content: dict[str, Any], *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """JSON that every reader takes: null in the place of numbers that are not finite, which JSON does not have."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def process_terminal() -> Terminal:
    """The terminal of this process, for a command line: to be called once, before anything is printed.

    Python's own streams are replaced by ones that never fail: where a terminal's encoding lacks a character another one
    is printed, and where nobody reads any more (`evomerge leaderboard | head -1`) the rest is dropped.
    """
    codecs.register_error("evomerge", _replace)
    out, err = _stream(sys.stdout, 1), _stream(sys.stderr, 2)
    sys.stdout, sys.stderr = out, err  # the help page and messages about wrong options
    return Terminal(out, err, OutputLog())


class _Messages(logging.Handler):
    """Log records of evomerge itself, on the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.tell(self.format(record))


class _Pipe(io.FileIO):
    """A file descriptor that drops output without a reader, such as a closed pipe or terminal."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return len(memoryview(data).cast("B"))


def _stream(given: TextIO | None, descriptor: int) -> TextIO:
    """A stream of ours to the target of one of Python's, also after that descriptor has been redirected."""
    if given is None:  # it was closed when the process began
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    given.flush()
    pipe = io.BufferedWriter(_Pipe(os.dup(descriptor), "wb"))
    return io.TextIOWrapper(pipe, encoding=given.encoding, errors="evomerge", line_buffering=True)


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: plain characters for those of tables and sentences, question marks for others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return "".join(character if character.isascii() else "?" for character in text), error.end


def _hanging(text: Text, console: Console) -> Text:
    """The text with indented lines wrapped to the console, what follows indented by two more than their beginning."""
    return type(text)("\n").join(
        part for line in text.split("\n", allow_blank=True) for part in _wrapped(line, console)
    )


def _wrapped(line: Text, console: Console) -> list[Text]:
    indent = len(line.plain) - len(line.plain.lstrip(" "))
    if line.cell_len <= console.width or not 0 < indent < console.width // 2:
        return [line]
    parts = list(line[indent:].wrap(console, console.width - indent - 2))
    for place, part in enumerate(parts):
        part.rstrip()
        part.pad_left(indent + 2 * (place > 0))
    return parts


def _console(file: TextIO | None, *, stderr: bool = False) -> Console:
    """A console of the size of its own terminal: rich asks the process's standard streams, which are the log by now."""
    from rich.console import Console, ConsoleDimensions

    class SizedConsole(Console):
        @property
        def size(self) -> ConsoleDimensions:
            if "COLUMNS" not in os.environ:
                with suppress(OSError, ValueError):
                    width, height = os.get_terminal_size(self.file.fileno())
                    if width and height:  # a terminal of unknown size reports 0
                        return ConsoleDimensions(width, height)
            return super().size

        @size.setter
        def size(self, new_size: tuple[int, int]) -> None:
            self._width, self._height = new_size

    return SizedConsole(file=file, stderr=stderr)

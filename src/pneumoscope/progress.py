"""Progress of long tasks on stderr: completed units, speed and time left.

Functions that take long receive a `Progress` and never print. The default is `SILENT`; the command
line passes `TerminalProgress`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Task(Protocol):
    """A running task."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units as done; `note` replaces the text at the end of the line."""


class Progress(Protocol):
    """Receives the progress of long tasks.

    Examples:
        >>> from contextlib import contextmanager
        >>> from pneumoscope.progress import SilentProgress
        >>> class Titles:
        ...     @contextmanager
        ...     def task(self, title, total, unit):
        ...         print(f"{title}: {total} {unit}")
        ...         with SilentProgress().task(title, total, unit) as task:
        ...             yield task
        >>> _ = predictor.predict([image, image], Titles())
        Predicting: 2 images
    """

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        """Start a task of `total` units, each called `unit` (`images`, `epochs`)."""
        yield _SilentTask()  # pragma: no cover - a protocol's body never runs


class _SilentTask:
    def advance(self, count: int = 1, note: str = "") -> None:
        """Do nothing."""


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        """Start a task without display."""
        yield _SilentTask()


SILENT = SilentProgress()


class TerminalProgress:
    """A progress bar on a terminal; in a pipe or log file, one line at the end of each task.

    Examples:
        >>> with TerminalProgress().task("Counting", 2, "numbers") as task:
        ...     for number in range(2):
        ...         task.advance()
    """

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        """Show `title`, a bar, units per second and the time left."""
        if sys.stderr.isatty():
            with _bar(title, total, unit) as task:
                yield task
            return
        started = time.monotonic()
        counter = _Counter()
        yield counter
        seconds = max(time.monotonic() - started, 1e-9)
        rate = counter.done / seconds
        speed = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"  # an epoch may take minutes
        sys.stderr.write(f"{title}: {counter.done} {unit} in {seconds:.1f} s ({speed} {unit}/s)\n")


class _Counter:
    def __init__(self) -> None:
        self.done = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Task]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            return Text(f"{task.speed:.1f} {unit}/s" if task.speed else f"– {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        identifier = bar.add_task(title, total=total, note="")

        class BarTask:
            def advance(self, count: int = 1, note: str = "") -> None:
                bar.update(identifier, advance=count, note=note)

        yield BarTask()

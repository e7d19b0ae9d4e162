"""What a download shows: a bar on a terminal, a line for each quarter of a file elsewhere."""

from __future__ import annotations

import time

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ris.engines.text import one_line
from ris.runtime.hub.transfer import VERIFYING

_SMALL = 10_000_000  # bytes of a file that gets one line, when it is there


class DownloadProgress:
    """A `ris.runtime.hub.download.Report`, for a `with` block; silent without a download."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._start = time.perf_counter()
        self._bar: Progress | None = None
        self._name, self._quarter, self._downloads = "", -1, False

    def __enter__(self) -> DownloadProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
        if kind is KeyboardInterrupt and self._downloads:
            click.echo(
                "What was downloaded is kept in the cache; the same command goes on from there.",
                err=True,
            )

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """So many bytes of a file are here."""
        self._downloads = True
        if self._console.is_terminal:
            self._show(name, done, total)
        else:
            self._say(name, done, total)

    def _show(self, name: str, done: int, total: int | None) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        if name != self._name:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._name = name
            self._task = self._bar.add_task(one_line(name), total=total, completed=done)
        self._bar.update(self._task, completed=done)

    def _say(self, name: str, done: int, total: int | None) -> None:
        if name != self._name:
            self._name, self._quarter = name, -1
        quarter = 0 if not total else int(4 * done / total)
        small = total is not None and total < _SMALL
        if quarter > self._quarter and (done == total or not small):
            self._quarter = quarter
            seconds = time.perf_counter() - self._start
            share = f", {done / total:.0%}" if total else ""
            what = "Verify" if name.endswith(VERIFYING) else "Download"
            said = one_line(name.removesuffix(VERIFYING))
            click.echo(f"[{seconds:6.1f} s] {what}: {said}{share}", err=True)

"""What the commands share: errors in one line, progress, and numbers for people.

Progress is a bar on a terminal and plain lines elsewhere.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ris import __version__
from ris.engines.errors import RisError
from ris.engines.text import one_line, shown
from ris.runtime.bundle import BUILT_IN, located
from ris.runtime.commands.downloading import DownloadProgress
from ris.runtime.hub.address import is_address

T = TypeVar("T")


class _AnyText(click.Command):
    """A command whose output takes any text, whatever the locale and however names are spelled."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command with streams that replace what they cannot encode."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*args, **kwargs)


class RisCommand(_AnyText):
    """A click command that prints an error as one line.

    Exit codes: that of a RisError (2 the user's mistake, 1 ours), 1 for any other error, 130 where
    it was stopped. `--debug` adds the traceback; `--version` is added, too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
        )
        self.params.append(_version_option())

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command, and turns what it raises into a line and an exit code."""
        debug = ctx.params.pop("debug")
        previous = signal.signal(signal.SIGTERM, _stop)
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except RisError as error:
            if debug:
                traceback.print_exc()
            _echo_error(str(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Stopped; nothing half-written is left behind.", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # whoever read the output is gone; Python flushes what is left of it when it ends, which
            # would fail as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except Exception as error:
            if debug:
                traceback.print_exc()
            kind = type(error).__name__
            said = shown(f"Internal error: {kind}: {error}.")
            click.echo(f"{said} Run again with --debug and report it, please.", err=True)
            ctx.exit(1)
        finally:
            signal.signal(signal.SIGTERM, previous)


class RisGroup(_AnyText, click.Group):
    """A group of commands, with `--version`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_version_option())


class DefaultGroup(RisGroup):
    """A group whose command `run` may be left out: `ris-eval BUNDLE` is `ris-eval run BUNDLE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `run` in front of arguments that begin with no command."""
        if not args or args[0] not in {*self.commands, "--help", "--version"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _version_option() -> click.Option:
    """`--version`, which prints the version of the package and ends."""

    def show(ctx: click.Context, option: click.Parameter, given: bool) -> None:
        if given and not ctx.resilient_parsing:
            click.echo(f"ris-runtime {__version__}")
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the version of ris-runtime and end.",
    )


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command like Ctrl-C does, so that temporary files are removed."""
    raise KeyboardInterrupt


def _echo_error(said: str) -> None:
    lines = map(one_line, f"Error: {said}".split("\n"))  # a refused checkpoint has several
    click.echo("\n".join(lines), err=True)


def print_json(data: Any, indent: int | None = None) -> None:
    """Prints JSON in UTF-8, whatever the locale; what is no finite number is null."""
    text = json.dumps(without_nan(data), ensure_ascii=False, indent=indent)
    click.echo(shown(text).encode())


def without_nan(data: Any) -> Any:
    """The data with null for every number that is not finite, which JSON does not have."""
    if isinstance(data, dict):
        return {name: without_nan(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


class LeftOut:
    """What a command could not use: named at once, and counted, while the rest goes on."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}

    @property
    def sentences(self) -> list[str]:
        """What was left out, in order."""
        return [shown(sentence) for sentence in self._said]

    def __call__(self, sentence: str) -> None:
        """A `Skipped`. What was said before is not said again."""
        if sentence not in self._said:
            self._said[sentence] = None
            _echo_error(one_line(sentence))

    @staticmethod
    def note(sentence: str) -> None:
        """Says what is no mistake and may surprise."""
        click.echo(f"Note: {one_line(sentence)}", err=True)

    def finish(self, done: str) -> None:
        """Raises RisError where something was left out; `done` says what there is instead."""
        if self._said:
            raise RisError(f"{len(self._said)} left out, named above; {done}")


def find_bundle(given: str | None) -> Path:
    """The bundle to use: the one given, $RIS_BUNDLE, ./ris-bundle, or else the built-in demo.

    Prints a line where it is the demo. One on a Hub is downloaded, with progress; raises HubError
    where that does not work.
    """
    if place := given or os.environ.get("RIS_BUNDLE"):
        with DownloadProgress() as progress:
            return located(place, progress)
    if Path("ris-bundle").exists():
        return Path("ris-bundle")
    click.echo(
        "No bundle given ($RIS_BUNDLE, ./ris-bundle): using the built-in demo, which knows drawn"
        " scenes",
        err=True,
    )
    return BUILT_IN


class BundlePath(click.Path):
    """A path on the command line, or a bundle's address on a Hub, which `find_bundle` takes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; whether an address has a bundle is not asked here."""
        return Path(value) if is_address(value) else super().convert(value, param, ctx)


class StepProgress:
    """Named steps of one long job, with elapsed time. Use it in a `with` block."""

    def __init__(self, title: str, steps: int | None = None) -> None:
        """steps: how often it is called, once as each step begins; None: `expect` says it later."""
        self._console = Console(stderr=True)
        self._start = time.perf_counter()
        self._title = title
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            # each call adds one as a step begins; when the first begins, none is complete
            self._task = self._bar.add_task(title, total=steps, completed=-1)

    def expect(self, steps: int) -> None:
        """Says how often it is called in all."""
        if self._bar:
            self._bar.update(self._task, total=steps)

    def __enter__(self) -> StepProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, step: str) -> None:
        """A step begins."""
        if self._bar:
            self._bar.advance(self._task)
            self._bar.update(self._task, description=f"{self._title}: {step}")
        else:
            elapsed = time.perf_counter() - self._start
            click.echo(f"[{elapsed:6.1f} s] {self._title}: {step}", err=True)


class CompileProgress:
    """What an engine does while it compiles; silent as long as nothing is compiled.

    Use it in a `with` block.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._start = time.perf_counter()
        self._bar: Progress | None = None
        self._stage = ""
        self._quarter = 0

    def __enter__(self) -> CompileProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def __call__(self, stage: str, what: str, done: float | None) -> None:
        """An engine's `Progress`; called from the engine's thread."""
        if done is None and what != "parsing":
            self._console.print(f"{stage}: {what}", highlight=False, markup=False, soft_wrap=True)
        elif self._console.is_terminal:
            self._show(stage, what, done or 0.0)
        else:
            self._say(stage, what, done or 0.0)

    def _show(self, stage: str, what: str, done: float) -> None:
        """Moves the bar; each graph has a new one."""
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        if stage != self._stage:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._stage, self._task = stage, self._bar.add_task(stage, total=1.0)
        self._bar.update(self._task, completed=done, description=f"Compile {stage}: {what}")

    def _say(self, stage: str, what: str, done: float) -> None:
        """A line as each graph begins, and for each quarter of it."""
        if stage != self._stage:
            self._stage, self._quarter = stage, -1
        if int(done * 4) > self._quarter:
            self._quarter = int(done * 4)
            seconds = time.perf_counter() - self._start
            click.echo(f"[{seconds:6.1f} s] Compile {stage}: {what}, {done:.0%}", err=True)


def track(items: Iterable[T], total: int, title: str) -> Generator[T, None, None]:
    """`items`, with progress; silent for a single one."""
    console = Console(stderr=True)
    if total < 2:
        yield from items
    elif console.is_terminal:
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            for item in items:
                yield item
                bar.advance(task)
    else:
        last = time.perf_counter()
        for done, item in enumerate(items, 1):
            yield item
            if time.perf_counter() - last > 5 or done == total:
                last = time.perf_counter()
                click.echo(f"{title}: {done} of {total}", err=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a failed write below `path` into one sentence."""
    try:
        yield
    except OSError as error:
        raise RisError(f"cannot write {path}: {error.strerror or error}") from None


def require_writable(path: Path, *, folder: bool = False) -> None:
    """Tries whether `path` can be written, before the work whose results it is for.

    Nothing stays behind. Raises RisError where it cannot.

    folder: `path` is to be a folder. What takes the place of a file or bundle when it is whole is
    written beside it: then ask for the folder around it.
    """
    with disk_errors(path):
        place = next(one for one in (path, *path.absolute().parents) if one.exists())
        if place.is_dir() != (folder or place != path):
            kind = "a" if place.is_dir() else "no"
            raise RisError(f"cannot write {path}: {place} is {kind} folder")
        if place.is_dir():
            with tempfile.TemporaryFile(dir=place):
                pass
        elif not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"

"""`make fuzz-inputs`: some thousand mutated inputs, then a table and what was found."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from fuzz import pool
from fuzz.kinds import SHARES, plan
from fuzz.record import Record, groups, table
from fuzz.verdict import Verdict

HOME = Path("build/fuzz")


@click.command()
@click.option("--count", default=10_000, show_default=True, help="How many inputs, in all kinds.")
@click.option("--seed", default=0, show_default=True, help="Another seed makes other inputs.")
@click.option("--kind", "kinds", multiple=True, help="Only kinds that begin so; may be repeated.")
@click.option("--workers", default=2, show_default=True, help="Processes at a time.")
@click.option("--home", default=HOME, show_default=True, type=click.Path(path_type=Path))
@click.option("--replay", type=click.Path(path_type=Path), help="The folder of one finding.")
def main(
    count: int, seed: int, kinds: tuple[str, ...], workers: int, home: Path, replay: Path | None
) -> None:
    """Sends mutated inputs through the doors; ends with 1 where there are findings.

    A run that was stopped goes on where it was: the inputs are a function of seed, kind and number.
    """
    if replay is not None:
        sys.exit(_replay(replay, home))
    chosen = [name for name in SHARES if not kinds or name.startswith(kinds)]
    record = Record(home, seed)
    wanted = plan(count, chosen)
    known = record.known
    tasks = [
        {"kind": kind, "number": number, "seed": seed}
        for kind, number in wanted
        if (kind, number) not in known
    ]
    print(f"{len(wanted)} inputs, {len(tasks)} to do", flush=True)
    progress = _Progress(len(tasks))

    def note(task: dict[str, Any], verdict: Verdict, folder: Path) -> None:
        record.add(task, verdict, folder)
        progress.add(verdict)

    pool.run(tasks, home / "scratch", note, workers)
    record.finish()
    asked = set(wanted)
    verdicts = [v for v in record.verdicts if (v.kind, v.number) in asked]
    found = any(verdict.outcome == "finding" for verdict in verdicts)
    if found:
        print(f"\n{groups(verdicts, seed)}\n\nInputs: {record.findings}")
        print(f"Again: python -m tests.fuzz --replay {record.findings}/KIND-{seed}-NUMBER")
    print(f"\n{table(verdicts)}")
    sys.exit(1 if found else 0)


class _Progress:
    """A line now and then."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._findings = total, 0, 0
        self._said = time.monotonic()

    def add(self, verdict: Verdict) -> None:
        self._done += 1
        self._findings += verdict.outcome == "finding"
        if time.monotonic() - self._said > 5:
            self._said = time.monotonic()
            print(
                f"{self._done} of {self._total}, {verdict.kind}, {self._findings} findings",
                flush=True,
            )


def _replay(folder: Path, home: Path) -> int:
    """Reads the files of one finding again; 0 where it is none any longer."""
    task = json.loads((folder / "finding.json").read_text(encoding="utf-8"))["task"]
    said: list[Verdict] = []
    task |= {"folder": str((folder / "input").absolute())}
    pool.run([task], home / "replay", lambda _, verdict, __: said.append(verdict), 1)
    print(json.dumps(said[0].to_dict(), indent=2))
    return 1 if said[0].outcome == "finding" else 0

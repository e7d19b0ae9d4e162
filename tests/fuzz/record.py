"""What is kept of a run: a line for each verdict, the inputs of findings; and the table."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from fuzz.verdict import Verdict

KEPT = 5
"""Findings of one group whose input is kept."""


class Record:
    """The verdicts of one seed, in a file, so that a run that was killed goes on."""

    def __init__(self, home: Path, seed: int) -> None:
        self.seed = seed
        self.findings = home / "findings"
        self._file = home / f"run-{seed}.jsonl"
        home.mkdir(parents=True, exist_ok=True)
        if not self._file.exists():  # what another run with this seed found may be gone
            for old in self.findings.glob(f"*-{seed}-*"):
                shutil.rmtree(old)
        self.verdicts = _read(self._file) if self._file.exists() else []
        text = "".join(json.dumps(verdict.to_dict()) + "\n" for verdict in self.verdicts)
        self._file.write_text(text, encoding="utf-8")  # without a line that was torn
        self._kept = Counter(v.group for v in self.verdicts if v.outcome == "finding")

    @property
    def known(self) -> set[tuple[str, int]]:
        """(kind, number) of what was judged."""
        return {(verdict.kind, verdict.number) for verdict in self.verdicts}

    def add(self, task: dict[str, Any], verdict: Verdict, folder: Path) -> None:
        """Notes a verdict; the input of a finding is kept for `--replay`."""
        if verdict.outcome == "finding":
            self._kept[verdict.group] += 1
            if self._kept[verdict.group] <= KEPT:
                self._keep(task, verdict, folder)
        self.verdicts.append(verdict)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(verdict.to_dict()) + "\n")

    def _keep(self, task: dict[str, Any], verdict: Verdict, folder: Path) -> None:
        target = self.findings / f"{verdict.kind}-{self.seed}-{verdict.number}"
        shutil.rmtree(target, ignore_errors=True)
        if folder.is_dir():
            shutil.copytree(folder, target / "input", symlinks=True)
        target.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"task": task, "verdict": verdict.to_dict()}, indent=2)
        (target / "finding.json").write_text(text + "\n", encoding="utf-8")

    def finish(self) -> None:
        """The run is whole: the next one starts anew."""
        self._file.replace(self._file.with_suffix(".done.jsonl"))


def _read(file: Path) -> list[Verdict]:
    """The verdicts of a run; its last line may be torn."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [Verdict(**json.loads(line)) for line in lines[:-1]]


def table(verdicts: list[Verdict]) -> str:
    """A row for each kind, and all of them."""
    head = (
        "kind",
        "inputs",
        "answers",
        "sentences",
        "findings",
        "most memory",
        "slowest",
        "stderr",
    )
    by_kind: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_kind[verdict.kind].append(verdict)
    rows = [_row(kind, found) for kind, found in by_kind.items()]
    rows.append(_row("all", verdicts))
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join((first.strip().ljust(widths[0]), *rest)))
    return "\n".join(lines)


def _row(name: str, verdicts: list[Verdict]) -> tuple[str, ...]:
    count = Counter(verdict.outcome for verdict in verdicts)
    memory = max((verdict.memory for verdict in verdicts), default=0)
    slowest = max((verdict.seconds for verdict in verdicts), default=0.0)
    noisy = sum(verdict.stderr > 0 for verdict in verdicts)
    numbers = (len(verdicts), count["answer"], count["sentence"], count["finding"])
    return name, *map(str, numbers), f"{memory / 1e6:.0f} MB", f"{slowest:.2f} s", str(noisy)


def groups(verdicts: list[Verdict], seed: int) -> str:
    """The findings, a paragraph for each group, the most frequent first."""
    found: dict[tuple[str, str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.outcome == "finding":
            found[verdict.group].append(verdict)
    lines = []
    for (kind, what, place), same in sorted(found.items(), key=lambda item: -len(item[1])):
        first = same[0]
        lines.append(f"{len(same)} x {kind}: {what} at {place or '?'}")
        lines.append(f"    {first.message[:300]!r}")
        lines.append(f"    {kind}-{seed}-{first.number}")
    return "\n".join(lines)

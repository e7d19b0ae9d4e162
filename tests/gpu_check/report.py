"""What the check found, as JSON and as Markdown."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What came of one part."""

    name: str
    """The part's name."""

    kind: str
    """What it did."""

    seconds: float
    """How long its process ran."""

    problem: str | None
    """Why it did not come to its end; None where it did."""

    sections: list[dict[str, Any]]
    """What it found, in order; a section that failed has a "problem"."""

    @property
    def failed(self) -> bool:
        """Whether something in it went wrong; what cannot run here at all is no fault."""
        return self.problem is not None or any(s.get("problem") for s in self.sections)

    def line(self) -> str:
        """The finding in a line, for whoever waits."""
        wrong = [f"{s['section']}: {s['problem']}" for s in self.sections if s.get("problem")]
        left = [s["skipped"] for s in self.sections if s.get("skipped")]
        said = "; ".join([*([self.problem] if self.problem else []), *wrong, *left]) or "well"
        return f"{self.name}: {said} ({self.seconds:.1f} s)"


@dataclass
class Report:
    """All findings."""

    double: bool
    """Whether it was a dry run over doubles, whose figures mean nothing."""

    findings: list[Finding] = field(default_factory=list)
    """In the order in which the parts ran."""

    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M %Z"))
    """When the check began."""

    @property
    def failed(self) -> bool:
        """Whether a part went wrong."""
        return any(finding.failed for finding in self.findings)

    @property
    def compared(self) -> bool:
        """Whether a bundle was compared with its reference, without which nothing was shown."""
        return any("found" in section for section in self._all("parity"))

    def write(self, prefix: Path) -> list[Path]:
        """Writes PREFIX.json and PREFIX.md, and returns their paths."""
        data, text = (prefix.with_name(f"{prefix.name}.{kind}") for kind in ("json", "md"))
        found = dataclasses.asdict(self)
        data.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        text.write_text(self.markdown(), encoding="utf-8")
        return [data, text]

    def markdown(self) -> str:
        """The report for people: the machine, then a table for each question."""
        lines = [f"# GPU check, {self.started}", ""]
        if self.double:
            lines += ["**A dry run over doubles: no figure here means anything.**", ""]
        for section in self._all("machine"):
            lines += [f"- {name}: {value}" for name, value in section["found"].items()] + [""]
        for title, section, columns in _TABLES:
            rows = [(name, found) for name, found in self._each(section)]
            if rows:
                lines += [f"## {title}", "", *_table(rows, columns), ""]
        lines += ["## Parts", "", "| part | seconds | |", "|---|---|---|"]
        for finding in self.findings:
            _, _, said = finding.line().rpartition(f"{finding.name}: ")
            lines.append(f"| {finding.name} | {finding.seconds:.1f} | {_cell(said)} |")
        return "\n".join(lines) + "\n"

    def _all(self, name: str) -> list[dict[str, Any]]:
        return [s for f in self.findings for s in f.sections if s["section"] == name]

    def _each(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """The rows of a section: the part's name, and what was found."""
        rows = []
        for finding in self.findings:
            for section in finding.sections:
                if section["section"] == name and "found" in section:
                    found = section["found"]
                    several = found if isinstance(found, list) else [found]
                    rows += [(finding.name, row) for row in several]
        return rows


_TABLES = (
    ("Parity", "parity", ("mask_iou", "mask_logits", "worst", "failures")),
    (
        "Plans",
        "plans",
        ("graph", "asked", "layers", "fused_attention", "seconds", "bytes", "notes"),
    ),
    ("What runs", "runs", ("graph", "precision", "where", "notes")),
    (
        "Time, milliseconds",
        "time",
        ("cuda_graphs", "first_mask", "next_expression", "stages", "prompt_on_host"),
    ),
    ("Expressions together, milliseconds each", "batch", ("cuda_graphs", "each")),
    ("Memory of the GPU, MiB", "memory", ("cuda_graphs", "before", "loaded", "asked")),
    ("PyTorch, milliseconds", "pytorch", ("precision", "first_mask", "next_expression", "memory")),
    ("The dense prompt", "prompt", ("host", "device")),
)
"""A title, a section and its columns for each table."""


def _table(rows: list[tuple[str, dict[str, Any]]], columns: tuple[str, ...]) -> list[str]:
    lines = [f"| part | {' | '.join(column.replace('_', ' ') for column in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, found in rows:
        cells = [_cell(found.get(column)) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cell(value: Any) -> str:
    """A value for a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_cell, value))
    return str(value).replace("|", "\\|").replace("\n", " ")

"""Two reports side by side."""

from __future__ import annotations

from ris.engines.errors import RisError
from ris.runtime.bench.report import BenchReport, Inputs, Measured, Spread
from ris.runtime.bench.show import warnings
from ris.runtime.bench.text import spread, table

_COMPARED = ("first_mask", "next_expression", "cold_start", "load")


def compare(first: BenchReport, second: BenchReport, names: tuple[str, str]) -> str:
    """A Markdown table of what both measured, and what makes it less than sure.

    names: of the two reports. Raises RisError where their inputs differ or nothing is in both.
    """
    if different := _differences(first.inputs, second.inputs):
        raise RisError(
            f"{names[0]} and {names[1]} are not compared: they measured different inputs:"
            f" {different}"
        )
    others = {m.name: m for m in second.alternatives}
    rows = []
    for m in first.alternatives:
        if m.name in others:
            rows += _rows(m, others[m.name])
    if not rows:
        raise RisError(f"{names[0]} and {names[1]} have no alternative in common")

    lines = table(["", *names, "second / first", "the second is"], rows)[1:]
    for key in ("cpu", "cores", "versions"):
        a, b = first.machine[key], second.machine[key]
        if a != b:
            lines += ["", f"The machines differ in {key}: {a} and {b}."]
    for name, report in zip(names, (first, second), strict=True):
        lines += [f"\n{name}: {text}" for text in warnings(report)]
    return "\n".join(lines) + "\n"


def _differences(first: Inputs, second: Inputs) -> str:
    """The fields that differ, with the beginnings of both values; "" where none does."""
    a, b = vars(first), vars(second)
    return ", ".join(
        f"{name} ({str(a[name])[:24]} and {str(b[name])[:24]})" for name in a if a[name] != b[name]
    )


def _rows(first: Measured, second: Measured) -> list[list[str]]:
    """A row for each figure that both have."""
    rows = []
    for what in _COMPARED:
        a, b = getattr(first, what), getattr(second, what)
        if a is not None and b is not None:
            title = f"{first.name}: {what.replace('_', ' ')}"
            ratio = f"{b.median / a.median:.3f}"
            rows.append([title, spread(a), spread(b), ratio, _verdict(a, b)])
    return rows


def _verdict(first: Spread, second: Spread) -> str:
    if first.overlaps(second):
        return "within the noise"
    return "faster" if second.median < first.median else "slower"

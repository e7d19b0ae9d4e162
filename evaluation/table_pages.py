"""Tables as Markdown, CSV, JSON, and one HTML page with the histograms."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ris.engines.temporary import write_atomically
from ris.engines.text import shown
from ris.evaluation.pages import escaped, figure, page
from ris.evaluation.plots import histograms, series_of
from ris.evaluation.tables import Cell, Histogram, Table
from ris.runtime.commands.console import without_nan

NAME = "tables"
"""The files' name, without its ending."""


def write_tables(tables: Sequence[Table], figures: Sequence[Histogram], out: Path) -> list[Path]:
    """Writes tables.md, .csv, .json and .html; returns their paths.

    Args:
        tables: What is made.
        figures: Histograms; they need matplotlib.
        out: The folder, which is there.
    """
    found = without_nan(to_dict(tables, figures))
    texts = {
        "md": "\n".join(_markdown(tables, figures)) + "\n",
        "csv": _csv(tables),
        "json": json.dumps(found, indent=1, ensure_ascii=False) + "\n",
        "html": _html(tables, figures),
    }
    paths = [out / f"{NAME}.{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        _write(path, shown(text).encode())
    return paths


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda file: file.write(data))


def to_dict(tables: Sequence[Table], figures: Sequence[Histogram]) -> dict[str, Any]:
    """Everything as JSON; figures unrounded, null where there is none."""
    return {
        "tables": [
            {
                "title": table.title,
                "rows": [
                    {
                        "system": system.name,
                        "cells": [
                            vars(column.part) | {"metric": column.metric} | dataclasses.asdict(cell)
                            for column, cell in zip(table.columns, cells, strict=True)
                        ],
                    }
                    for system, cells in table.rows
                ],
            }
            for table in tables
        ],
        "histograms": [
            {
                "title": one.title,
                **vars(one.part),
                "edges": [i / 20 for i in range(21)],
                "systems": {name: _bins(own) for name, own in one.ious},
                "missing": list(one.missing),
            }
            for one in figures
        ],
    }


def _bins(ious: Any) -> list[int]:
    counts: list[int] = np.histogram(ious, bins=20, range=(0, 1))[0].tolist()
    return counts


def _head(table: Table) -> list[str]:
    """What stands above the columns; the evaluator too where columns differ in it alone."""
    heads = [f"{column.part.name} {column.metric}" for column in table.columns]
    if len(set(heads)) == len(heads):
        return heads
    return [
        f"{head} ({column.part.protocol})"
        for head, column in zip(heads, table.columns, strict=True)
    ]


def number(value: float, metric: str) -> str:
    """A figure as it is usually printed: percent with two decimals, shares with four."""
    return f"{value:.4f}" if metric in ("N_acc", "T_acc") else f"{value:.2f}"


def _words(cell: Cell, metric: str) -> tuple[str, list[str]]:
    """A cell's figure, and what stands in small print below it."""
    value = "missing" if cell.value is None else number(cell.value, metric)
    small = []
    if cell.published is not None:
        small.append(f"published {cell.published.value:g}")
    if cell.difference is not None:
        own = cell.difference
        digits = 4 if metric in ("N_acc", "T_acc") else 2
        interval = f"[{own.low:+.{digits}f}, {own.high:+.{digits}f}]"
        small.append(f"{own.value:+.{digits}f} {interval}")
    return value, small


def _markdown(tables: Sequence[Table], figures: Sequence[Histogram]) -> Iterator[str]:
    for table in tables:
        yield f"## {table.title}\n"
        yield f"| | {' | '.join(_head(table))} |"
        yield "|---" * (len(table.columns) + 1) + "|"
        for system, cells in table.rows:
            said = []
            for column, cell in zip(table.columns, cells, strict=True):
                value, small = _words(cell, column.metric)
                said.append("<br>".join([value, *small]))
            yield f"| {system.name.replace('|', chr(92) + '|')} | {' | '.join(said)} |"
        yield ""
        yield from (f"- {line}" for line in notes(table))
        yield ""
    for one in figures:
        yield f"## {one.title}\n"
        for name, own in one.ious:
            yield f"- {name}: {_shape(own)}"
        yield from (f"- {sentence}" for sentence in one.missing)
        yield ""


def _shape(ious: Any) -> str:
    """A histogram in words."""
    low, high = float((ious < 0.1).mean()), float((ious >= 0.9).mean())
    return f"{len(ious)} targeted expressions, {low:.1%} below IoU 0.1, {high:.1%} from 0.9 on"


def notes(table: Table) -> list[str]:
    """How to read a table: who counted, what differs from what, what is missing, whose figures."""
    protocols = dict.fromkeys((column.part.name, column.part.protocol) for column in table.columns)
    lines = ["Counted by: " + ", ".join(f"{part} {name}" for part, name in protocols) + "."]
    if len(table.rows) > 1:
        lines.append(
            f"Differences are to {table.rows[0][0].name}; in brackets, what holds 95 % of them over"
            " 1,000 draws of images."
        )
    missing: dict[str, dict[str, None]] = defaultdict(dict)
    sources: dict[str, dict[str, None]] = defaultdict(dict)
    for system, cells in table.rows:
        for column, cell in zip(table.columns, cells, strict=True):
            where = f"{system.name} on {column.part.name}"
            if cell.missing is not None:
                missing[cell.missing][where] = None
            if cell.published is not None:
                sources[cell.published.source][where] = None
    lines += [f"{', '.join(places)}: {reason}" for reason, places in missing.items()]
    return lines + [
        f"Published, {', '.join(places)}: {source}." for source, places in sources.items()
    ]


def _csv(tables: Sequence[Table]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    heads = ["table", "system", "data", "split_by", "split", "protocol", "metric", "value"]
    writer.writerow([*heads, "published", "source", "difference", "low", "high", "missing"])
    for table in tables:
        for system, cells in table.rows:
            for column, cell in zip(table.columns, cells, strict=True):
                part, stated, own = column.part, cell.published, cell.difference
                where = [part.data, part.split_by, part.split, part.protocol, column.metric]
                writer.writerow(
                    [
                        table.title,
                        system.name,
                        *where,
                        cell.value,
                        *((stated.value, stated.source) if stated else (None, None)),
                        *((own.value, own.low, own.high) if own else (None, None, None)),
                        cell.missing,
                    ]
                )
    return text.getvalue()


def _html(tables: Sequence[Table], figures: Sequence[Histogram]) -> str:
    parts = ["<h1>Tables</h1>"]
    for table in tables:
        heads = "".join(f"<th>{escaped(words)}</th>" for words in _head(table))
        rows = [f"<tr><th>system</th>{heads}</tr>"]
        for system, cells in table.rows:
            said = []
            for column, cell in zip(table.columns, cells, strict=True):
                value, small = _words(cell, column.metric)
                lines = "".join(f"<br><small>{escaped(words)}</small>" for words in small)
                said.append(f"<td>{escaped(value)}{lines}</td>")
            rows.append(f"<tr><td>{escaped(system.name)}</td>{''.join(said)}</tr>")
        items = "".join(f"<li>{escaped(line)}</li>" for line in notes(table))
        parts += [f"<h2>{escaped(table.title)}</h2>", f"<table>{''.join(rows)}</table>"]
        parts.append(f"<ul>{items}</ul>")
    for one in figures:
        parts.append(f"<h2>{escaped(one.title)}</h2>")
        if one.ious:
            names, ious = zip(*one.ious, strict=True)
            image, caption = histograms(series_of(names, ious))
            where = f"{one.part.name}, masks as {one.part.protocol} compares them"
            parts.append(figure(image, f"{caption}; {where}"))
        parts += [f"<p>{escaped(sentence)}</p>" for sentence in one.missing]
    return page("Tables", parts)

"""The table of a comparison as text."""

from __future__ import annotations

import os
from collections.abc import Sequence

from quadrat.reports.collect import Record
from quadrat.reports.compare import Comparison, Row
from quadrat.reports.settings import shown
from quadrat.reports.words import conclusion, explained, notes, written

MOST = 40
"""Rows that are printed; the files have all of them."""


def text(result: Comparison) -> str:
    """Conclusion, table, notes, and the runs that are not counted with their reasons."""
    head = ["", *(result.names[key] for key in result.telling)]
    head += [word for metric in result.metrics for word in (metric.name, "")]
    rows = [_row(row, result) for row in result.rows[:MOST]]
    hidden, untold = len(result.rows) - len(rows), len(result.keys) - len(result.telling)
    marked = _marked(result.marked)
    return "\n".join(
        [
            *conclusion(result),
            "",
            *aligned([[*head, "runs"], *rows]),
            *([f"  {hidden} more rows are in table.csv"] if hidden else []),
            *([f"  {untold} more settings that differ are in table.csv"] if untold else []),
            *([""] if result.ranked else []),
            *(f"  {note}" for note in notes(result)),
            *([f"\n{len(result.marked)} of {len(result.records)} runs are not counted:"] if marked else []),
            *marked[:MOST],
            *([f"  {len(marked) - MOST} more are in runs.csv"] if len(marked) > MOST else []),
        ]
    )


def _marked(records: Sequence[Record]) -> list[str]:
    """A line for each run that is not counted, one for all that have the same reason."""
    alike: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        alike.setdefault((record.state, record.reason), []).append(record)
    return [
        f"  {state:<12} {os.path.relpath(runs[0].folder) if len(runs) == 1 else f'{len(runs)} runs'}: {reason}"
        for (state, reason), runs in alike.items()
    ]


def _row(row: Row, result: Comparison) -> list[str]:
    cells = [str(row.number), *(shown(row.settings[key], key) for key in result.telling)]
    for metric in result.metrics:
        cells += [written(row.spreads[metric.name]) or "–", explained(row.verdicts[metric.name])]
    return [*cells, row.states()]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip() for row in rows
    ]

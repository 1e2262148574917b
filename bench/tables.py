"""Figures to Markdown: medians, spreads and ratios; measures nothing itself."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence

__all__ = ["markdown", "median", "quantile", "ratio", "short", "spread"]


def median(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median, or a dash where nothing could be measured."""
    known = [one for one in values if not math.isnan(one)]
    return format(statistics.median(known), form) if known else "-"


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median with the least and the greatest value."""
    if len(values) < 2:
        return median(values, form)
    return f"{median(values, form)} ({format(min(values), form)}-{format(max(values), form)})"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the others does not exceed; NaN if there is none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else math.nan


def ratio(values: Sequence[float], bound: Sequence[float]) -> str:
    """Return the median of the ratios, each of two runs that followed one another.

    Neighbours in time share the machine's mood; the ratio of two medians would not.
    """
    pairs = [a / b for a, b in zip(values, bound, strict=False) if b]
    return median(pairs, ".2f")


def short(subject: str) -> str:
    """Return a subject's name for the head of a column: what comes before its explanation."""
    return re.split("[:,]", subject)[0]


def markdown(title: str, notes: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a section: the title, one table whose first row is its head, the notes."""
    head, *body = rows
    lines = [f"## {title}", "", _line(head), _line(["---"] * len(head))]
    lines += [_line(row) for row in body]
    return "\n".join([*lines, "", *notes, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

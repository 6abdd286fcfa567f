"""Comparisons as Markdown or JSON, and the places in RESULTS.md where they are written."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict

from evidence.samples import Comparison, spread

_NAMES = {"ratio": "ratio", "ours": "edgekit", "share": "ceiling"}


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """One row a comparison. Columns of the ceiling, of rates and of bars are there if any row has them."""
    has_share = any(row.shares for row in comparisons)
    has_rates = any(row.our_rates for row in comparisons)
    has_bars = any(row.bars for row in comparisons)
    headings = ["shape", "test", "edgekit", "peer", "unit", "edgekit's", "peer's", "ratio"]
    headings += ["ceiling, GB/s", "share of it", "peer's share"] if has_share else []
    headings += ["edgekit's GB/s", "peer's GB/s"] if has_rates else []
    headings += ["bar"] if has_bars else []
    rows = []
    for row in comparisons:
        cells = [row.shape, row.test, row.ours_name, row.theirs_name, row.unit]
        cells += [spread(row.ours), spread(row.theirs), spread(row.ratios)]
        cells += [spread(row.ceilings), spread(row.shares), spread(row.their_shares)] if has_share else []
        cells += [spread(row.our_rates), spread(row.their_rates)] if has_rates else []
        bars = [f"{_NAMES[bar.of]} >= {bar.value:g}: {verdict}" for bar, verdict in row.verdicts()]
        cells += ["; ".join(bars) or "-"] if has_bars else []
        rows.append(cells)
    return markdown_table(headings, rows)


def as_json(facts: dict[str, object], comparisons: Sequence[Comparison]) -> str:
    """Everything, every sample included."""
    rows = [
        asdict(row) | {"ratios": row.ratios, "verdicts": [verdict for _, verdict in row.verdicts()]}
        for row in comparisons
    ]
    return json.dumps(facts | {"comparisons": rows}, indent=1)


class NoSuchPlace(Exception):
    """The document has no such place to write to, or has it twice."""


def replace_place(document: str, name: str, body: str) -> str:
    """The document with `body` between its lines `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        NoSuchPlace: there is not exactly one of each, in this order.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    place = re.compile(f"(^{re.escape(begin)}).*?(^{re.escape(end)})", re.MULTILINE | re.DOTALL)
    if document.count(begin) != 1 or document.count(end) != 1 or not place.search(document):
        raise NoSuchPlace(f"the document needs one line '{begin.strip()}' and after it one '{end.strip()}'")
    return place.sub(lambda match: f"{match[1]}{body.strip()}\n{match[2]}", document)

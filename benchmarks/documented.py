"""Writes the tables of results into the documentation, so that no number there is copied by hand.

    python benchmarks/documented.py           # after a benchmark wrote a new result

results/science/*.json --the benchmark's own table--> docs/*.md, between <!-- table NAME --> and <!-- end -->
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.science import top_of_list, transfer, well_trained_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "science"
PLACE = re.compile(
    r"(<!-- table (?P<name>[a-z_]+)(?: (?P<part>\d+))? -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL
)
"""A table's place; its part is the number of the block, from 1, if a benchmark has several."""
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "transfer": transfer.markdown,
    "well_trained": lambda result: well_trained_table.markdown(result["sets"]),
    "top_of_list": lambda result: "\n\n".join(
        f(result["sets"]) for f in (top_of_list.table, top_of_list.loss_table)
    ),
    "top_tuning": lambda result: top_of_list.tuning_table(result["tuning"]),
}


def text_of(name: str, part: int) -> str:
    """A part of the table of a result."""
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return TABLES[name](result).split("\n\n")[part - 1].strip("\n") + "\n"


def filled(page: str) -> str:
    """The page with the tables of the results."""

    def table(found: re.Match[str]) -> str:
        return found[1] + text_of(found["name"], int(found["part"] or 1)) + found[5]

    return PLACE.sub(table, page)


def pages() -> list[Path]:
    """The pages of the documentation that have such a place."""
    return [p for p in sorted((ROOT / "docs").glob("*.md")) if PLACE.search(p.read_text(encoding="utf-8"))]


def main() -> int:
    """Writes all pages."""
    for path in pages():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Tables of the documentation are those of the results in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.documented import filled, pages


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.stem)
def test_tables_in_the_documentation_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "python benchmarks/documented.py writes them anew"


def test_a_place_gets_the_part_of_the_table_that_it_names() -> None:
    page = "above\n<!-- table top_of_list 2 -->\nold\n<!-- end -->\nbelow"
    text = filled(page)
    assert text.startswith("above\n") and text.endswith("<!-- end -->\nbelow")
    assert "old" not in text and "constant: within" in text and "its precision" not in text

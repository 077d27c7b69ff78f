"""Nothing is exported in which a spreadsheet would run a formula."""

from __future__ import annotations

import ast
from pathlib import Path

import llm_mer

CSV_WRITERS = {"writer", "DictWriter", "to_csv", "to_excel", "savetxt", "write_csv"}


def written_tables(source: str) -> set[str]:
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return CSV_WRITERS & {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}


def test_no_command_writes_csv_or_a_spreadsheet_and_docs_say_so() -> None:
    assert written_tables("import csv\ncsv.writer(stream)\nframe.to_csv(path)") == {"writer", "to_csv"}
    folder = Path(llm_mer.__file__).parent
    found = {
        str(path.relative_to(folder)): names for path in folder.rglob("*.py") if (names := written_tables(path.read_text()))
    }
    assert found == {}
    note = "Nothing is exported as CSV or as a spreadsheet"
    assert note in (folder.parent / "docs" / "security.md").read_text(encoding="utf-8")

"""The report's section on annotators' votes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_facts import EMOTION, emotion, written

from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.vote_scores import VOTE_METRICS
from llm_mer.reporting.blocks import Table
from llm_mer.reporting.facts import load_evaluation
from llm_mer.reporting.report import ReportConfig, build_page
from llm_mer.reporting.sections.votes import votes_section
from llm_mer.reporting.wording import format_number

COUNTS = ({"joy": 2, "neutral": 1}, {"joy": 1, "anger": 1, "fear": 1}, {"sadness": 3})


def answers(count: int, **fields: Any) -> list[Any]:
    found = []
    for i in range(count):
        prediction = emotion(f"u{i}", "joy", "joy", dialogue_id=f"d{i // 4}", **fields)
        prediction.votes = COUNTS[i % 3]
        prediction.truth = ("joy", None, "sadness")[i % 3]
        found.append(prediction)
    return found


def test_each_score_stands_beside_its_n_unit_constant_annotators_and_bound(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", {AS_IS: answers(24)}, [EMOTION])
    main = load_evaluation(str(folder))
    (table,) = votes_section(main).blocks
    assert isinstance(table, Table)
    assert [row[2].text for row in table.rows] == list(VOTE_METRICS)
    row = main.evaluation.find(AS_IS, "emotion", "en")
    assert row is not None
    for cells, score in zip(table.rows, row.vote_scores, strict=True):
        assert [cell.text for cell in cells[3:6]] == [str(score.n), "6 dialogues", format_number(score.value)]
        assert cells[5].below == (f"{format_number(score.interval[0])} to {format_number(score.interval[1])}",)
        assert cells[7].text == ("–" if score.annotators is None else format_number(score.annotators))
    assert [row[3].text for row in table.rows] == ["24", "24", "24", "16", "24"]  # ties have no majority
    page, _ = build_page(ReportConfig(evaluations=[str(folder)]))
    assert "Annotators&#39; votes" in page or "Annotators' votes" in page


def test_without_votes_there_is_no_such_section(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", {AS_IS: [emotion(f"u{i}", "joy", "joy") for i in range(8)]}, [EMOTION])
    assert votes_section(load_evaluation(str(folder))).blocks == []

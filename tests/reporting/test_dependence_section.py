"""The report's section on what the answers depend on."""

from pathlib import Path

from llm_mer.evaluation.dependence import MOVED, READ, Dependence, Share, Swap
from llm_mer.evaluation.rows import Evaluation
from llm_mer.reporting.blocks import Remark, Table
from llm_mer.reporting.facts import LoadedEvaluation
from llm_mer.reporting.sections.dependence import dependence_section


def loaded(folder: Path, dependence: list[Dependence]) -> LoadedEvaluation:
    Evaluation("egmf", {}, "store", "test", 0, 100, dependence=dependence).save(folder)
    return LoadedEvaluation(Evaluation.load(folder), {}, folder)


def test_the_section_says_the_sentence_of_the_file_and_each_swap_with_its_intervals(tmp_path: Path) -> None:
    swaps = [
        Swap("transcript shuffled", "the words", 300, Share(0.6, (0.5, 0.7)), Share(0.25, (0.125, 0.375)), READ),
        Swap("audio shuffled", "the sound", 300, Share(0.2, (0.1, 0.3)), Share(0.0, (-0.125, 0.125)), MOVED),
        Swap("without adapter", None, 300, Share(0.3, (0.2, 0.4)), Share(0.0, (-0.1, 0.1)), None),
    ]
    sentence = "The language model reads the words; it lets the sound move its answers without a gain."
    found = [Dependence("emotion", "speakers", 12, sentence, swaps, Share(0.75, (0.7, 0.8)))]
    remark, table = dependence_section(loaded(tmp_path, found)).blocks
    assert isinstance(remark, Remark)
    assert isinstance(table, Table)
    assert remark.text == f"Task emotion: {sentence}"
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["transcript shuffled", "300", "0.600", "0.250", READ],
        ["audio shuffled", "300", "0.200", "0.000", MOVED],
        ["without adapter", "300", "0.300", "0.000", "–"],
    ]
    assert table.rows[0][3].below == ("[0.125, 0.375]",)
    assert "12 speakers" in table.caption
    assert "own head: 0.750 [0.700, 0.800]" in table.caption


def test_an_evaluation_without_a_swap_has_no_such_section(tmp_path: Path) -> None:
    assert dependence_section(loaded(tmp_path, [])).blocks == []

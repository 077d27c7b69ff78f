"""What is said of a checkpoint of another run."""

from pathlib import Path

from llm_mer.checkpoints.run_differences import Difference
from llm_mer.training.resume import incompatible_run_error


def test_another_number_of_processes_is_refused_with_both_numbers_and_what_would_be_right() -> None:
    for before, now in ((2, 1), (1, 2)):
        message = str(incompatible_run_error(Path("runs/x/checkpoint-8"), [Difference("processes", before, now)]))
        assert message == (
            f"resume_from_checkpoint: runs/x/checkpoint-8 is of another run: processes: {before} there, {now} here; "
            f"start it on {before} again, or train anew into another output_dir"
        )


def test_other_differences_have_no_advice_on_processes() -> None:
    assert str(incompatible_run_error(Path("c"), [Difference("seed", 1, 2)])).endswith("seed: 1 there, 2 here")

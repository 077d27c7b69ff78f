"""An option that stands twice on a command line with different values is refused, in every command."""

from __future__ import annotations

import pytest

from llm_mer.cli.main import main
from llm_mer.cli.options import parse
from llm_mer.errors import UserError
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.inference.inputs import InferConfig
from llm_mer.scoring.engines.base import read_options
from llm_mer.training.parsing import parse_arguments

EVALUATE = ["--checkpoint", "run", "--data", "store"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--limit", "4", "--limit", "8"], "--limit: given 2 times, 4 and 8, of which the last alone would count; name one"),
        (["--limit=4", "--limit", "8"], "--limit: given 2 times, 4 and 8"),
        (["--batch-size", "4", "--batch_size=8"], "--batch_size: given 2 times, 4 and 8"),
        (["--generate", "--generate", "false"], "--generate: given 2 times, true and false"),
        (["--conditions", "none:audio", "--conditions", "none:vision"], "name all of them behind one --conditions"),
        (["--checkpoint", "other"], "--checkpoint: given 2 times, run and other"),
    ],
)
def test_a_command_refuses_two_values_and_names_them(given: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(EvaluateConfig, [*EVALUATE, *given], "llm-mer evaluate")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        ["--limit", "4", "--limit=4"],
        ["--conditions", "none:audio", "none:vision"],
        ["--conditions", "none:audio", "--limit", "4", "--conditions", "none:audio"],
        ["--generate", "--generate", "true"],
    ],
)
def test_the_same_value_twice_and_several_values_of_a_list_are_taken(given: list[str]) -> None:
    parse(EvaluateConfig, [*EVALUATE, *given], "llm-mer evaluate")


def test_a_value_that_looks_like_a_number_below_zero_is_a_value() -> None:
    with pytest.raises(UserError, match="--seed: given 2 times, -1 and -2"):
        parse(EvaluateConfig, [*EVALUATE, "--seed", "-1", "--seed", "-2"], "llm-mer evaluate")


def test_a_place_and_an_option_that_name_two_things_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "runs/mine", "someone/mer", "--folder", "runs/other"]) == 2
    assert "--folder: runs/other and, without the option's name, runs/mine; name one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seed", "1", "--seed", "2"], "--seed: given 2 times, 1 and 2"),
        (["--learning-rate", "1e-3", "--learning_rate=1e-4"], "--learning_rate: given 2 times, 1e-3 and 1e-4"),
        (["--loss_weights", "ce=0", "--loss_weights", "l1=1"], "name all of them behind one --loss_weights"),
        (["--bf16", "--bf16", "false"], "--bf16: given 2 times"),
    ],
)
def test_a_training_refuses_two_values_and_names_them(given: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_arguments(["--data", "store", "--backbone", "none", "--tasks", "emotion", "--output_dir", "run", *given])
    assert message in str(caught.value)


def test_infer_and_an_engines_options_too() -> None:
    with pytest.raises(UserError, match="--text: given 2 times, hello and good day"):
        parse(InferConfig, ["--checkpoint", "run", "--text", "hello", "--text", "good day"], "llm-mer infer")
    with pytest.raises(UserError, match="--engine_options: tensor_parallel_size is given twice"):
        read_options(["tensor_parallel_size=2", "tensor_parallel_size=4"])

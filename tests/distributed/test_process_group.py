"""A launch that comes to fewer processes than were asked for is told from one that is as it should be."""

from __future__ import annotations

import logging

import pytest

from llm_mer.distributed.process_group import ProcessGroup, check_launch
from llm_mer.errors import UserError

ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}
RENDEZVOUS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("world", "environment"),
    [
        (1, {}),
        (1, ACCELERATE),
        (1, RENDEZVOUS),  # exported in a job's script, with nothing started by it
        (1, {"WORLD_SIZE": "1", **RENDEZVOUS, **ACCELERATE}),
        (2, {"WORLD_SIZE": "2", **RENDEZVOUS, **ACCELERATE}),
        (8, {"WORLD_SIZE": "8", "SLURM_STEP_NUM_TASKS": "2", **RENDEZVOUS}),
        (1, {"SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "1"}),
    ],
)
def test_a_launch_as_it_should_be_is_left_alone(
    world: int, environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_launch(world, environment)
    assert not caplog.records


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**ACCELERATE, **RENDEZVOUS}, r"accelerate launch was asked for several processes and started one.*torchrun"),
        ({"WORLD_SIZE": "2", **RENDEZVOUS}, r"started 2 processes \(WORLD_SIZE\), but 1 met here.*torchrun"),
    ],
)
def test_a_launch_that_came_to_fewer_processes_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_launch(1, environment)


@pytest.mark.parametrize(
    ("name", "launcher"), [("SLURM_STEP_NUM_TASKS", "srun"), ("PMI_SIZE", "mpirun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")]
)
def test_tasks_that_do_not_meet_are_warned_of(name: str, launcher: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_launch(1, {name: "4"})
    assert f"{launcher} started 4 tasks ({name}), each of which trains alone" in caplog.text


def test_inference_refuses_such_a_launch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in {**ACCELERATE, **RENDEZVOUS}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="asked for several processes"):
        ProcessGroup.join()

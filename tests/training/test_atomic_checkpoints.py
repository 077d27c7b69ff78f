"""Checkpoints to resume from: complete under their name or not there, damaged ones named, a full disk loses nothing."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adapter_weights, training_options
from transformers import Trainer

import llm_mer.training.trainer
from llm_mer.checkpoints.run_manifest import weights_digest
from llm_mer.cli.train import finetune
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.training.atomic_checkpoints import (
    COMPLETION_MARKER,
    STAGING_FOLDER,
    CheckpointWriter,
    find_corruption,
    last_complete_checkpoint,
    list_checkpoints,
    write_completion_marker,
)
from llm_mer.training.interruption import Interrupted
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.resume import find_resume_checkpoint
from llm_mer.training.setup import build_trainer

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "dropout": 0.2, "save_total_limit": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """Three steps of an adapter alone, each saved."""
    return finetune(training_options(store, "none", tmp_path_factory.mktemp("whole") / "run", **SAVING))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "weights cut off": ("model.safetensors", cut, r"model.safetensors has \d+ bytes, \d+ were written"),
    "optimiser cut off": ("optimizer.pt", cut, r"optimizer.pt has \d+ bytes"),
    "state cut off": ("trainer_state.json", cut, r"trainer_state.json has \d+ bytes"),
    "random numbers missing": ("rng_state.pth", os.remove, "rng_state.pth is missing"),
    "description missing": ("llm_mer.json", os.remove, "llm_mer.json is missing"),
    "one bit of the optimiser turned": ("optimizer.pt", flip, "optimizer.pt is not what was written"),
    "seal missing": (COMPLETION_MARKER, os.remove, f"no {COMPLETION_MARKER}: it was not finished"),
    "seal cut off": (COMPLETION_MARKER, cut, f"{COMPLETION_MARKER} is damaged"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    case: str, copy: Path, arguments: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    file, spoil, reason = DAMAGES[case]
    spoil(copy / "checkpoint-3" / file)
    training = parse_arguments(arguments(backbone="none", output=copy, resume_from_checkpoint="true", **SAVING)).training
    with caplog.at_level(logging.WARNING):
        assert find_resume_checkpoint(training) == copy / "checkpoint-2"
    (warning,) = [record.message for record in caplog.records if "is incomplete" in record.message]
    assert "checkpoint-3" in warning
    training.resume_from_checkpoint = str(copy / "checkpoint-3")
    with pytest.raises(
        UserError, match=rf"checkpoint-3 is incomplete: {reason}.*; beside it are checkpoint-2, checkpoint-1"
    ):
        find_resume_checkpoint(training)


def test_going_on_from_before_a_damaged_checkpoint_replaces_it_and_ends_with_the_same_weights(
    run: Path, copy: Path, arguments: Callable[..., list[str]]
) -> None:
    cut(copy / "checkpoint-2" / "optimizer.pt")
    cut(copy / "checkpoint-3" / "optimizer.pt")
    finetune(arguments(backbone="none", output=copy, resume_from_checkpoint="true", **SAVING))
    assert [find_corruption(copy / f"checkpoint-{step}") for step in (1, 2, 3)] == [None] * 3
    expected, found = adapter_weights(run), adapter_weights(copy)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert not (copy / STAGING_FOLDER).exists()


@pytest.mark.parametrize("value", ["true", "True", True])
def test_true_without_a_whole_checkpoint_begins_anew_and_says_so(
    value: Any, arguments: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    training = parse_arguments(arguments(backbone="none")).training
    training.resume_from_checkpoint = value
    with caplog.at_level(logging.WARNING):
        assert find_resume_checkpoint(training) is None
    assert "checkpoint-1 is incomplete (no complete.json" in caplog.text
    assert "holds no complete checkpoint-N; the run begins anew" in caplog.text


def test_the_best_checkpoint_is_recorded_where_it_lies_and_not_where_it_was_written(
    arguments: Callable[..., list[str]],
) -> None:
    changes = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": "true", "limit_eval": 4}
    output = finetune(arguments(backbone="none", **{**SAVING, **changes}))
    for folder in output.glob("checkpoint-*"):
        state = json.loads((folder / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == f"checkpoint-{state['best_global_step']}"
        assert find_corruption(folder) is None


def test_the_best_checkpoint_is_kept_when_a_run_goes_on_in_a_folder_that_moved(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = iter(range(100, 0, -1))
    monkeypatch.setattr(llm_mer.training.trainer, "summarise", lambda *_: {"eval_score": float(next(falling))})
    changes: dict[str, Any] = {**SAVING, "eval_strategy": "steps", "eval_steps": 1, "limit_eval": 4, "max_steps": 4}
    changes |= {"load_best_model_at_end": "true"}
    output = finetune(arguments(backbone="none", **{**changes, "save_total_limit": 4}))
    state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 1  # of what falls the first is the best
    moved = output.rename(tmp_path / "moved")
    shutil.rmtree(moved / "checkpoint-4")
    finetune(arguments(backbone="none", output=moved, resume_from_checkpoint="true", **{**changes, "save_total_limit": 2}))
    state = json.loads((moved / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == "checkpoint-1"
    assert find_corruption(moved / "checkpoint-1") is None


def test_a_run_that_goes_on_from_its_last_step_loads_the_best_one_and_refuses_to_go_on_without_it(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed after its last checkpoint, before the best one was loaded and saved."""
    falling = iter(range(100, 0, -1))
    monkeypatch.setattr(llm_mer.training.trainer, "summarise", lambda *_: {"eval_score": float(next(falling))})
    changes: dict[str, Any] = {**SAVING, "eval_strategy": "steps", "eval_steps": 1, "limit_eval": 4, "max_steps": 2}
    changes |= {"load_best_model_at_end": "true", "save_total_limit": 4, "backbone": "none"}
    whole = finetune(arguments(**changes))
    for name, lost in (("killed", ()), ("lost", ("checkpoint-1",))):
        for step in ("checkpoint-1", "checkpoint-2"):
            if step not in lost:
                shutil.copytree(whole / step, tmp_path / name / step)
    killed = finetune(arguments(output=tmp_path / "killed", resume_from_checkpoint="true", **changes))
    for name in ("model.safetensors", "trainer_state.json"):
        assert (killed / name).exists() == (whole / name).exists()
    best = json.loads((killed / "trainer_state.json").read_text())["best_model_checkpoint"]
    assert best == "checkpoint-1"
    assert weights_digest(killed) == weights_digest(whole) == weights_digest(whole / "checkpoint-1")
    with pytest.raises(UserError, match=r"the best checkpoint so far, checkpoint-1, lies not in .*load_best_model_at_end"):
        finetune(arguments(output=tmp_path / "lost", resume_from_checkpoint="true", **changes))


def test_a_run_that_begins_anew_goes_on_from_nothing_that_another_left(
    copy: Path, arguments: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    changes = {**SAVING, "save_steps": 2, "max_steps": 2, "overwrite_output_dir": "true"}
    with caplog.at_level(logging.WARNING):
        finetune(arguments(backbone="none", output=copy, **changes))
    assert "going on from" not in caplog.text
    assert [path.name for path in list_checkpoints(copy)] == ["checkpoint-2"]


@pytest.mark.parametrize("changes", [{"seed": 8}, {"learning_rate": "1e-3"}])
def test_another_seed_or_learning_rate_is_another_run(
    changes: dict[str, Any], copy: Path, arguments: Callable[..., list[str]]
) -> None:
    given = {**SAVING, **changes, "resume_from_checkpoint": "true"}
    with pytest.raises(UserError, match=f"is of another run: {next(iter(changes))}: "):
        build_trainer(parse_arguments(arguments(backbone="none", output=copy, **given)))


def test_a_checkpoint_is_deleted_under_another_name_and_those_of_steps_to_come_go_first(tmp_path: Path) -> None:
    for step in (4, 8, 16, 24):
        (tmp_path / f"checkpoint-{step}").mkdir()
    writer = CheckpointWriter(tmp_path, "checkpoint-12", ProcessGroup(), True)
    for keep, left in ((4, {4, 8, 12, 24}), (3, {4, 8, 12}), (2, {4, 12}), (1, {4, 12})):
        writer.prepare()
        (writer.staging / "checkpoint-12").mkdir(parents=True)
        writer.commit(keep, str(tmp_path / "checkpoint-4"))
        assert {int(path.name.rpartition("-")[2]) for path in list_checkpoints(tmp_path)} == left, keep
        assert not writer.staging.exists()


# --- an end in the middle of saving -----------------------------------------------------------------------------------


class Killed(BaseException):
    """As sudden as a signal: nothing of ours runs after it but the interpreter's own unwinding."""


@pytest.mark.parametrize("place", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_run_that_ends_while_saving_leaves_nothing_under_the_new_name(
    place: str, arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = getattr(Trainer, place)

    def killed(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        done(self, *args, **kwargs)
        if self.state.global_step == 2:
            raise Killed

    monkeypatch.setattr(Trainer, place, killed)
    with pytest.raises(Killed):
        finetune(arguments(backbone="none", **SAVING))
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert last_complete_checkpoint(tmp_path / "run", ProcessGroup(), True) == tmp_path / "run" / "checkpoint-1"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    yield folder
    gc.collect()  # the frames of the error, which hold a file that could not be written open
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_leaves_the_checkpoints_before_whole_and_the_message_names_the_last(
    small_disk: Path, arguments: Callable[..., list[str]]
) -> None:
    output = small_disk / "run"
    changes = {**SAVING, "max_steps": 12, "save_total_limit": 12}
    with pytest.raises(
        UserError, match=r"no space left on the disk of .*checkpoint-[0-9]+ is complete; go on from there"
    ) as told:
        finetune(arguments(backbone="none", output=output, **changes))
    assert "\n" not in str(told.value)
    kept = list(output.glob("checkpoint-*"))
    assert kept
    assert not [path for path in kept if find_corruption(path) is not None]
    assert not (output / STAGING_FOLDER).exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_full_disk_in_the_middle_of_saving_keeps_the_checkpoint_before_although_one_is_to_be_kept(
    error: Exception, arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(content: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-2" in str(target):
            Path(target).write_bytes(b"a beginning")
            raise error
        save(content, target, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"no space left on the disk.*checkpoint-1 is complete"):
        finetune(arguments(backbone="none", **{**SAVING, "save_total_limit": 1}))
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert find_corruption(tmp_path / "run" / "checkpoint-1") is None


def test_another_error_while_saving_is_not_called_a_full_disk(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "not allowed")

    monkeypatch.setattr(Trainer, "_save_rng_state", broken)
    with pytest.raises(PermissionError, match="not allowed"):
        finetune(arguments(backbone="none", **SAVING))


def test_nodes_that_share_no_disk_go_on_from_a_step_that_is_whole_on_each(
    run: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes as two threads, each with a folder of its own."""
    cut(copy / "checkpoint-3" / "optimizer.pt")
    together, said, found = threading.Barrier(2, timeout=20), [None, None], {}

    def gather(self: ProcessGroup, value: Any) -> list[Any]:
        said[self.rank] = value
        together.wait()
        everything = list(said)
        together.wait()
        return everything

    def node(rank: int) -> None:
        found[rank] = last_complete_checkpoint((run, copy)[rank], ProcessGroup(rank, 2), True)

    monkeypatch.setattr(ProcessGroup, "gather", gather)
    nodes = [threading.Thread(target=node, args=(rank,)) for rank in (0, 1)]
    for each in nodes:
        each.start()
    for each in nodes:
        each.join()
    assert found == {0: run / "checkpoint-2", 1: copy / "checkpoint-2"}


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 5), (signal.SIGINT, 12)])
def test_a_signal_ends_training_with_a_checkpoint_from_which_it_goes_on_exactly(
    number: signal.Signals, step: int, arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 12 is the last of an epoch: its evaluation and its moving average belong to what is saved."""
    changes = {
        "backbone": "none",
        "adapter": "lsgmer",
        "moving_average_alpha": 0.5,
        "dropout": 0.2,
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": "true",
        "limit_eval": 8,
    }
    whole = finetune(arguments(output=tmp_path / "whole", **changes))
    proper, before = Trainer.training_step, signal.getsignal(number)

    def interrupted(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), number)
        return proper(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", interrupted)
        with pytest.raises(
            Interrupted, match=rf"stopped by {number.name} after step {step}; .*checkpoint-{step} is complete"
        ):
            finetune(arguments(**changes))
    assert signal.getsignal(number) is before
    resumed = finetune(arguments(resume_from_checkpoint="true", **changes))
    expected, found = adapter_weights(whole), adapter_weights(resumed)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())

    def scores(folder: Path) -> list[float]:
        return [line["eval_score"] for line in json.loads((folder / "log_history.json").read_text()) if "eval_score" in line]

    assert scores(whole) == scores(resumed)


def test_a_checkpoint_of_an_epochs_last_step_holds_the_work_of_its_end(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    changes = {
        "backbone": "none",
        "adapter": "lsgmer",
        "moving_average_alpha": 0.5,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 12,
    }
    whole = finetune(arguments(output=tmp_path / "whole", **changes))
    assert json.loads((whole / "checkpoint-12" / "trainer_state.json").read_text())["epoch"] == 1
    resumed = finetune(arguments(resume_from_checkpoint=whole / "checkpoint-12", **changes))
    expected, found = adapter_weights(whole), adapter_weights(resumed)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_the_seal_covers_files_in_folders(tmp_path: Path) -> None:
    """DeepSpeed and FSDP write folders of their own."""
    (tmp_path / "global_step1").mkdir()
    (tmp_path / "global_step1" / "shard.pt").write_bytes(b"x" * 100)
    write_completion_marker(tmp_path)
    assert find_corruption(tmp_path) is None
    cut(tmp_path / "global_step1" / "shard.pt")
    assert find_corruption(tmp_path) == "global_step1/shard.pt has 50 bytes, 100 were written"


def test_training_from_python_leaves_other_threads_signals_alone(arguments: Callable[..., list[str]]) -> None:
    found: list[Path] = []
    thread = threading.Thread(target=lambda: found.append(finetune(arguments(backbone="none", max_steps=1))))
    thread.start()
    thread.join()
    assert found


def test_a_trainer_built_and_used_by_hand_saves_whole_checkpoints_too(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    build_trainer(parse_arguments(arguments(backbone="none", **SAVING))).train()
    assert find_corruption(tmp_path / "run" / "checkpoint-3") is None

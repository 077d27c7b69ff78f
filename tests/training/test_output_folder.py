"""A finished model is never lost to a run that is incomplete: refused, built beside, and told in one line."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adapter_weights, training_options
from forked import Copy
from lock_holder import held_by_another

import llm_mer.training.run
from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.cli.main import main
from llm_mer.cli.train import finetune
from llm_mer.errors import UserError
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.storage.locks import lock_output
from llm_mer.training.atomic_checkpoints import list_checkpoints
from llm_mer.training.output_folder import finished_content, is_run_file, overwriting_folder, rename_outdated_model_card

Arguments = Callable[..., list[str]]
SAVING: dict[str, Any] = {
    "save_strategy": "steps",
    "save_steps": 1,
    "max_steps": 2,
    "limit_train": 16,
    "save_total_limit": 3,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, store: Path, backbones: dict[str, Path]) -> Path:
    """Two steps on a backbone that is copied into the checkpoint, each saved."""
    return finetune(training_options(store, backbones["llama"], tmp_path_factory.mktemp("finished") / "run", **SAVING))


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def around(output: Path) -> list[str]:
    """What lies beside a folder."""
    return sorted(path.name for path in output.parent.iterdir() if path.name != output.name)


def test_everything_a_training_writes_is_known_as_its_own(finished: Path) -> None:
    assert [path.name for path in finished.iterdir() if not is_run_file(path.name)] == []
    assert not is_run_file("notes.txt")
    assert not is_run_file("seed-1")


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_model_is_refused_before_anything_is_changed(
    resume: bool, output: Path, backbones: dict[str, Path], arguments: Arguments
) -> None:
    """With resume and no checkpoint left to go on from, too."""
    changes = {**SAVING, "backbone": backbones["glm"], "seed": 7}
    if resume:
        for path in list_checkpoints(output):
            shutil.rmtree(path)
        changes["resume_from_checkpoint"] = "true"
    before = content(output)
    with pytest.raises(UserError, match=rf"output_dir: {output} holds a finished model; .*--overwrite_output_dir") as caught:
        finetune(arguments(output=output, **changes))
    assert "\n" not in str(caught.value)
    assert content(output) == before
    assert around(output) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [("notes.txt", "what no training wrote: notes.txt"), ("checkpoint-5/thesis.tex", "the last checkpoint-5")],
)
def test_foreign_files_and_checkpoints_are_refused(name: str, told: str, tmp_path: Path, arguments: Arguments) -> None:
    (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(UserError, match=f"{told}.*; .*--overwrite_output_dir"):
        finetune(arguments(backbone="none", **SAVING))
    assert content(tmp_path / "run") == {name: b"mine"}


def test_a_run_that_dies_while_it_overwrites_leaves_the_old_model_and_goes_on(
    output: Path,
    backbones: dict[str, Path],
    arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = {**SAVING, "backbone": backbones["glm"], "seed": 7, "overwrite_output_dir": "true"}
    alone = finetune(arguments(output=tmp_path / "alone", **changes))
    (output / "notes.txt").write_text("mine")
    before = content(output)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(llm_mer.training.run, "save_final", die)
        with pytest.raises(KeyboardInterrupt):
            finetune(arguments(output=output, **changes))
    assert content(output) == before
    MerPipeline.from_pretrained(str(output))
    assert list_checkpoints(overwriting_folder(output))
    with pytest.raises(UserError, match=r"holds a finished model; .*\.run\.overwriting is left of a run"):
        finetune(arguments(output=output, **{**changes, "overwrite_output_dir": "false"}))
    shutil.rmtree(overwriting_folder(output) / "checkpoint-2")
    with caplog.at_level(logging.INFO):
        finetune(arguments(output=output, **changes, resume_from_checkpoint="true"))
    assert "going on from" in caplog.text
    expected, found = adapter_weights(alone), adapter_weights(output)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert (output / "notes.txt").read_text() == "mine"
    manifest = RunManifest.load(output)
    assert manifest.complete
    assert manifest.options["training"]["output_dir"] == str(output)
    assert around(output) == ["alone"]
    MerPipeline.from_pretrained(str(output))


def test_without_resume_an_unfinished_overwriting_begins_anew(output: Path, arguments: Arguments) -> None:
    left = overwriting_folder(output)
    shutil.copytree(output / "checkpoint-2", left / "checkpoint-2")
    finetune(arguments(backbone="none", output=output, overwrite_output_dir="true", **{**SAVING, "max_steps": 1}))
    assert [path.name for path in list_checkpoints(output)] == ["checkpoint-1"]
    assert around(output) == []


def test_a_checkpoint_of_an_unfinished_overwriting_is_gone_on_with_though_the_old_folder_is_gone(
    output: Path, arguments: Arguments, backbones: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    left = overwriting_folder(output)
    output.rename(left)
    shutil.rmtree(left / "checkpoint-2")
    changes = {**SAVING, "backbone": backbones["llama"], "resume_from_checkpoint": left / "checkpoint-1"}
    with caplog.at_level(logging.INFO):
        finetune(arguments(output=output, overwrite_output_dir="true", **changes))
    assert "going on from" in caplog.text
    assert RunManifest.load(output).complete
    assert [path.name for path in list_checkpoints(output)] == ["checkpoint-2", "checkpoint-1"]
    assert around(output) == []


@pytest.mark.parametrize("new_is_there", [True, False])
def test_a_kill_between_the_two_renames_is_completed(new_is_there: bool, output: Path, arguments: Arguments) -> None:
    beside = overwriting_folder(output)
    whole = content(output)
    old = output.rename(beside.with_name(f"{beside.name}.old"))
    if new_is_there:
        shutil.copytree(old, beside)
        (old / "log_history.json").write_text("old")
    with pytest.raises(UserError, match="holds a finished model"):
        finetune(arguments(backbone="none", output=output, **SAVING))
    assert content(output) == whole
    assert around(output) == []


def test_a_beginning_without_a_checkpoint_is_begun_again(
    arguments: Arguments, backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("llm_mer.training.trainer.MerTrainer.train", die)
        with pytest.raises(KeyboardInterrupt):
            finetune(arguments(**SAVING))
    assert (tmp_path / "run" / "backbone").is_dir()
    assert RunManifest.load(finetune(arguments(**SAVING))).complete


def test_a_finished_run_that_goes_on_keeps_its_manifest_until_its_end(
    output: Path, arguments: Arguments, backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = (output / "run_manifest.json").read_bytes()
    weights = adapter_weights(output)
    changes = {**SAVING, "backbone": backbones["llama"], "resume_from_checkpoint": "true"}

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(llm_mer.training.run, "drop_training_only_parameters", die)
        with pytest.raises(KeyboardInterrupt):
            finetune(arguments(output=output, **changes))
    assert (output / "run_manifest.json").read_bytes() == manifest
    assert all(torch.equal(value, adapter_weights(output)[name]) for name, value in weights.items())
    finetune(arguments(output=output, **changes))
    assert RunManifest.load(output).complete


def test_a_second_training_into_the_same_folder_is_refused(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    with held_by_another(tmp_path / "run") as first:
        assert main(["train", *arguments(backbone="none", **SAVING)]) == 2
    assert f"run is being written by process {first} on " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moment", ["first step", "last step"])
def test_an_output_folder_removed_while_it_is_written_is_an_error(
    moment: str, tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_mer.training.trainer import HeadTrainer

    def remove_then(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            result = call(*args, **options)
            shutil.rmtree(tmp_path / "run")
            return result

        return wrapper

    if moment == "first step":
        monkeypatch.setattr(HeadTrainer, "training_step", remove_then(HeadTrainer.training_step))
    else:
        monkeypatch.setattr(llm_mer.training.run, "save_final", remove_then(llm_mer.training.run.save_final))
    with pytest.raises(UserError, match=r"run: it was removed or moved while it was being written"):
        finetune(arguments(backbone="none", **{**SAVING, "save_strategy": "no", "max_steps": 1}))


def test_a_symbolic_link_leads_to_the_disk_where_the_new_run_is_built(output: Path, arguments: Arguments) -> None:
    other = output.parent / "elsewhere"
    other.mkdir()
    link = other / "link"
    link.symlink_to(output)
    finetune(arguments(backbone="none", output=link, overwrite_output_dir="true", **{**SAVING, "max_steps": 1}))
    assert link.is_symlink()
    assert [path.name for path in list_checkpoints(output)] == ["checkpoint-1"]


def test_a_killed_training_holds_nothing(tmp_path: Path, arguments: Arguments) -> None:
    command = ["train", *arguments(backbone="none", **{**SAVING, "max_steps": 10000})]
    training = Copy.start(lambda: main(command), tmp_path / "printed")
    while not (training.output.is_file() and "{'loss'" in training.output.read_text()):
        assert training.process.is_alive(), training.errors.read_text()
        time.sleep(0.01)
    pid = training.process.pid
    with pytest.raises(UserError, match=f"is being written by process {pid} on "), lock_output(tmp_path / "run"):
        pass
    training.process.kill()
    training.process.join()
    with lock_output(tmp_path / "run"):
        pass
    assert not list(tmp_path.glob(".*"))


def test_the_card_of_a_replaced_model_is_set_aside_and_a_users_own_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, text, kept in (
        ("ours", "---\nlanguage: en\nlibrary_name: llm_mer\n---\n\n# x\n", False),
        ("users", "# My model\nlibrary_name: llm_mer\n", True),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "README.md").write_text(text)
        with caplog.at_level(logging.WARNING, "llm_mer"):
            rename_outdated_model_card(folder)
        assert (folder / "README.md").exists() is kept
        assert (folder / "README.before.md").exists() is not kept
        assert (str(folder / "README.md") in caplog.text) is not kept


def test_an_overwritten_model_has_no_card_of_the_model_before(output: Path, arguments: Arguments) -> None:
    assert main(["card", str(output)]) == 0
    written = (output / "README.md").read_text()
    finetune(arguments(output=output, overwrite_output_dir="true", **{**SAVING, "seed": 8}))
    assert not (output / "README.md").exists()
    assert (output / "README.before.md").read_text() == written
    assert finished_content(output) == "holds a finished model"

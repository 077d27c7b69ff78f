"""``finetune.py`` as its users start it: alone and by accelerate."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from conftest import ROOT, training_options
from launchers import ACCELERATE, answers, history, launch


def test_accelerate_trains_evaluates_and_leaves_a_checkpoint_that_answers(
    backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"tasks: [emotion, sentiment]\ndata: {store}\nmax_steps: 3\neval_strategy: steps\neval_steps: 3\n")
    argv = training_options(
        None,
        backbones["llama"],
        tmp_path / "run",
        tasks=None,
        eval_strategy=None,
        num_train_epochs=None,
        config=config,
    )
    result = launch(ACCELERATE, argv)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "emotion [en] n=16: accuracy" in result.stdout
    assert len(history(tmp_path / "run")) == 3
    assert len(answers(tmp_path / "run", store)) == 12


def test_a_mistake_ends_in_one_line_without_a_traceback(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["finetune.py", *training_options(store, "none", tmp_path / "run", tasks=["mood"])])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "finetune.py"), run_name="__main__")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("finetune.py: unknown task 'mood'")
    assert len(error.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["options", "file"])
def test_accelerate_on_a_cpu_asked_for_two_processes_is_refused_with_the_command_that_works(
    how: str, store: Path, tmp_path: Path
) -> None:
    """accelerate starts one process here and says nothing."""
    config = tmp_path / "accelerate.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    asked = {"options": ["--cpu", "--num_processes", "2"], "file": ["--config_file", str(config)]}[how]
    result = launch([*ACCELERATE[:3], "--quiet", *asked], training_options(store, "none", tmp_path / "run"))
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("finetune.py: ")]
    assert "asked for several processes and started one" in line
    assert "torchrun --standalone --nproc_per_node N finetune.py" in line
    assert not (tmp_path / "run").exists()

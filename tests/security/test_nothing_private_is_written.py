"""Nothing that a run, an evaluation or a report leaves behind names the user's folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_utterances, options

from llm_mer.cli.main import main
from llm_mer.cli.train import finetune
from llm_mer.data.store import write_store

SECRET = "telltale-user-name"


def telltales(folder: Path) -> list[str]:
    """Files in which the name stands, as text or as it is written in UTF-16 or escaped."""
    words = (SECRET.encode(), SECRET.encode("utf-16-le"))
    found = [path for path in folder.rglob("*") if path.is_file() and any(word in path.read_bytes() for word in words)]
    return sorted(path.relative_to(folder).as_posix() for path in found)


@pytest.fixture
def home(tmp_path: Path, backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the name in it, which holds a store, a backbone and questions of one's own."""
    home = tmp_path / SECRET
    home.mkdir()
    write_store([*make_utterances("train", 16), *make_utterances("valid", 8), *make_utterances("test", 8)], home / "store")
    shutil.copytree(backbones["llama"], home / "backbone")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home


@pytest.fixture
def prompt(home: Path) -> Path:
    path = home / "own.yaml"
    shutil.copy(next(Path(__file__).parents[2].glob("prompts/short_en_classification.yaml")), path)
    return path


def command(arguments: Callable[..., list[str]], home: Path, **changes: object) -> list[str]:
    chosen: dict[str, object] = {
        "data": home / "store",
        "backbone": home / "backbone",
        "output": home / "run",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": "true",
        "max_steps": 2,
    }
    return arguments(**{**chosen, **changes})


def test_a_training_an_evaluation_and_a_report_name_no_folder(
    arguments: Callable[..., list[str]], home: Path, prompt: Path
) -> None:
    finetune(command(arguments, home, prompts=["short", prompt], languages=["zh", "en"]))
    assert (home / "run" / "checkpoint-2").is_dir()
    assert telltales(home / "run") == []
    evaluate = options(checkpoint=home / "run", data=home / "store", output=home / "evaluation", resamples=10)
    assert main(["evaluate", *evaluate]) == 0
    report = options(evaluations=home / "evaluation", output=home / "report.html")
    assert main(["report", *report]) == 0
    manifest = home / "clips.jsonl"
    manifest.write_text('{"id": "a", "text": "the train leaves at nine"}\n')
    infer = options(checkpoint=home / "run", manifest=manifest, output=home / "answers.jsonl")
    assert main(["infer", *infer]) == 0
    assert (home / "answers.jsonl").is_file()
    assert telltales(home) == []


def test_a_run_that_starts_from_another_names_no_folder_and_resumes(arguments: Callable[..., list[str]], home: Path) -> None:
    first = finetune(command(arguments, home, output=home / "first"))
    chosen = command(arguments, home, init_checkpoint=first)
    chosen = [
        word for name, value in zip(chosen[::2], chosen[1::2], strict=True) if "lora" not in name for word in (name, value)
    ]
    finetune(chosen)
    assert telltales(home / "run") == []
    shutil.rmtree(home / "run" / "checkpoint-2")
    finetune([*chosen, "--resume_from_checkpoint", "true"])


def test_a_run_without_folders_in_it_resumes_with_its_best_checkpoint(
    arguments: Callable[..., list[str]], home: Path
) -> None:
    finetune(command(arguments, home))
    whole = (home / "run" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(home / "run" / "checkpoint-2")
    for path in (home / "run").iterdir():
        if path.is_file():
            path.unlink()
    moved = (home / "run").rename(home / "moved")
    finetune(command(arguments, home, output=moved, resume_from_checkpoint="true"))
    assert (moved / "adapter_model.safetensors").read_bytes() == whole


def test_a_run_without_folders_in_it_is_reproduced_from_any_folder(
    arguments: Callable[..., list[str]], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(command(arguments, home))
    for name, place in (("here", home), ("there", tmp_path)):
        os.chdir(place)
        assert main(["reproduce", *options(run=home / "run", output=home / name)]) == 0
        assert "agrees bit for bit" in capsys.readouterr().out
    (home / "store").rename(tmp_path / "away")
    assert main(["reproduce", *options(run=home / "run", output=home / "third")]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["reproduce", *options(run=home / "run", output=home / "third", data=tmp_path / "away")]) == 0

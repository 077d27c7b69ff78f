"""A pushed checkpoint loads again by its name, is private unless told otherwise, and tells nothing of this machine."""

import getpass
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from conftest import make_utterances
from huggingface_hub import ModelCard

from llm_mer import MerPipeline, push_to_hub, register_auto_classes
from llm_mer.cli.main import main
from llm_mer.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StubHub:
    """A hub whose repositories lie in the hub library's own cache, where it finds them offline."""

    cache: Path
    public: set[str] = field(default_factory=set)
    made: list[tuple[str, bool]] = field(default_factory=list)
    refuses: Exception | None = None

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        if self.refuses is not None:
            raise self.refuses
        self.made.append((repo_id, private))
        if not private:
            self.public.add(repo_id)

    def repo_info(self, repo_id: str) -> Any:
        return type("Info", (), {"private": repo_id not in self.public})

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]) -> Any:
        place = self.cache / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder_path, place / "snapshots" / COMMIT)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(COMMIT)
        return type("Commit", (), {"commit_url": f"https://hub.example/{repo_id}/commit/{COMMIT}"})

    def files(self, repo_id: str) -> Path:
        return self.cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / COMMIT


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubHub:
    stub = StubHub(tmp_path / "hub")
    stub.cache.mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(stub.cache))
    monkeypatch.chdir(tmp_path)
    return stub


def test_what_was_pushed_answers_as_the_folder_does(trained: Path, hub: StubHub) -> None:
    address = push_to_hub(trained, "someone/mer")
    assert address == f"https://hub.example/someone/mer/commit/{COMMIT}"
    assert hub.made == [("someone/mer", True)]
    asked = make_utterances("test", 4, seed=3)

    def answers(checkpoint: Path | str) -> list[dict[str, Any]]:
        found = [prediction.to_dict() for prediction in MerPipeline.from_pretrained(checkpoint)(asked)]
        return [{name: value for name, value in answer.items() if name != "seconds"} for answer in found]

    assert answers("someone/mer") == answers(trained)


def test_auto_model_loads_what_was_pushed_by_its_name(trained: Path, hub: StubHub) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    from llm_mer.checkpoints.loading import load_checkpoint

    push_to_hub(trained, "someone/mer")
    register_auto_classes()
    assert AutoConfig.from_pretrained("someone/mer").model_type == "llm_mer"
    found = AutoModel.from_pretrained("someone/mer").state_dict()
    expected = load_checkpoint(trained, device="cpu").model.state_dict()
    assert found.keys() == expected.keys()
    # PEFT keeps the fusion adapter's untrained values as well, which are drawn anew.
    assert all(torch.equal(value, expected[name]) for name, value in found.items() if "original_module" not in name)


def test_no_file_that_was_pushed_names_this_machine_and_none_is_pickled(trained: Path, hub: StubHub) -> None:
    push_to_hub(trained, "someone/mer")
    files = [path for path in hub.files("someone/mer").rglob("*") if path.is_file()]
    names = {str(path.relative_to(hub.files("someone/mer"))) for path in files}
    assert {
        "llm_mer.json",
        "config.json",
        "run_manifest.json",
        "checksums.json",
        "README.md",
        "backbone/config.json",
    } <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth", ".py"))}
    assert not {"trainer_state.json", "log_history.json"} & names
    for path in files:
        content = path.read_bytes()
        for own in (str(trained.parent), str(Path.home()) + "/", f"/{getpass.getuser()}/"):
            assert own.encode() not in content, path.name


def test_a_card_of_the_users_own_is_pushed_and_else_one_is_made(copied: Path, hub: StubHub) -> None:
    push_to_hub(copied, "someone/made", license="mit")
    assert ModelCard((hub.files("someone/made") / "README.md").read_text()).data.license == "mit"
    (copied / "README.md").write_text("# Mine\n")
    push_to_hub(copied, "someone/mine")
    assert (hub.files("someone/mine") / "README.md").read_text() == "# Mine\n"


def test_a_public_repository_is_not_pushed_to_unasked(
    trained: Path, hub: StubHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.public.add("someone/mer")
    assert main(["push", str(trained), "someone/mer"]) == 2
    assert "someone/mer: the repository is public, but a private one was requested" in capsys.readouterr().err
    assert not hub.files("someone/mer").exists()
    assert main(["push", str(trained), "someone/mer", "--public"]) == 0
    assert hub.files("someone/mer").is_dir()


@pytest.mark.parametrize("name", ["mer", "a/b/c", "../mer", "someone/", "/mer", "some one/mer"])
def test_a_name_that_is_none_on_the_hub_is_refused(name: str, trained: Path, hub: StubHub) -> None:
    with pytest.raises(UserError, match="is not a repository name; use OWNER/NAME"):
        push_to_hub(trained, name)
    assert hub.made == []


def test_a_checkpoint_whose_backbone_would_be_missing_is_not_pushed(copied: Path, hub: StubHub) -> None:
    import json

    entry = json.loads((copied / "llm_mer.json").read_text())
    entry["backbone"]["folder"] = None
    (copied / "llm_mer.json").write_text(json.dumps(entry))
    with pytest.raises(UserError, match="its backbone 'backbone-llama' is a local folder that was not copied into it"):
        push_to_hub(copied, "someone/mer")
    assert hub.made == []


def test_without_a_token_or_with_a_refusal_of_the_hub_it_is_one_line(
    trained: Path, hub: StubHub, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError

    for error, words in (
        (
            LocalTokenNotFoundError("Token is required\nmore"),
            "pushing needs a token of the hub: `hf auth login`, or HF_TOKEN",
        ),
        (OSError("403 Forbidden\nmore"), "the hub cannot be reached or refused the upload: 403 Forbidden"),
    ):
        hub.refuses = error
        assert main(["push", str(trained), "someone/mer"]) == 2
        printed = capsys.readouterr().err.splitlines()
        assert printed[-1] == f"llm-mer push: someone/mer: {words}"


def test_offline_nothing_is_pushed(trained: Path) -> None:
    with pytest.raises(UserError, match=r"someone/mer: the hub cannot be reached or refused the upload: .*offline"):
        push_to_hub(trained, "someone/mer")

"""Help of a training: short, quick and true."""

import subprocess
import sys

import pytest
from conftest import run_environment

from llm_mer.cli.main import main
from llm_mer.cli.train import finetune
from llm_mer.cli.train_help import full_help, requested_help, short_help
from llm_mer.errors import UserError
from llm_mer.training.options import GROUPS
from llm_mer.training.run_config import options_of_run


def options_shown(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.startswith("  --")]


def test_the_short_help_shows_the_options_people_change_by_group_config_first() -> None:
    text = short_help("finetune.py")
    shown = options_shown(text)
    assert shown[0] == "--config"
    assert 25 <= len(shown) <= 45
    assert [line.rstrip(":") for line in text.splitlines() if line.rstrip(":") in GROUPS] == list(GROUPS)
    known = {f"--{option.name}" for option in options_of_run("egmf")}
    assert set(shown[1:]) <= known
    assert "--help_all" in text
    assert "examples:" in text


def test_help_beside_a_manifest_shows_the_options_of_a_table() -> None:
    with_table = requested_help(["--manifest", "clips.csv", "--help"], "llm-mer train")
    assert with_table is not None
    for option in ("--manifest MANIFEST", "--targets", "--range", "--classes", "--dry_run", "--split_by", "--audio"):
        assert f"  {option}" in with_table
    assert "--manifest FILE --help shows how" in short_help("finetune.py")


@pytest.mark.parametrize(("adapter", "own"), [("egmf", "--gating"), ("lsgmer", "--label_init")])
def test_the_whole_help_shows_every_option_of_a_run_with_the_adapter(adapter: str, own: str) -> None:
    shown = options_shown(full_help("finetune.py", adapter))
    assert set(shown) == {"--config", *(f"--{option.name}" for option in options_of_run(adapter))}
    assert own in shown


def test_help_of_an_adapter_that_is_not_known_names_the_choices() -> None:
    with pytest.raises(UserError, match="perceiver"):
        finetune(["--help-all", "--adapter", "perceiver"])


@pytest.mark.parametrize("words", [["-h"], ["--config", "x.yaml", "--help"]])
def test_help_ends_the_program_well(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        finetune(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out == short_help("finetune.py")


def test_llm_mer_train_has_the_same_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert capsys.readouterr().out == short_help("llm-mer train")


def test_help_imports_neither_torch_nor_transformers_nor_trl() -> None:
    program = (
        "import sys\nfrom llm_mer.cli.main import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=run_environment(), check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"

"""A checkpoint whose files are not those that were written, or whose weights are no numbers, is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import training_options
from safetensors.torch import load_file, save_file

from llm_mer.backbones.loading import load_backbone
from llm_mer.checkpoints.calibration import Calibration, Temperature
from llm_mer.checkpoints.integrity import (
    CHECKSUMS_FILE,
    COMPLETION_MARKER,
    answering_files,
    checkpoint_fingerprint,
    is_fingerprint_of,
    known_weights_digest,
    verify_checkpoint,
    write_checksums,
)
from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.checkpoints.merging import merge_checkpoint
from llm_mer.checkpoints.run_manifest import MANIFEST, weights_digest
from llm_mer.cli.main import main
from llm_mer.cli.train import finetune
from llm_mer.errors import UserError
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.model.modeling_mer import conditional_generation_of
from llm_mer.storage import fingerprints
from llm_mer.storage.fingerprints import files_sha256
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

WEIGHTS = "adapter_model.safetensors"


def flip(path: Path, place: int = -5) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def answered(folder: Path) -> list[str]:
    return sorted(json.loads((folder / CHECKSUMS_FILE).read_text())["files"])


def test_what_a_training_leaves_is_recorded_and_whole(trained: Path) -> None:
    assert {WEIGHTS, "llm_mer.json", "adapter_config.json", "tokenizer.json"} <= set(answered(trained))
    verify_checkpoint(trained)


def test_one_bit_of_any_file_that_answers_is_found_and_the_file_named(copied: Path) -> None:
    for name in answered(copied):
        whole = (copied / name).read_bytes()
        flip(copied / name, len(whole) // 2)
        with pytest.raises(UserError, match=rf"{name}: damaged or edited: it has SHA-256 \w+…, \w+… was written"):
            verify_checkpoint(copied)
        (copied / name).write_bytes(whole)
    verify_checkpoint(copied)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"])
def test_a_vocabulary_of_sentencepiece_is_recorded_under_any_of_its_names(name: str, copied: Path) -> None:
    (copied / name).write_bytes(b"pieces")
    write_checksums(copied)
    verify_checkpoint(copied)
    (copied / name).write_bytes(b"pieceS")
    with pytest.raises(UserError, match=name):
        verify_checkpoint(copied)


def test_weights_of_one_bit_less_are_not_loaded(copied: Path) -> None:
    flip(copied / WEIGHTS)
    with pytest.raises(UserError, match=f"{WEIGHTS}: damaged or edited"):
        MerPipeline.from_pretrained(copied)


def test_the_same_values_in_another_type_are_refused(copied: Path) -> None:
    save_file({name: value.half() for name, value in load_file(copied / WEIGHTS).items()}, copied / WEIGHTS)
    with pytest.raises(UserError, match=f"{WEIGHTS}: damaged or edited: it has .* bytes"):
        load_checkpoint(copied)
    save_file({name: value.int() for name, value in load_file(copied / WEIGHTS).items()}, copied / WEIGHTS)
    with pytest.raises(UserError, match=r"is torch\.int32, the description asks for torch\.float32"):
        load_checkpoint(copied)


def test_weights_of_another_run_are_refused_by_the_digest_in_the_manifest_alone(copied: Path) -> None:
    (copied / CHECKSUMS_FILE).unlink()
    state = load_file(copied / WEIGHTS)
    save_file(dict(state), copied / WEIGHTS, metadata={"other": "bytes, the same tensors"})
    verify_checkpoint(copied)
    name = next(iter(state))
    save_file({**state, name: state[name] + 1}, copied / WEIGHTS)
    with pytest.raises(UserError, match=rf"{WEIGHTS}: it has SHA-256 .* by the run that {MANIFEST} describes"):
        load_checkpoint(copied)


def test_a_checkpoint_without_a_record_is_said_and_can_be_given_one(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copied / CHECKSUMS_FILE).unlink()
    with caplog.at_level(logging.WARNING, "llm_mer"):
        verify_checkpoint(copied)
    (told,) = [record.getMessage() for record in caplog.records]
    assert str(copied / CHECKSUMS_FILE) in told
    assert f"llm-mer info --path {copied} --write_checksums" in told
    assert main(["info", "--path", str(copied), "--write_checksums"]) == 0
    caplog.clear()
    verify_checkpoint(copied)
    assert not caplog.records
    assert WEIGHTS in answered(copied)


def test_files_that_are_recorded_are_not_recorded_again(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(copied / WEIGHTS)
    before = (copied / CHECKSUMS_FILE).read_bytes()
    assert main(["info", "--path", str(copied), "--write_checksums"]) == 2
    assert f"{copied / CHECKSUMS_FILE} already records the files" in capsys.readouterr().err
    assert (copied / CHECKSUMS_FILE).read_bytes() == before


def test_a_missing_file_and_a_damaged_record_are_one_line_each(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink(missing_ok=True)
    (copied / "adapter_config.json").unlink()
    with pytest.raises(
        UserError, match=r"adapter_config\.json: the file is missing|chat_template\.jinja: the file is missing"
    ):
        verify_checkpoint(copied)
    (copied / CHECKSUMS_FILE).write_text('{"files": {"llm_mer.json": 3}}')
    with pytest.raises(UserError, match=f"{CHECKSUMS_FILE}: damaged or edited"):
        verify_checkpoint(copied)


def test_an_intermediate_checkpoint_is_verified_without_its_optimizer(
    store: Path, backbones: dict[str, Path], tmp_path: Path
):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    finetune(training_options(store, backbones["llama"], tmp_path / "run", **options))
    folder = tmp_path / "run" / "checkpoint-2"
    (folder / "optimizer.pt").unlink()
    load_checkpoint(folder)
    flip(folder / WEIGHTS)
    assert COMPLETION_MARKER not in answered(tmp_path / "run")
    with pytest.raises(UserError, match=rf"checkpoint-2/{WEIGHTS}: damaged or edited"):
        load_checkpoint(folder)


def test_a_merged_checkpoint_is_verified_too(trained: Path, tmp_path: Path) -> None:
    merged = merge_checkpoint(trained, tmp_path / "merged")
    assert {"fusion_adapter.safetensors", "llm_mer.json"} <= set(answered(merged))
    flip(merged / "fusion_adapter.safetensors")
    with pytest.raises(UserError, match=r"fusion_adapter\.safetensors: damaged or edited"):
        load_checkpoint(merged)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_model_with_one_weight_that_is_no_number_answers_nothing(value: float, copied: Path) -> None:
    state = load_file(copied / WEIGHTS)
    name = sorted(state)[3]
    state[name].view(-1)[0] = value
    save_file(state, copied / WEIGHTS)
    for record in (CHECKSUMS_FILE, MANIFEST):
        (copied / record).unlink()
    with pytest.raises(UserError, match=rf"{WEIGHTS}: {name} holds NaN or infinity"):
        MerPipeline.from_pretrained(copied)


def test_training_goes_on_from_no_checkpoint_that_was_changed(
    copied: Path, store: Path, backbones: dict[str, Path], tmp_path: Path
) -> None:
    flip(copied / WEIGHTS)
    options = training_options(
        store,
        backbones["llama"],
        tmp_path / "run",
        tasks=["emotion", "sentiment"],
        init_checkpoint=copied,
        auxiliary_head="true",
    )
    with pytest.raises(UserError, match=f"{WEIGHTS}: damaged or edited"):
        build_trainer(parse_arguments(options))


def test_a_backbone_with_a_weight_that_is_no_number_is_refused(backbones: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(backbones["llama"], tmp_path / "backbone"))
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "q_proj" in name)
    state[name][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
        load_backbone(folder)


def test_a_backbone_of_pickled_weights_is_not_opened(backbones: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(backbones["llama"], tmp_path / "backbone"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    load_backbone(folder)  # what is opened is the file beside it
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no \.safetensors file, and a \.bin file is a pickle, which is not opened"):
        load_backbone(folder)


def test_checksums_are_over_what_answers_alone(copied: Path) -> None:
    (copied / "notes.txt").write_text("mine")
    write_checksums(copied)
    assert "notes.txt" not in answered(copied)
    (copied / "notes.txt").write_text("changed")
    verify_checkpoint(copied)


def test_weights_are_read_once_by_all_that_compare_them(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    compute = fingerprints._read_digest

    def noted(kind: str, files: tuple[fingerprints.FileIdentity, ...]) -> str:
        read.extend((kind, Path(file.path).name) for file in files)
        return compute(kind, files)

    calibrate_nothing = Calibration(str(weights_digest(copied)), "data", (Temperature("emotion", "en", 2.0, 1, 1.0, 1.0),))
    calibrate_nothing.save(copied)
    monkeypatch.setattr(fingerprints, "_read_digest", noted)
    monkeypatch.setattr(fingerprints, "SETTLED_NS", -(10**18))
    for _ in range(2):  # as the seeds of one backbone are
        MerPipeline.from_pretrained(copied)
        checkpoint_fingerprint(copied)
    assert [kind for kind, name in read if name == WEIGHTS] == ["content"]
    assert [kind for kind, name in read if name == "model.safetensors"] == ["names and contents"]


def test_the_digest_of_tensors_beside_that_of_a_file_is_believed_of_this_file_alone(copied: Path) -> None:
    record = copied / CHECKSUMS_FILE
    entry = json.loads(record.read_text())
    assert entry["files"][WEIGHTS]["tensors_sha256"] == weights_digest(copied) == known_weights_digest(copied)
    state = load_file(copied / WEIGHTS)
    name = next(iter(state))
    save_file({**state, name: state[name] + 1}, copied / WEIGHTS)
    assert known_weights_digest(copied) == weights_digest(copied) != entry["files"][WEIGHTS]["tensors_sha256"]
    write_checksums(copied)  # whoever writes the record anew does not make the weights those of the run
    with pytest.raises(UserError, match=rf"{WEIGHTS}: it has SHA-256 .* by the run that {MANIFEST} describes"):
        verify_checkpoint(copied)


def test_checksums_of_a_version_before_have_no_digest_of_tensors_and_are_read(copied: Path) -> None:
    record = copied / CHECKSUMS_FILE
    entry = json.loads(record.read_text())
    del entry["files"][WEIGHTS]["tensors_sha256"]
    record.write_text(json.dumps(entry))
    verify_checkpoint(copied)
    assert known_weights_digest(copied) == weights_digest(copied)
    before = files_sha256(answering_files(copied))
    assert is_fingerprint_of(before, copied)
    assert is_fingerprint_of(checkpoint_fingerprint(copied), copied)
    flip(copied / WEIGHTS)
    assert not is_fingerprint_of(before, copied)


def test_what_other_programs_read_of_a_checkpoint_is_recorded_and_an_edit_is_refused(copied: Path) -> None:
    assert "config.json" in answered(copied)
    content = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**content, "num_pseudo_tokens": 3}))
    with pytest.raises(UserError, match=r"config\.json: damaged or edited: it has"):
        MerPipeline.from_pretrained(copied)


@pytest.mark.parametrize("name", ["added_tokens.json", "generation_config.json", "vocab.json", "chat_template.json"])
def test_a_file_that_was_added_and_would_be_read_is_refused(name: str, copied: Path) -> None:
    assert name not in answered(copied)
    (copied / name).write_text("{}")
    with pytest.raises(
        UserError, match=rf"{name}: it was not written with the checkpoint, and would change what it computes"
    ):
        load_checkpoint(copied)
    (copied / name).unlink()
    (copied / "notes.txt").write_text("the user's own")
    verify_checkpoint(copied)


def test_a_record_of_an_earlier_version_without_config_json_is_read(copied: Path) -> None:
    record = json.loads((copied / CHECKSUMS_FILE).read_text())
    del record["files"]["config.json"]
    (copied / CHECKSUMS_FILE).write_text(json.dumps(record))
    verify_checkpoint(copied)


def test_the_backbones_settings_of_generation_do_not_change_a_greedy_answer(
    backbones: dict[str, Path], copied: Path, tmp_path: Path
) -> None:
    plain = load_checkpoint(copied).model
    path = copied / "backbone" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 3.0, "suppress_tokens": [5]}))
    settings = [conditional_generation_of(model).generation_config for model in (plain, load_checkpoint(copied).model)]
    assert settings[0].to_diff_dict() == settings[1].to_diff_dict()
    assert settings[1].eos_token_id == 2


def test_a_merged_checkpoint_records_what_it_computes_with_too(copied: Path, tmp_path: Path) -> None:
    merged = merge_checkpoint(copied, tmp_path / "merged")
    assert {"config.json", "llm_mer.json", "tokenizer.json"} <= set(answered(merged))
    (merged / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json: damaged or edited"):
        load_checkpoint(merged)

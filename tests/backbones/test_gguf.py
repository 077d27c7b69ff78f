"""GGUF files as backbones: the same model as its own folder, remembered by checkpoints, and refused where not whole."""

from __future__ import annotations

import random
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gguf", reason="the package gguf is not installed")

from conftest import Shared, training_options
from gguf_files import byte_level_tokenizer, small_llama, write_gguf

from llm_mer.backbones.gguf import check_gguf
from llm_mer.backbones.gguf_header import read_gguf_header
from llm_mer.backbones.loading import load_backbone, read_tokenizer
from llm_mer.backbones.sources import find_local_backbone
from llm_mer.backbones.tiny import generate_lines
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.cli.train import finetune
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.reporting.hub_upload import stage_for_hub
from llm_mer.resources import model_packages as packages

TEXTS = ("the train leaves at nine, isn't it 2024?", "情绪：高兴", "<|im_start|>user\njoy<|im_end|>", " two  spaces")


def answers(folder: Path, store: Path, backbone: Path | None = None) -> list[list[float]]:
    pipeline = MerPipeline.from_pretrained(folder, backbone=None if backbone is None else str(backbone))
    found = pipeline(list(UtteranceStore.open(store).split("test"))[:3], tasks=["emotion"])
    return [prediction.log_probabilities for prediction in found]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level_tokenizer(list(generate_lines(0, 300)))


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return small_llama(len(tokenizer))


@pytest.fixture(scope="module")
def file(shared: Shared, model: Any, tokenizer: Any) -> Path:
    folder = shared.make("gguf", lambda folder: write_gguf(folder / "small.gguf", model, tokenizer))
    return folder / "small.gguf"


def test_a_gguf_file_is_the_model_it_was_written_from(file: Path, model: Any, tokenizer: Any) -> None:
    loaded = load_backbone(file)
    ids = torch.tensor([tokenizer(text)["input_ids"][:6] for text in TEXTS[:2]])
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, model(ids).logits, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    for text in TEXTS:
        assert loaded.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    asked = [{"role": "user", "content": "joy?"}]
    assert loaded.tokenizer.apply_chat_template(asked, tokenize=False) == tokenizer.apply_chat_template(
        asked, tokenize=False
    )
    assert loaded.tokenizer.eos_token == "<|im_end|>"


def test_a_folder_with_one_gguf_file_is_that_file(file: Path) -> None:
    by_folder, by_file = find_local_backbone(file.parent), find_local_backbone(file)
    assert by_folder is not None
    assert by_file is not None
    assert by_folder.gguf == by_file.gguf == file
    assert read_tokenizer(file.parent).get_vocab() == read_tokenizer(file).get_vocab()


def test_blocks_become_plain_weights_of_the_wanted_type(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    name = "blk.1.ffn_down.weight"
    path = write_gguf(tmp_path / "q8.gguf", model, tokenizer, quantised=(name,))
    header = read_gguf_header(path)
    tensor = header.tensors[name]
    columns, rows = tensor.shape
    raw = path.read_bytes()[header.data_start + tensor.offset :][: rows * columns // 32 * 34]
    # Q8_0: a float16 scale and 32 signed bytes a block.
    blocks = np.frombuffer(raw, dtype=np.dtype([("scale", "<f2"), ("values", "i1", 32)]))
    expected = (blocks["scale"].astype(np.float64)[:, None] * blocks["values"]).reshape(rows, columns)
    found: Any = load_backbone(path).model
    weight = found.model.layers[1].mlp.down_proj.weight
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)
    assert np.abs(weight.numpy() - model.model.layers[1].mlp.down_proj.weight.detach().numpy()).max() > 0
    assert {p.dtype for p in load_backbone(path, dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_a_dequantised_model_can_be_saved_and_names_no_quantisation(file: Path, model: Any, tmp_path: Path) -> None:
    loaded = load_backbone(file)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert "quantization" not in (tmp_path / "config.json").read_text()
    again = load_backbone(tmp_path)
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)


def test_a_checkpoint_remembers_a_gguf_file_and_loads_elsewhere(
    file: Path, model: Any, tokenizer: Any, store: Path, tmp_path: Path
) -> None:
    output = finetune(training_options(store, file, tmp_path / "run", max_steps=1))
    assert (output / "backbone" / file.name).read_bytes() == file.read_bytes()
    description = (output / "llm_mer.json").read_text()
    assert str(file.parent) not in description
    assert "gguf" not in str(CheckpointDescription.load(output).model)
    before = answers(output, store)
    moved = output.rename(tmp_path / "moved")
    assert answers(moved, store) == before
    elsewhere = Path(shutil.copy(file, tmp_path / "renamed.gguf"))
    assert answers(moved, store, elsewhere) == before
    wrong = write_gguf(tmp_path / "wrong.gguf", small_llama(len(tokenizer), seed=1), tokenizer)
    with pytest.raises(UserError, match=r"wrong\.gguf: fingerprint .*, but .* was trained on a backbone with"):
        load_checkpoint(moved, backbone=str(wrong))


def test_a_gguf_file_that_was_not_copied_must_be_named(file: Path, store: Path, tmp_path: Path) -> None:
    output = finetune(training_options(store, file, tmp_path / "run", max_steps=1, save_backbone="never"))
    assert not (output / "backbone").exists()
    with pytest.raises(UserError, match=r"local backbone 'small\.gguf', .* name its folder or file with --backbone"):
        load_checkpoint(output)
    assert len(answers(output, store, file)) == 3


@pytest.fixture
def packaged(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries the file under the short name ``small``."""
    place = tmp_path / "site" / "llm_mer_small_package"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("raise RuntimeError('the code of a package is not run')\n")
    shutil.copy(file, place / "model.gguf")
    monkeypatch.syspath_prepend(place.parent)
    entry = packages.ModelPackage(
        packages.LANGUAGE_MODEL, "Small", "llm-small", "1.0", place.name, "model.gguf", "0" * 64, 1, "MIT", "English"
    )
    monkeypatch.setattr("llm_mer.resources.model_packages.model_packages", lambda: {"small": entry})
    rooms = ("llm_mer.backbones.sources", "llm_mer.checkpoints.backbone_reference", "llm_mer.reporting.hub_upload")
    for room in rooms:
        monkeypatch.setattr(f"{room}.model_packages", lambda: {"small": entry})
    return place


def test_a_checkpoint_remembers_a_packages_model_by_its_name(packaged: Path, store: Path, tmp_path: Path) -> None:
    output = finetune(training_options(store, "small", tmp_path / "run", max_steps=1))
    assert not (output / "backbone").exists()
    reference = CheckpointDescription.load(output).backbone
    assert reference is not None
    assert (reference.name, reference.folder) == ("small", None)
    before = answers(output, store)
    (tmp_path / "staged").mkdir()
    staged = stage_for_hub(output, tmp_path / "staged", "someone/model")  # no copy is needed, the name is enough
    assert answers(staged, store) == before
    packaged.joinpath("model.gguf").rename(tmp_path / "aside.gguf")
    with pytest.raises(UserError, match=r"package llm-small, which is not installed: llm-mer get small"):
        load_checkpoint(output)
    with pytest.raises(UserError, match=r"backbone: small comes in the package llm-small, .*: llm-mer get small"):
        load_backbone("small")
    assert len(answers(output, store, tmp_path / "aside.gguf")) == 3
    data = bytearray((tmp_path / "aside.gguf").read_bytes())
    data[-1] ^= 1
    packaged.joinpath("model.gguf").write_bytes(data)
    with pytest.raises(UserError, match=r"small: fingerprint .*, but .* was trained on a backbone with"):
        load_checkpoint(output)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scaled positions": ({"llama__rope__scaling__type": "yarn"}, r"scales its positions \(rope\.scaling\.type yarn\)"),
    "factors of positions": (
        {"extra": {"rope_freqs.weight": np.ones(8, dtype=np.float32)}},
        r"scales its positions \(rope_freqs\.weight\)",
    ),
    "biases": ({"extra": {"blk.0.attn_q.bias": np.ones(64, dtype=np.float32)}}, r"has 1 biases and the model .* 0"),
    "another tokenizer": ({"tokenizer__ggml__pre": "other"}, r"tokenizer\.ggml\.pre 'other', whose rules"),
    "no rules": ({"tokenizer__ggml__pre": None}, r"has no tokenizer\.ggml\.pre"),
    "one of parts": ({"split__count": 3}, "is one of 3 parts"),
    "layers without end": ({"llama__block_count": 4_000_000_000}, "says 4000000000 layers and has 20 tensors"),
    "another width": ({"llama__embedding_length": 4_000_000_000}, r"embedding is 64 × \d+, and it says 4000000000"),
    "another architecture": ({"general__architecture": "clip"}, "holds no language model"),
    "no heads": ({"llama__attention__head_count": 0}, "damaged|shapes"),
    "too wide": ({"llama__feed_forward_length": 4_000_000_000}, "other shapes"),
    "too many heads": ({"llama__attention__head_count": 1_000_000}, "shapes|damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_read_as_it_was_trained_is_refused(case: str, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    values, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(write_gguf(tmp_path / "x.gguf", model, tokenizer, **values))
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_anywhere_is_one_line(file: Path, tmp_path: Path) -> None:
    data, path = file.read_bytes(), tmp_path / "cut.gguf"
    for length in (0, 3, 20, 24, 40, 200, 1000, 5000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut off|is no GGUF file") as caught:
            check_gguf(path)
        assert "\n" not in str(caught.value)


def test_a_header_with_any_byte_changed_is_read_or_refused(file: Path, tmp_path: Path) -> None:
    data, path, draw = file.read_bytes(), tmp_path / "changed.gguf", random.Random(0)
    start = read_gguf_header(file).data_start
    messages = []
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(start)] = draw.choice((0, 1, 127, 255))
        path.write_bytes(changed)
        try:
            check_gguf(path)
        except UserError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 300
    assert not [message for message in messages if "\n" in message]


def test_counts_beyond_the_file_are_refused_before_they_are_followed(file: Path, tmp_path: Path) -> None:
    data, path = bytearray(file.read_bytes()), tmp_path / "counts.gguf"
    for place in (8, 16):  # tensors, values
        changed = bytearray(data)
        struct.pack_into("<Q", changed, place, 2**60)
        path.write_bytes(changed)
        with pytest.raises(UserError, match=f"should name .*{2**60}"):
            check_gguf(path)
    key = data.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type")
    struct.pack_into("<Q", data, key + 8, 2**60)
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"an array of its header should have {2**60} entries"):
        check_gguf(path)


def test_what_is_named_is_found_or_refused_with_what_would_be_right(file: Path, tmp_path: Path) -> None:
    assert find_local_backbone("someone/model-7b") is None
    assert find_local_backbone("gpt2") is None
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, tmp_path / name)
    refused = {
        str(tmp_path): r"holds 2 GGUF files; name one of them: a\.gguf, b\.gguf",
        str(tmp_path / "gone.gguf"): "no such folder",
        "gone.gguf": "no such folder",
        __file__: r"is a file, and no \*\.gguf",
    }
    for source, message in refused.items():
        with pytest.raises(UserError, match=message):
            load_backbone(source)
    (tmp_path / "text.gguf").write_text("not a model, but long enough to be one")
    with pytest.raises(UserError, match=re.escape("is no GGUF file: it begins with b'not '")):
        load_backbone(tmp_path / "text.gguf")
    with pytest.raises(UserError, match=r"quantization nf4: .* is a GGUF file"):
        load_backbone(file, quantization="nf4")


def test_without_the_package_gguf_the_command_that_gets_it_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf.constants", None)
    with pytest.raises(UserError, match=r"is a GGUF file, which needs the package gguf: pip install 'llm-mer\[gguf\]'"):
        load_backbone(file)

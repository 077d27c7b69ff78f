"""The field's pretrained encoders through transformers, by hub name or local folder, with the sequence kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_mer.backbones.hub_kernels import check_hub_kernels
from llm_mer.data.schema import SAMPLE_RATE, Frames
from llm_mer.errors import UserError, first_line
from llm_mer.prompting.verbatim import Piece, VerbatimEncoder

SPEECH_MODELS = ("wavlm", "hubert", "wav2vec2", "wav2vec2-bert", "data2vec-audio", "unispeech", "unispeech-sat")
FRAME_BATCH = 32


def _load(name: str, device: str) -> tuple[Any, Any, Any]:
    """Configuration, model and torch device. Local folders never touch the network; no remote code is run."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, PreTrainedConfig

    local = Path(name).is_dir()
    try:
        check_hub_kernels(PreTrainedConfig.get_config_dict(name, local_files_only=local)[0], f"encoder {name!r}")
        config = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False)
        model, report = AutoModel.from_pretrained(
            name,
            config=config,
            local_files_only=local,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"encoder {name!r} cannot be loaded; give a hub name or a folder with config.json and weights: {error}"
        ) from None
    missing, total = len(report["missing_keys"]), len(model.state_dict())
    if missing > total / 2:  # a head that a checkpoint lacks is usual, a body is not
        raise UserError(f"encoder {name!r}: the weights are of another model; {missing} of {total} tensors are not in them")
    try:
        return config, model.eval().to(device), torch.device(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise UserError(f"device is {device!r}, which this machine lacks: {first_line(error)}") from None


def _processor(name: str, kind: str) -> Any:
    import transformers

    local = Path(name).is_dir()
    try:
        return getattr(transformers, kind).from_pretrained(name, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"encoder {name!r} has no usable {kind} files: {error}") from None


def _size(config: Any, name: str, projected: bool) -> int:
    for part in (config, getattr(config, "text_config", None)):
        size = (projected and getattr(part, "projection_dim", None)) or getattr(part, "hidden_size", None)
        if size:
            return int(size)
    raise UserError(f"encoder {name!r}: its configuration gives no hidden size")


class SpeechEncoder:
    """WavLM, HuBERT, wav2vec 2.0, …: the last hidden state, 50 steps a second, ``(T, D)``; or CLAP, one step of 512.

    Sound is at 16 kHz; CLAP's own rate is reached by resampling (SciPy, polyphase).
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.config, self.model, self.device = _load(name, device)
        kind = self.config.model_type
        if kind not in (*SPEECH_MODELS, "clap"):
            raise UserError(
                f"--audio {name}: a {kind!r} model is no speech encoder; known are {', '.join(SPEECH_MODELS)}, clap"
            )
        self.is_clap = kind == "clap"
        self.extractor = _processor(name, "AutoFeatureExtractor")
        self.names = [f"{kind}_{i}" for i in range(_size(self.config, name, self.is_clap))]

    @torch.no_grad()
    def __call__(self, samples: np.ndarray) -> np.ndarray:
        rate = int(self.extractor.sampling_rate)
        if rate != SAMPLE_RATE:
            from math import gcd

            from scipy.signal import resample_poly

            common = gcd(rate, SAMPLE_RATE)
            samples = resample_poly(samples, rate // common, SAMPLE_RATE // common).astype(np.float32)
        inputs = self.extractor(samples, sampling_rate=rate, return_tensors="pt").to(self.device)
        if self.is_clap:
            return _rows(_pooled(self.model.get_audio_features(**inputs)))
        return _rows(self.model(**inputs).last_hidden_state[0])


class PictureEncoder:
    """CLIP's image features of every frame, ``(F, D)``; or a vision transformer's pooled output."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.config, self.model, self.device = _load(name, device)
        kind = self.config.model_type
        projected = hasattr(self.model, "get_image_features")
        if not (projected or hasattr(self.config, "image_size")):
            raise UserError(f"--vision {name}: a {kind!r} model is no picture encoder; use CLIP, SigLIP or ViT")
        self.processor = _processor(name, "AutoImageProcessor")
        self.names = [f"{kind}_{i}" for i in range(_size(self.config, name, projected))]

    @torch.no_grad()
    def __call__(self, frames: Frames) -> np.ndarray:
        rows = []
        for start in range(0, len(frames.pixels), FRAME_BATCH):
            pictures = list(frames.pixels[start : start + FRAME_BATCH])
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"].to(self.device)
            if hasattr(self.model, "get_image_features"):
                rows.append(_rows(_pooled(self.model.get_image_features(pixel_values=pixels))))
            else:
                rows.append(_rows(self.model(pixel_values=pixels).last_hidden_state[:, 0]))
        return np.concatenate(rows)


class TextEncoder:
    """RoBERTa, BERT or a causal language model: the last hidden state of every token, ``(T, D)``; CLAP or CLIP: one step.

    A special token that a transcript spells (``</s>``, ``[MASK]``) is read as words (:mod:`llm_mer.prompting.verbatim`).
    """

    def __init__(self, name: str, device: str = "cpu", max_tokens: int = 512) -> None:
        self.config, self.model, self.device = _load(name, device)
        kind = self.config.model_type
        projected = hasattr(self.model, "get_text_features")
        reads_tokens = self.model.main_input_name == "input_ids" and not getattr(self.config, "is_encoder_decoder", False)
        if not (projected or reads_tokens):
            raise UserError(
                f"--text {name}: a {kind!r} model is no text encoder; use RoBERTa, BERT or a causal language model"
            )
        self.tokenizer = _processor(name, "AutoTokenizer")
        self.verbatim = VerbatimEncoder(self.tokenizer)
        self.max_tokens = min(max_tokens, _max_positions(self.config))
        self.names = [f"{kind}_{i}" for i in range(_size(self.config, name, projected))]

    @torch.no_grad()
    def __call__(self, text: str) -> np.ndarray:
        ids = torch.tensor([self.token_ids(text)], dtype=torch.long, device=self.device)
        wanted = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if hasattr(self.model, "get_text_features"):
            return _rows(_pooled(self.model.get_text_features(**wanted)))
        return _rows(self.model(**wanted).last_hidden_state[0])

    def token_ids(self, text: str) -> list[int]:
        """The tokenizer's ids, cut to ``max_tokens``; special tokens in the text itself are words."""
        plain = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        words = self.verbatim.encode([Piece(text, quoted=True)])
        if words == plain:
            return list(self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"])
        around = self.tokenizer("a", return_special_tokens_mask=True)
        added = list(around["special_tokens_mask"])
        start, stop = added.index(0), len(added) - added[::-1].index(0)
        before, after = list(around["input_ids"])[:start], list(around["input_ids"])[stop:]
        return [*before, *words[: self.max_tokens - len(before) - len(after)], *after]


def _max_positions(config: Any) -> int:
    """Longest input in tokens; RoBERTa counts its positions from ``pad_token_id + 1``."""
    text = getattr(config, "text_config", None) or config
    limit = int(getattr(text, "max_position_embeddings", 512) or 512)
    return limit - (
        int(text.pad_token_id or 0) + 1 if "roberta" in text.model_type or text.model_type == "clap_text_model" else 0
    )


def _pooled(output: Any) -> Tensor:
    """The projected vector, whether the model returns a tensor or an output object (transformers 5 returns either)."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _rows(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()

"""Pretrained speech, vision and text encoders of transformers by hub name, folder or package; the time axis is kept."""

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
from llm_mer.resources.model_packages import TEXT_ENCODER, find_model_file, model_packages

SPEECH_MODELS = ("wavlm", "hubert", "wav2vec2", "wav2vec2-bert", "data2vec-audio", "unispeech", "unispeech-sat")
FRAMES_PER_BATCH = 32


def encoder_place(name: str) -> tuple[str, bool]:
    """Where transformers loads an encoder from, and whether that lies here: a folder, a package's model, or a hub name.

    Raises:
        UserError: a model whose package is not installed, or that is no encoder.
    """
    if Path(name).is_dir():
        return name, True
    model = model_packages().get(name)
    if model is None:
        return name, False
    if model.kind != TEXT_ENCODER:
        raise UserError(f"encoder {name!r} is a {model.kind}")
    file = find_model_file(name)
    if file is None:
        raise UserError(f"encoder {name!r} comes in the package {model.package}, which is not installed: llm-mer get {name}")
    return str(file.parent), True


def _load_encoder(name: str, device: str) -> tuple[Any, Any, Any]:
    """Load the configuration, the model (float32, in eval mode) and the torch device.

    A local folder is loaded without network access, and no remote code is run.

    Raises:
        UserError: files that cannot be loaded, weights of another model, or a device that this machine lacks.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, PreTrainedConfig

    place, local = encoder_place(name)
    try:
        check_hub_kernels(PreTrainedConfig.get_config_dict(place, local_files_only=local)[0], f"encoder {name!r}")
        config = AutoConfig.from_pretrained(place, local_files_only=local, trust_remote_code=False)
        model, report = AutoModel.from_pretrained(
            place,
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
    if missing > total / 2:  # a missing head is usual, a missing body is not
        raise UserError(f"encoder {name!r}: the weights are of another model; {missing} of {total} tensors are not in them")
    try:
        return config, model.eval().to(device), torch.device(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise UserError(f"device is {device!r}, which this machine lacks: {first_line(error)}") from None


def _load_processor(name: str, class_name: str) -> Any:
    """Load the feature extractor, image processor or tokenizer that belongs to an encoder."""
    import transformers

    place, local = encoder_place(name)
    try:
        return getattr(transformers, class_name).from_pretrained(place, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"encoder {name!r} has no usable {class_name} files: {error}") from None


def _output_size(config: Any, name: str, projected: bool) -> int:
    """Size of an output vector: of the projection if ``projected``, otherwise of the hidden state."""
    for part in (config, getattr(config, "text_config", None)):
        size = (projected and getattr(part, "projection_dim", None)) or getattr(part, "hidden_size", None)
        if size:
            return int(size)
    raise UserError(f"encoder {name!r}: its configuration gives no hidden size")


class SpeechEncoder:
    """The last hidden state of WavLM, HuBERT, wav2vec 2.0, …, ``(T, D)``, 50 steps a second; of CLAP one vector, ``(1, D)``.

    Called with mono samples at 16 kHz; they are resampled (SciPy, polyphase) for a model with another rate, such as CLAP.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.config, self.model, self.device = _load_encoder(name, device)
        kind = self.config.model_type
        if kind not in (*SPEECH_MODELS, "clap"):
            raise UserError(
                f"--audio {name}: a {kind!r} model is no speech encoder; known are {', '.join(SPEECH_MODELS)}, clap"
            )
        self.is_clap = kind == "clap"
        self.extractor = _load_processor(name, "AutoFeatureExtractor")
        self.names = [f"{kind}_{i}" for i in range(_output_size(self.config, name, self.is_clap))]

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
            return _to_numpy(_pooled_vector(self.model.get_audio_features(**inputs)))
        return _to_numpy(self.model(**inputs).last_hidden_state[0])


class ImageEncoder:
    """Image features of every frame, ``(F, D)``: CLIP's projected vector, or a vision transformer's class token."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.config, self.model, self.device = _load_encoder(name, device)
        kind = self.config.model_type
        projected = hasattr(self.model, "get_image_features")
        if not (projected or hasattr(self.config, "image_size")):
            raise UserError(f"--vision {name}: a {kind!r} model is no image encoder; use CLIP, SigLIP or ViT")
        self.processor = _load_processor(name, "AutoImageProcessor")
        self.names = [f"{kind}_{i}" for i in range(_output_size(self.config, name, projected))]

    @torch.no_grad()
    def __call__(self, frames: Frames) -> np.ndarray:
        rows = []
        for start in range(0, len(frames.pixels), FRAMES_PER_BATCH):
            images = list(frames.pixels[start : start + FRAMES_PER_BATCH])
            pixels = self.processor(images=images, return_tensors="pt")["pixel_values"].to(self.device)
            if hasattr(self.model, "get_image_features"):
                rows.append(_to_numpy(_pooled_vector(self.model.get_image_features(pixel_values=pixels))))
            else:
                rows.append(_to_numpy(self.model(pixel_values=pixels).last_hidden_state[:, 0]))
        return np.concatenate(rows)


class TextEncoder:
    """The last hidden state of RoBERTa, BERT or a causal language model, ``(T, D)``; of CLAP or CLIP one vector, ``(1, D)``.

    A special token that a transcript spells (``</s>``, ``[MASK]``) is read as text (:mod:`llm_mer.prompting.verbatim`).
    """

    def __init__(self, name: str, device: str = "cpu", max_tokens: int = 512) -> None:
        self.config, self.model, self.device = _load_encoder(name, device)
        kind = self.config.model_type
        projected = hasattr(self.model, "get_text_features")
        reads_tokens = self.model.main_input_name == "input_ids" and not getattr(self.config, "is_encoder_decoder", False)
        if not (projected or reads_tokens):
            raise UserError(
                f"--text {name}: a {kind!r} model is no text encoder; use RoBERTa, BERT or a causal language model"
            )
        self.tokenizer = _load_processor(name, "AutoTokenizer")
        self.verbatim = VerbatimEncoder(self.tokenizer)
        self.max_tokens = min(max_tokens, _max_positions(self.config))
        self.names = [f"{kind}_{i}" for i in range(_output_size(self.config, name, projected))]

    @torch.no_grad()
    def __call__(self, text: str) -> np.ndarray:
        ids = torch.tensor([self.token_ids(text)], dtype=torch.long, device=self.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if hasattr(self.model, "get_text_features"):
            return _to_numpy(_pooled_vector(self.model.get_text_features(**inputs)))
        return _to_numpy(self.model(**inputs).last_hidden_state[0])

    def token_ids(self, text: str) -> list[int]:
        """Token ids of the text with the special tokens around it, at most ``max_tokens``; the text itself holds none."""
        plain = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        words = self.verbatim.encode([Piece(text, quoted=True)])
        if words == plain:
            return list(self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"])
        example = self.tokenizer("a", return_special_tokens_mask=True)
        is_special = list(example["special_tokens_mask"])
        start, stop = is_special.index(0), len(is_special) - is_special[::-1].index(0)
        before, after = list(example["input_ids"])[:start], list(example["input_ids"])[stop:]
        return [*before, *words[: self.max_tokens - len(before) - len(after)], *after]


def _max_positions(config: Any) -> int:
    """The longest input in tokens. RoBERTa's first position is ``pad_token_id + 1``, so it has fewer than its table."""
    text = getattr(config, "text_config", None) or config
    limit = int(getattr(text, "max_position_embeddings", 512) or 512)
    return limit - (
        int(text.pad_token_id or 0) + 1 if "roberta" in text.model_type or text.model_type == "clap_text_model" else 0
    )


def _pooled_vector(output: Any) -> Tensor:
    """The projected vector, whether the model returns a tensor or an output object (transformers 5 returns either)."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()

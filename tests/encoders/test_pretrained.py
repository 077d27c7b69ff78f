"""Tiny random encoders, saved to folders, give what the model itself gives; other folders are refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from media_files import peak_frequency, tone
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llm_mer.data.schema import Frames
from llm_mer.encoders import pretrained as encoders
from llm_mer.encoders.pretrained import ImageEncoder, SpeechEncoder, TextEncoder
from llm_mer.errors import UserError

WORDS = "<pad> <s> </s> <unk> i am so happy to see you the book is on table".split()
TEXT = "i am so happy to see you"
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONVOLUTIONS = {
    "conv_dim": (8,) * 7,
    "num_feat_extract_layers": 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
TOKENS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokenizer(bert: bool = False) -> transformers.PreTrainedTokenizerFast:
    """One token a word, between <s> and </s>."""
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    names |= {"cls_token": "<s>", "sep_token": "</s>"} if bert else {"bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **names)


def save(folder: Path, model: Any, *parts: Any) -> str:
    for part in (model, *parts):
        part.save_pretrained(folder)
    return str(folder)


def speech_model(kind: str) -> Any:
    name = {"wavlm": "WavLM", "hubert": "Hubert", "wav2vec2": "Wav2Vec2"}[kind]
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**SIZE, **CONVOLUTIONS))


def clip_model() -> Any:
    vision = {**SIZE, "image_size": 32, "patch_size": 16}
    text = {**SIZE, **TOKENS, "max_position_embeddings": 12}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))


def clap_model() -> Any:
    audio = {
        "hidden_size": 32,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "spec_size": 64,
        "window_size": 4,
        "num_mel_bins": 16,
        "projection_dim": 12,
    }
    audio["hidden_size"] = 8 * 2 ** (len(audio["depths"]) - 1)
    text = {**SIZE, **TOKENS, "max_position_embeddings": 40, "projection_dim": 12}
    return transformers.ClapModel(transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=12))


TEXT_MODELS: dict[str, Any] = {
    "roberta": lambda: transformers.RobertaModel(
        transformers.RobertaConfig(**SIZE, **{**TOKENS, "pad_token_id": 1}, max_position_embeddings=40)
    ),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZE, **TOKENS, max_position_embeddings=40)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE, **TOKENS, max_position_embeddings=40)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    picture = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    wave = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    found = {kind: save(root / kind, speech_model(kind), wave) for kind in ("wavlm", "hubert", "wav2vec2")}
    found["clip"] = save(root / "clip", clip_model(), picture, tokenizer())
    vit = transformers.ViTConfig(**SIZE, image_size=32, patch_size=16)
    resize = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    found["vit"] = save(root / "vit", transformers.ViTModel(vit), resize)
    mel = transformers.ClapFeatureExtractor(feature_size=16, sampling_rate=48_000, max_length_s=2, truncation="rand_trunc")
    found["clap"] = save(root / "clap", clap_model(), mel, tokenizer())
    for kind, make in TEXT_MODELS.items():
        found[kind] = save(root / kind, make(), tokenizer(bert=kind == "bert"))
    return found


def pictures(count: int, height: int = 40, width: int = 60) -> Frames:
    return Frames(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8), 6.0)


# --- speech -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wavlm", "hubert", "wav2vec2"])
def test_a_speech_encoder_gives_the_last_hidden_state_50_times_a_second(folders: dict[str, str], kind: str) -> None:
    encoder = SpeechEncoder(folders[kind])
    samples = tone(220, 2.0, 16_000)
    found = encoder(samples)
    assert found.dtype == np.float32
    assert found.shape == (99, 16)
    assert encoder.names == [f"{kind}_{i}" for i in range(16)]
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    normalised = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        expected = model(torch.from_numpy(normalised)[None]).last_hidden_state[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(np.diff(found, axis=0)).max() > 0


def test_the_shortest_sound_that_is_read_is_long_enough_for_a_speech_encoder(folders: dict[str, str]) -> None:
    assert SpeechEncoder(folders["wavlm"])(tone(220, 0.1, 16_000)).shape == (4, 16)


def test_clap_gives_one_step_of_its_projection_from_sound_at_its_own_rate(folders: dict[str, str], monkeypatch) -> None:
    encoder = SpeechEncoder(folders["clap"])
    heard: list[np.ndarray] = []
    extractor = encoder.extractor

    class Listening:
        sampling_rate = extractor.sampling_rate

        def __call__(self, samples: np.ndarray, **options: Any) -> Any:
            heard.append(samples)
            assert options["sampling_rate"] == 48_000
            return extractor(samples, **options)

    encoder.extractor = Listening()
    found = encoder(tone(440, 1.0, 16_000))
    assert found.shape == (1, 12)
    assert encoder.names == [f"clap_{i}" for i in range(12)]
    assert len(heard[0]) == 48_000
    assert peak_frequency(heard[0], 48_000) == pytest.approx(440, abs=1)
    inputs = extractor(heard[0], sampling_rate=48_000, return_tensors="pt")
    model = transformers.ClapModel.from_pretrained(folders["clap"]).eval()
    with torch.no_grad():
        output = model.audio_projection(model.audio_model(**inputs).pooler_output)
    np.testing.assert_allclose(found, torch.nn.functional.normalize(output, dim=-1), atol=1e-5)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_clip_gives_the_projection_of_every_frame_across_batches(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = pictures(7)
    encoder = ImageEncoder(folders["clip"])
    found = encoder(frames)
    assert found.shape == (7, 20)
    assert found.dtype == np.float32
    assert encoder.names == [f"clip_{i}" for i in range(20)]
    monkeypatch.setattr(encoders, "FRAMES_PER_BATCH", 3)
    np.testing.assert_allclose(encoder(frames), found, atol=1e-5)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folders["clip"])
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    with torch.no_grad():
        pixels = processor(images=list(frames.pixels), return_tensors="pt")["pixel_values"]
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_frame_is_encoded_by_itself(folders: dict[str, str]) -> None:
    encoder, frames = ImageEncoder(folders["clip"]), pictures(5)
    np.testing.assert_allclose(encoder(Frames(frames.pixels[3:4], 6.0))[0], encoder(frames)[3], atol=1e-5)


def test_the_processor_file_of_published_clip_models_is_read(folders: dict[str, str], tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "old", transformers.CLIPModel.from_pretrained(folders["clip"])))
    names = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "crop_size": 32, "size": 32}
    numbers = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    entry = {**names, **numbers, "feature_extractor_type": "CLIPFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(entry))
    frames = pictures(2)
    np.testing.assert_allclose(ImageEncoder(str(folder))(frames), ImageEncoder(folders["clip"])(frames), atol=1e-6)


def test_a_vision_transformer_gives_its_class_token_of_every_frame(folders: dict[str, str]) -> None:
    frames = pictures(3)
    encoder = ImageEncoder(folders["vit"])
    found = encoder(frames)
    assert found.shape == (3, 16)
    assert encoder.names == [f"vit_{i}" for i in range(16)]
    processor = transformers.ViTImageProcessorPil.from_pretrained(folders["vit"])
    model = transformers.ViTModel.from_pretrained(folders["vit"]).eval()
    with torch.no_grad():
        states = model(**processor(images=list(frames.pixels), return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(found, states[:, 0], atol=1e-5)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TEXT_MODELS))
def test_a_text_encoder_gives_the_last_hidden_state_of_every_token(folders: dict[str, str], kind: str) -> None:
    encoder = TextEncoder(folders[kind])
    found = encoder(TEXT)
    ids = [1, *(WORDS.index(word) for word in TEXT.split()), 2]
    assert found.shape == (len(ids), 16)
    assert found.dtype == np.float32
    assert encoder.names == [f"{kind}_{i}" for i in range(16)]
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "longest"), [("roberta", 38), ("bert", 40), ("llama", 40), ("clip", None)])
def test_a_text_beyond_the_positions_of_the_model_is_cut(folders: dict[str, str], kind: str, longest: int | None) -> None:
    found = TextEncoder(folders[kind])("happy " * 100)
    assert len(found) == (longest or 1)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", sorted(TEXT_MODELS))
def test_a_special_token_in_a_transcript_is_words(folders: dict[str, str], kind: str) -> None:
    found = TextEncoder(folders[kind])("i am </s> happy <pad>")
    spelt = ["<unk>"] * 3  # "</", "s" and ">"
    ids = [1, *(WORDS.index(word) for word in ["i", "am", *spelt, "happy", *spelt]), 2]
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_cut_transcript_with_special_tokens_keeps_the_ends_of_the_models_own(folders: dict[str, str]) -> None:
    encoder = TextEncoder(folders["bert"], max_tokens=6)
    assert encoder.token_ids("i am </s> so happy") == [1, WORDS.index("i"), WORDS.index("am"), 3, 3, 2]


def test_the_longest_text_can_be_set(folders: dict[str, str]) -> None:
    assert len(TextEncoder(folders["bert"], max_tokens=5)("happy " * 100)) == 5


@pytest.mark.parametrize(("kind", "size"), [("clip", 20), ("clap", 12)])
def test_the_text_of_clip_and_clap_is_one_step_of_the_projection(folders: dict[str, str], kind: str, size: int) -> None:
    encoder = TextEncoder(folders[kind])
    assert encoder(TEXT).shape == (1, size)
    assert len(encoder.names) == size
    assert np.abs(encoder(TEXT) - encoder("the book is on the table")).max() > 0


@pytest.mark.parametrize(
    ("encoder", "kind", "value"),
    [
        (SpeechEncoder, "wavlm", tone(220, 0.5, 16_000)),
        (ImageEncoder, "clip", pictures(2)),
        (TextEncoder, "roberta", TEXT),
    ],
)
def test_encoding_is_repeatable_and_tracks_no_gradient(folders: dict[str, str], encoder: Any, kind: str, value: Any) -> None:
    one, other = encoder(folders[kind]), encoder(folders[kind])
    assert not one.model.training
    np.testing.assert_array_equal(one(value), one(value))
    np.testing.assert_array_equal(one(value), other(value))


# --- folders that cannot be used --------------------------------------------------------------------------------------

ENCODERS = [SpeechEncoder, ImageEncoder, TextEncoder]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, encoder: Any) -> None:
    with pytest.raises(UserError, match="nowhere"):
        encoder(str(tmp_path / "nowhere"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_this_machine_lacks_is_named(folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match="device is 'cuda', which this machine lacks") as caught:
        TextEncoder(folders["bert"], "cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_empty_folder_is_named_with_what_belongs_there(tmp_path: Path, encoder: Any) -> None:
    with pytest.raises(UserError, match=r"config\.json") as caught:
        encoder(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "kind", "missing"),
    [
        (SpeechEncoder, "wavlm", "preprocessor_config.json"),
        (ImageEncoder, "clip", "preprocessor_config.json"),
        (TextEncoder, "roberta", "tokenizer.json"),
        (SpeechEncoder, "wavlm", "model.safetensors"),
    ],
)
def test_a_folder_that_lacks_a_file_is_named(
    folders: dict[str, str], tmp_path: Path, encoder: Any, kind: str, missing: str
) -> None:
    for path in Path(folders[kind]).iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError) as caught:
        encoder(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b"\0" * 64), ("config.json", b"{"), ("preprocessor_config.json", b"{")],
    ids=["weights", "config", "processor"],
)
def test_a_broken_file_is_named(folders: dict[str, str], tmp_path: Path, name: str, content: bytes) -> None:
    for path in Path(folders["wavlm"]).iterdir():
        (tmp_path / path.name).write_bytes(content if path.name == name else path.read_bytes())
    with pytest.raises(UserError) as caught:
        SpeechEncoder(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "kind", "message"),
    [
        (SpeechEncoder, "roberta", r"--audio .*'roberta' model is no speech encoder; known are wavlm, hubert"),
        (SpeechEncoder, "clip", r"'clip' model is no speech encoder"),
        (ImageEncoder, "wavlm", r"--vision .*'wavlm' model is no image encoder; use CLIP"),
        (ImageEncoder, "bert", r"'bert' model is no image encoder"),
        (TextEncoder, "wavlm", r"--text .*'wavlm' model is no text encoder"),
        (TextEncoder, "vit", r"'vit' model is no text encoder"),
    ],
)
def test_another_kind_of_model_is_refused_by_its_kind(
    folders: dict[str, str], encoder: Any, kind: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        encoder(folders[kind])


def test_weights_of_another_model_are_not_taken_for_a_random_encoder(folders: dict[str, str], tmp_path: Path) -> None:
    for path in Path(folders["bert"]).iterdir():
        source = Path(folders["wavlm"]) / path.name if path.name == "model.safetensors" else path
        (tmp_path / path.name).write_bytes(source.read_bytes())
    with pytest.raises(UserError, match="the weights are of another model"):
        TextEncoder(str(tmp_path))


def test_a_checkpoint_without_a_pooling_head_is_read(folders: dict[str, str], tmp_path: Path) -> None:
    config = transformers.RobertaConfig.from_pretrained(folders["roberta"])
    folder = save(tmp_path / "lm", transformers.RobertaForMaskedLM(config), tokenizer())
    assert TextEncoder(folder)(TEXT).shape == (9, 16)


def test_an_encoder_decoder_is_no_text_encoder(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=len(WORDS), d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    folder = save(tmp_path / "t5", transformers.T5Model(config), tokenizer())
    with pytest.raises(UserError, match="'t5' model is no text encoder"):
        TextEncoder(folder)


@pytest.mark.parametrize(("vision", "kind"), [(True, "clip_vision_model"), (False, "clip_text_model")])
def test_names_are_as_many_as_dimensions_for_one_half_of_clip(tmp_path: Path, vision: bool, kind: str) -> None:
    if vision:
        config = transformers.CLIPVisionConfig(**SIZE, image_size=32, patch_size=16, projection_dim=20)
        picture = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        encoder: Any = ImageEncoder(save(tmp_path / "half", transformers.CLIPVisionModel(config), picture))
        found = encoder(pictures(2))
    else:
        text = transformers.CLIPTextConfig(**SIZE, **TOKENS, max_position_embeddings=12, projection_dim=20)
        encoder = TextEncoder(save(tmp_path / "half", transformers.CLIPTextModel(text), tokenizer()))
        found = encoder(TEXT)
    assert encoder.names == [f"{kind}_{i}" for i in range(found.shape[1])]

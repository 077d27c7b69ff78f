"""Very small backbones, synthetic features, and one trained checkpoint, shared by the tests of the whole path.

Nothing here is trained for quality: backbones have random weights, and the emotion of an utterance is a linear function
of its audio and vision, so that whatever is learnt was learnt through the pseudo tokens.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if os.environ.get("LLM_MER_TEST_DEVICE", "cpu") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what the tests state holds on a CPU; those in tests/gpu name their device

import gc
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("llama", "glm", "qwen2")
AUDIO_SIZE, VISION_SIZE = 6, 5
EMOTIONS = {(1, 1): "joy", (1, -1): "anger", (-1, 1): "surprise", (-1, -1): "sadness"}
NEUTRAL = {
    "en": ("the train leaves at nine", "the table is in the kitchen", "we meet on monday", "the book has many pages"),
    "zh": ("火车九点开", "桌子在厨房里", "我们星期一见面", "这本书有很多页"),
}


def make_utterances(split: str, count: int, seed: int = 0, dialogues: bool = True) -> list[Any]:
    """Utterances whose emotion is told by the sign of a direction in audio and of one in vision; the text is neutral."""
    from llm_mer.data.schema import Utterance

    fixed = np.random.default_rng(1234)
    audio_direction, vision_direction = fixed.normal(size=AUDIO_SIZE), fixed.normal(size=VISION_SIZE)
    random = np.random.default_rng([seed, {"train": 0, "valid": 1, "test": 2}[split]])
    found = []
    for index in range(count):
        language = "en" if index % 2 == 0 else "zh"
        a, v = (int(s) for s in random.choice([-1, 1], size=2))
        audio = random.normal(scale=0.5, size=(int(random.integers(4, 9)), AUDIO_SIZE)) + a * audio_direction
        vision = random.normal(scale=0.5, size=(int(random.integers(2, 6)), VISION_SIZE)) + v * vision_direction
        texts = NEUTRAL[language]
        dialogue, turn = divmod(index // 2, 6)
        found.append(
            Utterance(
                id=f"{split}-{index:03d}",
                split=split,
                language=language,
                text=texts[int(random.integers(len(texts)))],
                audio_features=audio.astype(np.float32),
                vision_features=vision.astype(np.float32),
                labels={"emotion": EMOTIONS[a, v], "sentiment": round(1.5 * a + 1.0 * v, 1)},
                dialogue_id=f"{split}-{language}-{dialogue}" if dialogues else None,
                turn=turn if dialogues else None,
                speaker="AB"[turn % 2] if dialogues else None,
                tags=("neutral_words",) if index % 3 == 0 else (),
            )
        )
    return found


def build_tokenizer() -> Any:
    """The project's own tokenizer building on a little generated text (50 ms)."""
    from llm_mer.backbones.tiny import generate_lines, train_tokenizer

    neutral = [text for texts in NEUTRAL.values() for text in texts]
    return train_tokenizer([*generate_lines(0, 600), *neutral * 3], 1000)


def build_backbone(architecture: str, folder: Path, hidden_size: int = 48, seed: int = 0) -> Path:
    """A random two-layer backbone, its weights enlarged so that its answers are far from uniform."""
    import torch

    from llm_mer.backbones.tiny import TinyBackboneConfig, build_untrained_model

    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_untrained_model(
            TinyBackboneConfig(architecture=architecture, hidden_size=hidden_size, layers=2, heads=4), len(tokenizer)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_quantisable(folder: Path) -> None:
    """A random Llama whose rows are complete blocks of NF4, as those of every published model are."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Shared:
    """A folder all xdist workers of a run share; what is in it is made once."""

    folder: Path

    def make(self, name: str, build: Callable[[Path], Any]) -> Path:
        """``build`` fills a folder once, whichever worker comes first."""
        from filelock import FileLock

        target = self.folder / name
        with FileLock(str(self.folder / f"{name}.lock")):
            if not target.is_dir():
                scratch = self.folder / f".{name}"
                shutil.rmtree(scratch, ignore_errors=True)
                build(scratch)
                scratch.rename(target)
        return target


def pytest_configure() -> None:
    """Programs that tests start obey signals, also where pytest was started to ignore them (in the background, by nohup)."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGTERM: signal.SIG_DFL,
    }
    for number, handler in defaults.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports and collected tests stay until the end, and looking through them for garbage took a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    base = tmp_path_factory.getbasetemp()
    return Shared(base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base)


@pytest.fixture(scope="session")
def backbones(shared: Shared) -> dict[str, Path]:
    """Folders of tiny random backbones by architecture."""
    return {
        name: shared.make(f"backbone-{name}", lambda folder, name=name: build_backbone(name, folder))
        for name in ARCHITECTURES
    }


@pytest.fixture(scope="session")
def other_backbone(shared: Shared) -> Path:
    """The Llama's shape with other weights."""
    return shared.make("backbone-other", lambda folder: build_backbone("llama", folder, seed=1))


@pytest.fixture(scope="session")
def tokenizer(backbones: dict[str, Path]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(backbones["llama"], local_files_only=True)


@pytest.fixture(scope="session")
def store(shared: Shared) -> Path:
    """96 training, 32 validation and 32 test utterances, half English and half Chinese."""
    from llm_mer.data.store import write_store

    def build(folder: Path) -> None:
        write_store([*make_utterances("train", 96), *make_utterances("valid", 32), *make_utterances("test", 32)], folder)

    return shared.make("store", build)


def options(**values: Any) -> list[str]:
    """Keyword options as a command line."""
    argv: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        entries = value if isinstance(value, (list, tuple)) else [value]
        argv += [f"--{name}", *(str(entry) for entry in entries)]
    return argv


def training_options(data: Path | str, backbone: Path | str, output: Path | str, **changes: Any) -> list[str]:
    """A command line of finetune.py for the synthetic features: small, quick, no evaluation unless asked for."""
    chosen: dict[str, Any] = {
        "data": data,
        "backbone": backbone,
        "output_dir": output,
        "tasks": ["emotion"],
        "adapter": "egmf",
        "hidden_size": 16,
        "num_heads": 2,
        "dropout": 0.0,
        "lora_dropout": 0.0,
        "lora_r": 4,
        "num_pseudo_tokens": 2,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": "5e-3",
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": "false",
        "disable_tqdm": "true",
        "seed": 7,
    }
    return options(**{**chosen, **changes})


@pytest.fixture
def arguments(store: Path, backbones: dict[str, Path], tmp_path: Path) -> Callable[..., list[str]]:
    """A command line of finetune.py with changes."""

    def build(**changes: Any) -> list[str]:
        chosen = {"data": store, "backbone": backbones["llama"], "output": tmp_path / "run", **changes}
        return training_options(chosen.pop("data"), chosen.pop("backbone"), chosen.pop("output"), **chosen)

    return build


@pytest.fixture(scope="session")
def trained(shared: Shared, backbones: dict[str, Path], store: Path) -> Path:
    """A checkpoint that has learnt emotion and sentiment from audio and vision. Tests must not write into it."""
    from llm_mer.cli.train import finetune

    def build(folder: Path) -> None:
        finetune(
            training_options(
                store,
                backbones["llama"],
                folder,
                tasks=["emotion", "sentiment"],
                auxiliary_head="true",
                modality_dropout=0.1,
                num_train_epochs=12,
                per_device_train_batch_size=16,
                learning_rate="1e-2",
            )
        )

    return shared.make("trained", build)


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained checkpoint that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "checkpoint"))


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a backbone fails: whatever is refused under this fixture was refused before."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a backbone was loaded before the options were checked")

    import llm_mer.backbones.loading

    monkeypatch.setattr(llm_mer.backbones.loading, "load_backbone", refuse)


def run_environment(**changes: str) -> dict[str, str]:
    """The environment of a subprocess: one thread, offline, and no port or rank of another run."""
    drop = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k not in drop}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", **changes}


def torchrun(count: int, *arguments: Any, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """A program of the repository, or ``-m module``, on so many processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return subprocess.run(
        [*launch, *map(str, arguments)],
        cwd=ROOT,
        env=run_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def adapter_weights(folder: Path) -> dict[str, Any]:
    """Tensors of a checkpoint's weights file."""
    from safetensors.torch import load_file

    for name in ("adapter_model.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return dict(load_file(folder / name))
    raise FileNotFoundError(folder)


def values_of(predictions: Sequence[Any]) -> list[Any]:
    """Values in order."""
    return [p.value for p in predictions]


@pytest.fixture(scope="module", autouse=True)
def _collection_passes_over_what_stays() -> None:
    """Every training collects garbage: half a second, were a million objects of libraries and tests looked through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)

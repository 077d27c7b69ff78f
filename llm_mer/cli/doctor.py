"""``llm-mer doctor``: what this machine has of what the program can use, and how to get the rest. Asks no network."""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_mer.resources.model_packages import find_model_file, is_installed, model_packages
from llm_mer.storage.json_text import dump_json

EXAMPLES = ("llm-mer doctor", "llm-mer doctor --json")

EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "media": (
        "features from clips",
        ("av", "opencv-python-headless", "opensmile", "librosa", "scikit-image", "espeakng-loader"),
    ),
    "landmarks": ("--vision landmarks", ("mediapipe",)),
    "gguf": ("GGUF files as backbones", ("gguf",)),
    "quantization": ("--quantization nf4 and int8", ("bitsandbytes",)),
    "deepspeed": ("DeepSpeed's ZeRO", ("deepspeed", "ninja")),
    "demo": ("llm-mer demo", ("gradio",)),
    "vllm": ("--engine vllm", ("vllm",)),
    "liger": ("--use_liger_kernel", ("liger-kernel",)),
    "fuzz": ("make fuzz-coverage, for developers", ("atheris", "hypothesis")),
}
"""Optional packages by extra: what they are for, and their names."""
FEATURES: dict[str, tuple[str, str]] = {
    "egemaps": ("--audio egemaps, audEERING research licence", "opensmile"),
    "librosa": ("--audio librosa", "librosa"),
    "hog_flow": ("--vision hog_flow", "scikit-image"),
    "face detector": (
        "--face_model FILE, a YuNet ONNX file, which OpenCV reads and does not ship",
        "opencv-python-headless",
    ),
    "landmarks": ("--vision landmarks with --landmark_model FILE, which mediapipe does not ship", "mediapipe"),
    "ngrams": ("--text ngrams", "numpy"),
    "speech of the sample corpus": ("llm-mer make-corpus and quickstart", "espeakng-loader"),
}
"""Sources of features: how they are chosen, and the package each needs."""


@dataclass
class Options:
    """Options of ``llm-mer doctor``."""

    json: bool = field(default=False, metadata={"help": "as JSON"})


@dataclass
class Finding:
    """Something the program can use.

    Attributes:
        group, name: under which it is listed. present: whether this machine has it. use: how it is used.
        get: the command that gets it, empty where there is none or it is here. detail: version, size or licence.
    """

    group: str
    name: str
    present: bool
    use: str
    get: str = ""
    detail: str = ""


def run(options: Options) -> str:
    """Everything that is found, as lines or JSON."""
    findings = [*extras(), *models(), *feature_sources(), *local_backbones()]
    machine = describe_machine()
    if options.json:
        return dump_json({"machine": machine, "found": [dataclasses.asdict(f) for f in findings]}, indent=1)
    lines = ["machine", *(f"  {name:<28} {value}" for name, value in machine.items())]
    for group in dict.fromkeys(finding.group for finding in findings):
        lines += ["", group, *(show(finding) for finding in findings if finding.group == group)]
    return "\n".join(lines)


def show(finding: Finding) -> str:
    """One line: here or not, what for, and how to get it."""
    state = f"yes {finding.detail}".rstrip() if finding.present else "no"
    rest = finding.use if finding.present or not finding.get else f"{finding.use}; get it: {finding.get}"
    return f"  {finding.name:<28} {state:<14} {rest}"


def version_of(package: str) -> str | None:
    """The installed version; None where it is not installed. Imports nothing of it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras() -> list[Finding]:
    """Optional packages."""
    found = []
    for extra, (use, packages) in EXTRAS.items():
        versions = {package: version_of(package) for package in packages}
        missing = [package for package, version in versions.items() if version is None]
        lacking = f" (lacks {', '.join(missing)})" if missing and len(missing) < len(packages) else ""
        get = f"pip install 'llm-mer[{extra}]'" if missing else ""
        detail = str(versions[packages[0]]) if len(packages) == 1 and not missing else ""
        found.append(Finding("optional packages", extra, not missing, use + lacking, get, detail))
    return found


def models() -> list[Finding]:
    """Models that packages carry, and what reads them."""
    found = []
    for name, model in model_packages().items():
        here = find_model_file(name) is not None
        lacking = [package for package in model.requires if not is_installed(package)]
        use = f"{model.option} {name}: {model.title}, {model.languages}, {model.licence}, {model.megabytes} MB"
        if here and lacking:
            use += f"; lacks {', '.join(lacking)}"
        complete = here and not lacking
        found.append(Finding(f"{model.kind}s in packages", name, complete, use, "" if complete else f"llm-mer get {name}"))
    return found


def feature_sources() -> list[Finding]:
    """What features can be made from."""
    extra_of = {package: extra for extra, (_, packages) in EXTRAS.items() for package in packages}
    found = []
    for name, (use, package) in FEATURES.items():
        version = version_of(package)
        get = f"pip install 'llm-mer[{extra_of[package]}]'" if version is None and package in extra_of else ""
        found.append(Finding("sources of features", name, version is not None, use, get))
    found.append(
        Finding(
            "sources of features",
            "pretrained encoders",
            True,
            "--audio, --vision and --text take a folder of WavLM, HuBERT, wav2vec 2.0, CLAP, CLIP, ViT, RoBERTa or BERT",
        )
    )
    return found


def local_backbones() -> list[Finding]:
    """Language models that need no download: tiny ones trained on the spot, and those in the working directory."""
    from llm_mer.backbones.tiny_options import cache_folder

    kept = [folder for folder in cache_folder().glob("*") if (folder / "config.json").is_file()]
    found = [
        Finding(
            "backbones",
            "tiny",
            True,
            "--backbone tiny:llama or tiny:glm, trained here in minutes",
            detail=f"{len(kept)} kept",
        )
    ]
    for folder in (Path("backbones"), Path("models")):
        for place in sorted(folder.glob("*")):
            if (place / "config.json").is_file() or place.suffix == ".gguf":
                found.append(Finding("backbones", place.name, True, f"--backbone {place}"))
    return found


def describe_machine() -> dict[str, Any]:
    """Versions, devices, precisions, threads, memory and free disk."""
    import platform

    import torch

    from llm_mer import __version__

    found: dict[str, Any] = {
        "llm_mer": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "threads": f"{torch.get_num_threads()} of torch, {len(os.sched_getaffinity(0))} processors for this process",
    }
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            native = ", bfloat16 natively" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
            found[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB{native}"
    elif torch.backends.mps.is_available():
        found["device"] = "mps"
    else:
        found["device"] = "cpu alone"
        found["processor"] = torch.backends.cpu.get_cpu_capability()
    found["precisions"] = "float32, bfloat16, float16 (--dtype)"
    disk = shutil.disk_usage(Path.cwd())
    found["free disk here"] = f"{disk.free / 2**30:.1f} of {disk.total / 2**30:.0f} GiB"
    return found

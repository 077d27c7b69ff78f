"""``llm-mer files``: paths of the files shipped with the package."""

from __future__ import annotations

from dataclasses import dataclass, field

EXAMPLES = (
    "llm-mer files",
    "llm-mer files configs/quickstart.yaml",
    "llm-mer files accelerate_configs/fsdp2.yaml",
)


@dataclass
class Options:
    """Options of ``llm-mer files``."""

    name: str = field(
        default="", metadata={"help": "name of a file, e.g. configs/quickstart.yaml (default: list all)", "positional": True}
    )


def run(options: Options) -> str:
    """The path of the named file or folder, or of all files.

    Raises:
        UserError: no file of this name is shipped with the package.
    """
    from llm_mer.errors import UserError
    from llm_mer.resources.files import SHIPPED, resource

    if options.name:
        try:
            return str(resource(options.name))
        except FileNotFoundError as error:
            raise UserError(str(error)) from None
    paths = [path for name in SHIPPED for path in [resource(name), *resource(name).rglob("*")]]
    return "\n".join(str(path) for path in sorted(paths) if path.is_file() and "__pycache__" not in path.parts)

"""``llm-mer files``: where the files that come with the package lie, for programs that want a path."""

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
        default="", metadata={"help": "one of them, e.g. configs/quickstart.yaml (default: list all)", "positional": True}
    )


def run(options: Options) -> str:
    """The path of the named file or folder, or of every file.

    Raises:
        UserError: nothing of this name comes with the package.
    """
    from llm_mer.errors import UserError
    from llm_mer.resources.files import SHIPPED, resource

    if options.name:
        try:
            return str(resource(options.name))
        except FileNotFoundError as error:
            raise UserError(str(error)) from None
    found = [path for name in SHIPPED for path in [resource(name), *resource(name).rglob("*")]]
    return "\n".join(str(path) for path in sorted(found) if path.is_file() and "__pycache__" not in path.parts)

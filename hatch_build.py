"""What lies at the top of the repository and is needed at run time travels in the wheel."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = runpy.run_path(str(Path(__file__).parent / "llm_mer/resources/files.py"))["SHIPPED"]


class ShippedFiles(BuildHookInterface):
    """Adds :data:`SHIPPED` to a wheel. An editable install reads them where they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel" and version == "standard":
            build_data["force_include"].update(
                {str(Path(self.root) / name): f"llm_mer/resources/{name}" for name in SHIPPED}
            )

"""Pages of docs/ link to files of the repository that are no pages; on the site such a link is the file's name."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")
logger = logging.getLogger("mkdocs.hooks")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to ``../FILE`` as text; a file that is not there is a warning, which ``--strict`` makes an error."""

    def told(match: re.Match[str]) -> str:
        text, target = match.groups()
        if not (ROOT / target).exists():
            logger.warning("%s links to %s, which the repository does not have", page.file.src_uri, target)
        return text if target.rstrip("/") in text else f"{text} (`{target}`)"

    return LINK.sub(told, markdown)

"""What the columns of a user's own table mean, where they are not the fields of a manifest by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_mer.errors import UserError
from llm_mer.prompting.languages import has_letters
from llm_mer.storage.quoting import quote

CLIP = "clip"
"""The field of a file that is a video, a sound, or both."""
ID_FROM_FILE, ID_FROM_ROW = "file", "row"
Tracks = Callable[[Path], tuple[bool, bool]]
"""Whether a file has pictures, and whether it has sound."""


@dataclass(frozen=True)
class ColumnNames:
    """The columns of a table, and what is done where one is missing.

    Attributes:
        renamed: ``{column: field of a manifest}``, among them :data:`CLIP`. ignored: columns that are not read.
        id_from: ``file`` (the clip's name without its folder and suffix) or ``row`` where there is no column of ids.
        language: of rows whose text does not tell it; empty where they are refused.
        tracks: what is in a file of a :data:`CLIP` column.
    """

    renamed: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    id_from: str = ""
    language: str = ""
    tracks: Tracks | None = None

    def read(self, entry: Mapping[str, Any], where: str, folder: Path) -> dict[str, Any]:
        """One row as an entry of a manifest. ``folder``: what paths are relative to.

        Raises:
            UserError: a field in two columns, a clip beside ``video``, or no file to name the row after.
        """
        found: dict[str, Any] = {}
        for column, value in entry.items():
            name = self.renamed.get(column, column)
            if column in self.ignored:
                continue
            if name in found:
                raise UserError(f"{where}: {name!r} is in two columns, {column!r} is one of them; leave one empty")
            found[name] = value
        if self.id_from and "id" not in found:
            found["id"] = self._make_id(found, where)
        if CLIP in found:
            self._read_clip(found, where, folder)
        if self.language and "language" not in found and not has_letters(str(found.get("text", ""))):
            found["language"] = self.language
        return found

    def _make_id(self, found: Mapping[str, Any], where: str) -> str:
        if self.id_from == ID_FROM_ROW:
            return f"row-{where.rpartition(':')[2]}"
        file = next((found[name] for name in (CLIP, "video", "audio") if name in found), None)
        if file is None:
            raise UserError(f"{where}: the row has no id, and no file that it could be named after; add a column id")
        return Path(str(file)).stem

    def _read_clip(self, found: dict[str, Any], where: str, folder: Path) -> None:
        file = found.pop(CLIP)
        if "video" in found:
            raise UserError(f"{where}: the row names a clip {quote(file)} and a video; a clip is both, leave one out")
        if not isinstance(file, str):
            raise UserError(f"{where}: field 'clip' is {quote(file)}; it must be the path of a file")
        assert self.tracks is not None, "whoever reads clips says how their tracks are found"
        has_pictures, has_sound = self.tracks(folder / file)
        found |= {"video": file} if has_pictures else {}
        if has_sound and "audio" not in found:  # a sound file of its own takes the place of the clip's sound
            found["audio"] = file

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for a store and a checkpoint."""
        entry = asdict(self)
        del entry["tracks"]
        return {**entry, "ignored": list(self.ignored)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], tracks: Tracks) -> ColumnNames:
        """Read :meth:`to_dict` back."""
        return cls(
            renamed={str(column): str(name) for column, name in entry["renamed"].items()},
            ignored=tuple(map(str, entry["ignored"])),
            id_from=str(entry["id_from"]),
            language=str(entry["language"]),
            tracks=tracks,
        )

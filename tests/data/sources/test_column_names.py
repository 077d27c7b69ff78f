"""A user's own table is read as a manifest by what its columns mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_mer.data.sources.column_names import ColumnNames
from llm_mer.data.sources.manifest import read_manifest, stream_manifest
from llm_mer.errors import UserError

TRACKS = {"both.mp4": (True, True), "silent.mp4": (True, False), "sound.wav": (False, True)}


def tracks(path: Path) -> tuple[bool, bool]:
    return TRACKS[path.name]


def test_columns_are_renamed_left_out_and_a_clip_is_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("Sentence,file,notes,mood\nHello there,v/both.mp4,x,calm\n,v/silent.mp4,,tense\n,v/sound.wav,,calm\n")
    columns = ColumnNames({"Sentence": "text", "file": "clip"}, ("notes",), "file", "en", tracks)
    read = list(stream_manifest(path, ["mood"], columns=columns))
    assert [(u.id, u.text, u.language, u.labels) for u in read] == [
        ("both", "Hello there", "en", {"mood": "calm"}),
        ("silent", None, "en", {"mood": "tense"}),
        ("sound", None, "en", {"mood": "calm"}),
    ]
    found = [(u.vision and Path(u.vision).name, u.audio and Path(u.audio).name) for u in read]
    assert found == [("both.mp4", "both.mp4"), ("silent.mp4", None), (None, "sound.wav")]
    assert read[0].vision == str(tmp_path / "v" / "both.mp4")
    assert ColumnNames.from_dict(columns.to_dict(), tracks) == columns
    with pytest.raises(UserError, match="unknown fields"):
        read_manifest(path, ["mood"])


def test_rows_without_ids_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("text\nHello\n\nGoodbye\n")
    assert [u.id for u in stream_manifest(path, columns=ColumnNames(id_from="row"))] == ["row-2", "row-4"]


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("text,sentence,id\na,b,1\n", {"sentence": "text"}, r":2: 'text' is in two columns, 'sentence' is one of them"),
        ("id,file,video\n1,both.mp4,b.mp4\n", {"file": "clip"}, r":2: the row names a clip 'both.mp4' and a video"),
    ],
)
def test_a_field_that_is_given_twice_is_refused(tmp_path: Path, table: str, columns: dict[str, str], message: str) -> None:
    path = tmp_path / "clips.csv"
    path.write_text(table)
    with pytest.raises(UserError, match=message):
        list(stream_manifest(path, columns=ColumnNames(columns, tracks=tracks)))


def test_a_sound_file_beside_a_clip_takes_the_place_of_its_sound(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("id,video,audio,language\n1,both.mp4,b.wav,en\n2,both.mp4,,en\n")
    one, two = stream_manifest(path, columns=ColumnNames({"video": "clip"}, tracks=tracks))
    assert [Path(str(file)).name for file in (one.vision, one.audio, two.vision, two.audio)] == [
        "both.mp4", "b.wav", "both.mp4", "both.mp4",
    ]  # fmt: skip

"""Finding media files that are cut off: a decoder reads them up to the cut without an error.

Three things tell, each where a format has it:

- a size: RIFF (WAV, AVI), RF64, W64, AIFF, AU, CAF and NIST SPHERE, the boxes of mp4, and its index of samples;
- a duration: Matroska and WebM, FLAC, MP3 with a Xing or VBRI header, FLV. It is compared with the times of the packets
  of all streams;
- a mark on the last page: Ogg.

Of a raw stream (ADTS, AC-3, AMR, MPEG-1 and -2, MP3 without such a header), of ASF, and of a recording whose length was not
known when its head was written (live WebM), nothing tells, and a cut cannot be seen unless it breaks a frame. Nor can one
at the end of a fragment of mp4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

UNKNOWN_RIFF_LENGTH = 0x7FFF0000
"""A RIFF header (WAV, AVI) that declares this many bytes or more was written before the size was known."""
UNKNOWN_AU_LENGTH = 0xFFFFFFFF
DURATION_TOLERANCE = 0.1
"""Seconds that a file may be shorter than it states, beside the longest time between two packets of a stream."""
STATED_DURATION = ("matroska,webm", "flac", "flv")
"""Containers, by FFmpeg's names, whose duration is stated and not estimated from the size of the file."""
MP3_HEADERS = (b"Xing", b"Info", b"VBRI")
MP3_HEADER_WITHIN = 4096
"""Bytes after the tags within which the first frame of an MP3, and with it such a header, ends."""
MAX_OGG_PAGE = 27 + 255 + 255 * 255
OGG_LAST = 0x04
"""Flag in the head of an Ogg page: the last one of its stream."""
MP4_BOXES = frozenset(b"ftyp styp moov moof mdat mfra free skip wide uuid meta udta sidx ssix prft emsg pdin pnot".split())
W64_RIFF = b"riff\x2e\x91\xcf\x11"


def find_missing_bytes(path: Path) -> str | None:
    """``it is cut off: 100 bytes of at least 200`` where the file is shorter than it declares; None where it is not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        declared = _declared_size(file, size)
        # One missing byte is accepted: some writers declare a padding byte that they do not write.
        if declared is not None and declared > size + 1:
            return f"it is cut off: {size} bytes of at least {declared}"
        file.seek(0)
        if file.read(4) == b"OggS" and not _ends_with_last_page(file, size):
            return "it is cut off: it does not end with a page that is marked as the last"
    return None


def find_missing_samples(path: Path, stream: Any) -> str | None:
    """The same by the index of an mp4: with the index first, it decodes without an error up to the cut."""
    entries, size = stream.index_entries, path.stat().st_size
    if len(entries) and (end := entries[-1].pos + entries[-1].size) > size:
        return f"it is cut off: {size} bytes of at least {end}"
    return None


def _declared_size(file: BinaryIO, size: int) -> int | None:
    """The size of the whole file by its own head; None where it does not say."""
    head = file.read(64)
    if head[:4] == b"RIFF":
        declared = int.from_bytes(head[4:8], "little") + 8
        return declared if declared < UNKNOWN_RIFF_LENGTH else None
    if head[:4] == b"RF64":
        return int.from_bytes(head[20:28], "little") + 8 if head[12:16] == b"ds64" else None
    if head[:8] == W64_RIFF:
        return int.from_bytes(head[16:24], "little")
    if head[:4] == b"FORM":
        return int.from_bytes(head[4:8], "big") + 8
    if head[:4] == b".snd":
        data = int.from_bytes(head[8:12], "big")
        return None if data == UNKNOWN_AU_LENGTH else int.from_bytes(head[4:8], "big") + data
    if head[:4] == b"caff":
        return _end_of_chunks(file, 8, size)
    if head[:7] == b"NIST_1A":
        return _sphere_size(file)
    if head[4:8] in MP4_BOXES:
        return _end_of_boxes(file, size)
    return None


def _end_of_chunks(file: BinaryIO, start: int, size: int) -> int | None:
    """End of the last chunk of a CAF file, each a name, 8 bytes of length, and so much data; None for an unknown length."""
    while start + 12 <= size:
        file.seek(start + 4)
        length = int.from_bytes(file.read(8), "big", signed=True)
        if length < 0:
            return None
        start += 12 + length
    return start


def _end_of_boxes(file: BinaryIO, size: int) -> int | None:
    """End of the last box of an mp4, each its length, a name, and data; None where one goes on to the end of the file."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if head[4:8] not in MP4_BOXES or length == 0:  # what stands after the last box is nobody's matter
            return None
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            return None
        start += length
    return start


def _sphere_size(file: BinaryIO) -> int | None:
    """Size of a NIST SPHERE file by the fields of its head; None where it lacks one, or its samples are compressed."""
    file.seek(0)
    head = file.read(1024)
    fields = dict(re.findall(rb"^(\w+) -[ir] (\d+)", head, re.MULTILINE))
    names = (b"sample_count", b"sample_n_bytes", b"channel_count")
    begins = re.match(rb"NIST_1A\s+(\d+)", head)
    if begins is None or not all(name in fields for name in names) or b"shorten" in head:
        return None
    samples, width, channels = (int(fields[name]) for name in names)
    return int(begins[1]) + samples * width * channels


def _ends_with_last_page(file: BinaryIO, size: int) -> bool:
    """Whether the last page of an Ogg file is whole, and marked as the last of its stream."""
    file.seek(max(0, size - MAX_OGG_PAGE))
    tail = file.read()
    place = tail.rfind(b"OggS")
    if place < 0 or len(tail) < place + 27:
        return False
    lacing = tail[place + 27 : place + 27 + tail[place + 26]]
    whole = len(lacing) == tail[place + 26] and len(tail) >= place + 27 + len(lacing) + sum(lacing)
    return whole and bool(tail[place + 5] & OGG_LAST)


def states_duration(container: Any, path: Path) -> bool:
    """Whether the duration of a container is stated in the file, and no estimate."""
    if not container.duration:
        return False
    if container.format.name == "mp3":
        return _has_mp3_header(path)
    return container.format.name in STATED_DURATION


def _has_mp3_header(path: Path) -> bool:
    with path.open("rb") as file:
        head, start = file.read(10), 0
        while head[:3] == b"ID3" and len(head) == 10:
            length = 0
            for byte in head[6:10]:
                length = length << 7 | byte & 0x7F
            start += 10 + length
            file.seek(start)
            head = file.read(10)
        file.seek(start)
        first = file.read(MP3_HEADER_WITHIN)
    return any(header in first for header in MP3_HEADERS)


class PacketTimes:
    """When the packets of a container end, over all its streams: one may be longer than the one that is decoded."""

    def __init__(self) -> None:
        self.end = 0.0
        self.longest_gap = 0.0
        self._last: dict[int, float] = {}

    def add(self, packet: Any) -> None:
        """Take in a packet; one without a time tells nothing."""
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is None or packet.time_base is None:
            return
        seconds, stream = float(ticks * packet.time_base), packet.stream.index
        self.longest_gap = max(self.longest_gap, seconds - self._last.get(stream, seconds))
        self._last[stream] = max(seconds, self._last.get(stream, seconds))
        self.end = max(self.end, seconds + float((packet.duration or 0) * packet.time_base))

    def find_missing_seconds(self, stated: float) -> str | None:
        """``it is cut off: 2.4 of 4.0 s`` where the packets end before the stated duration; None where they do not."""
        if self.end + self.longest_gap + DURATION_TOLERANCE >= stated:
            return None
        return f"it is cut off: {self.end:.1f} of {stated:.1f} s"


def decode_to_the_end(container: Any, stream: Any, times: PacketTimes) -> Iterator[Any]:
    """The frames of a stream, while the packets of all streams are timed."""
    for packet in container.demux():
        times.add(packet)
        if packet.stream.index == stream.index:
            yield from packet.decode()

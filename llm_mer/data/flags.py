"""What may be wrong with a recording though it can be read: the names of flags, and what each means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

FLAGS: dict[str, str] = {
    "silence": "no 100 ms of the sound reach -60 dBFS",
    "low_level": "no 100 ms of the sound reach -50 dBFS",
    "clipping": "more than 0.1 % of the samples reach 0.98 of full scale",
    "black_pictures": "at least half of the pictures are black",
    "blank_pictures": "at least half of the pictures are of one colour",
    "frozen_pictures": "the pictures stand still for at least half of the clip",
}
"""Flag → meaning. Where each is found and how: :mod:`llm_mer.features.flags`."""


def count_flags(flags: Iterable[Sequence[str]]) -> str:
    """``3 of 188 utterances: silence 1, clipping 2`` of each utterance's flags; empty where there are none."""
    every = list(flags)
    counts = Counter(name for names in every for name in names)
    if not counts:
        return ""
    named = ", ".join(f"{name} {counts[name]}" for name in FLAGS if name in counts)
    return f"{sum(bool(names) for names in every)} of {len(every)} utterances: {named}"

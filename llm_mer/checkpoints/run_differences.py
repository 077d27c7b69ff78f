"""The one comparison of two runs: every option, digest and version in which they differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import PromptTemplate

BOOKKEEPING = ("output_dir", "seeds", "resume_from_checkpoint", "disable_tqdm", "run_name", "logging_dir")
"""Trainer options that say where a run lies and how it is shown, and not what comes out of it."""


def flat_setup(options: dict[str, dict[str, Any]], fingerprint: str, questions_sha256: str) -> dict[str, Any]:
    """Every option but bookkeeping (where a run lies, how it is shown), with the data's and the questions' digests."""
    flat = {name: value for group in options.values() for name, value in group.items() if name not in BOOKKEEPING}
    return {
        **flat,
        "data (fingerprint)": fingerprint[:12],
        "tasks and prompts (sha256)": questions_sha256[:12],
    }


def questions_digest(tasks: Sequence[Task], prompts: Sequence[PromptTemplate]) -> str:
    """SHA-256 over what tasks and prompt templates say, wherever their files lie."""
    asked = {"tasks": {t.name: t.to_dict() for t in tasks}, "prompts": [p.to_dict() for p in prompts]}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def differences(then: dict[str, Any], today: dict[str, Any]) -> list[str]:
    """``torch: '2.7.0' then, '2.8.0' now`` for every entry that differs; one that is missing is ``None``."""
    names = dict.fromkeys([*then, *today])
    return [f"{n}: {then.get(n)!r} then, {today.get(n)!r} now" for n in names if then.get(n) != today.get(n)]


def given_options(options: Any) -> dict[str, Any]:
    """A dataclass's own fields and values, nothing copied."""
    return {entry.name: getattr(options, entry.name) for entry in dataclasses.fields(options)}

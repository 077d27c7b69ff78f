"""The one comparison of two runs: every option, digest and count in which they differ, and what may differ and why."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import PromptTemplate

OPTION_GROUPS = ("data", "model", "training", "adapter")

BOOKKEEPING: dict[str, str] = {
    "output_dir": "where a run is stored; a folder may be moved",
    "seeds": "each seed is a run of its own, and its own seed is compared",
    "overwrite_output_dir": "previous content of the folder",
    "resume_from_checkpoint": "the checkpoint a run resumed from, which ends with the same weights",
    "disable_tqdm": "how progress is shown",
    "run_name": "the run's name in the tracker",
    "logging_dir": "where a tracker writes",
}
"""Options that may differ between two runs of the same result, each with its reason."""

COMPARED_BY_CONTENT: dict[str, str] = {
    "data": "by the fingerprint of the utterances",
    "folds": "by the fingerprint of the utterances, which the parts of a fold are in",
    "backbone": "by the fingerprint of its weights, by name where it has none",
    "tasks": "by their names in order, and what they say",
    "prompts": "by what the templates say",
}
"""Options that are paths, whose content is compared instead: files may be moved."""

RESUME_MAY_DIFFER: dict[str, str] = {
    "logging_strategy": "what is logged does not change what is trained",
    "logging_steps": "what is logged does not change what is trained",
    "logging_first_step": "what is logged does not change what is trained",
    "log_level": "what is logged does not change what is trained",
    "log_level_replica": "what is logged does not change what is trained",
    "log_on_each_node": "what is logged does not change what is trained",
    "report_to": "where the log goes",
    "project": "where the log goes",
    "save_total_limit": "how many checkpoints are kept; the best always is",
    "save_backbone": "whether the checkpoint holds a copy of the frozen backbone",
    "per_device_eval_batch_size": "how many questions are answered at once in an evaluation",
    "dataloader_num_workers": "who prepares the batches, which follow from the seed alone",
    "dataloader_pin_memory": "how batches get to the device",
    "dataloader_prefetch_factor": "how far ahead batches are prepared",
    "dataloader_persistent_workers": "who prepares the batches",
    "torch_empty_cache_steps": "when unused memory is given back",
    "ddp_timeout": "how long processes wait for one another",
    "push_to_hub": "where checkpoints go",
    "hub_model_id": "where checkpoints go",
    "hub_strategy": "where checkpoints go",
    "hub_private_repo": "where checkpoints go",
    "hub_always_push": "where checkpoints go",
    "hub_revision": "where checkpoints go",
}
"""Options that may differ between a checkpoint and the run that resumes from it, besides :data:`BOOKKEEPING`."""

LENGTH_MAY_DIFFER: dict[str, str] = {
    "num_train_epochs": "with a constant learning rate, a longer run begins as the shorter one did",
    "max_steps": "with a constant learning rate, a longer run begins as the shorter one did",
}
"""What may also differ where the schedule does not depend on the run's length."""

SAVING_MAY_DIFFER: dict[str, str] = {
    "save_strategy": "when checkpoints are written, as long as none is chosen as the best",
    "save_steps": "when checkpoints are written, as long as none is chosen as the best",
}
"""What may also differ without ``load_best_model_at_end``."""


def without_folders(value: Any) -> Any:
    """An absolute path keeps its last part, also after ``FORMAT:`` and ``--option=``; lists and dicts entry by entry."""
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    if isinstance(value, dict):
        return {name: without_folders(entry) for name, entry in value.items()}
    if not isinstance(value, str):
        return value
    path = re.fullmatch(r"(?P<before>(?:--[\w-]+=)?(?:\w+:)?)(?P<path>[/~].*)", value, flags=re.DOTALL)
    return path["before"] + Path(path["path"]).name if path else value


@dataclass(frozen=True)
class Difference:
    """One setting in which two runs differ; what only one of them has is None in the other."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.before!r} then, {self.now!r} now"


@dataclass
class RunSetup:
    """Everything that determines the result of a run, apart from versions and hardware.

    Attributes:
        options: ``{"data" | "model" | "training" | "adapter": {option: value}}``, every one as given by YAML file, command
            line and defaults.
        data_fingerprint: of the utterances. questions_sha256: over tasks and prompt templates (:func:`questions_digest`).
        backbone: ``name`` and ``fingerprint`` (None for a hub name); None for an adapter alone.
        tasks, train_questions, processes: names in order and counts; None where they are not known.
    """

    options: dict[str, dict[str, Any]]
    data_fingerprint: str
    questions_sha256: str
    backbone: dict[str, Any] | None
    tasks: list[str] | None = None
    train_questions: int | None = None
    processes: int | None = None

    def settings(self) -> dict[str, Any]:
        """Everything that is compared, flat, in the order in which differences are reported."""
        left_out = {*BOOKKEEPING, *COMPARED_BY_CONTENT}
        flat: dict[str, Any] = {
            "data (fingerprint)": self.data_fingerprint[:12],
            "training questions": self.train_questions,
            "tasks": self.tasks,
            "tasks and prompts (sha256)": self.questions_sha256[:12],
            "backbone": "none" if self.backbone is None else self._shown_backbone(),
            "processes": self.processes,
        }
        for group in OPTION_GROUPS:
            flat |= {name: value for name, value in self.options[group].items() if name not in left_out}
        return flat

    def without_paths(self) -> RunSetup:
        """The same setup without the folders of one machine, see :func:`without_folders`."""
        return replace(self, options=without_folders(self.options))

    def _shown_backbone(self) -> str:
        assert self.backbone is not None
        found = self.backbone.get("fingerprint")
        return f"{self.backbone['name']} ({found[:12]}…)" if found else str(self.backbone["name"])


def run_differences(before: RunSetup, now: RunSetup, may_differ: Mapping[str, str] | None = None) -> list[Difference]:
    """Everything in which two runs differ, but for :data:`BOOKKEEPING` and ``may_differ``.

    Options of the adapter are compared where both runs have the same adapter, what tasks say where both have the same tasks,
    and counts where both runs know them.
    """
    allowed = set(may_differ or ())
    one, two = before.settings(), now.settings()
    for name in ("tasks", "training questions", "processes"):
        if one[name] is None or two[name] is None:
            allowed.add(name)
    if "tasks" not in allowed and one["tasks"] != two["tasks"]:
        allowed.add("tasks and prompts (sha256)")
    if before.options["model"].get("adapter") != now.options["model"].get("adapter"):
        allowed |= {*before.options["adapter"], *now.options["adapter"]}
    if before.backbone is not None and now.backbone is not None:
        fingerprints = before.backbone.get("fingerprint"), now.backbone.get("fingerprint")
        if fingerprints[0] == fingerprints[1] and (fingerprints[0] or before.backbone["name"] == now.backbone["name"]):
            allowed.add("backbone")
    elif before.backbone is not None or now.backbone is not None:
        names = [None if setup.backbone is None else setup.backbone["name"] for setup in (before, now)]
        one["backbone"], two["backbone"] = (name or "none" for name in names)
    return compare_settings(one, two, allowed)


def compare_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], may_differ: Sequence[str] | set[str] = ()
) -> list[Difference]:
    """Every setting whose values differ, in order; one that is missing counts as None."""
    names = [name for name in dict.fromkeys([*before, *now]) if name not in may_differ]
    return [
        Difference(name, before.get(name), now.get(name)) for name in names if not _same(before.get(name), now.get(name))
    ]


def _same(before: Any, now: Any) -> bool:
    """Equality; a path recorded by its last component only equals any path that ends in it."""
    if isinstance(before, str) and isinstance(now, str) and "/" in now and "/" not in before:
        return bool(before) and without_folders(now) == before
    return bool(before == now)


def resume_may_differ(options: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What may differ between a checkpoint, of which these are the options, and the run that goes on from it."""
    training = options["training"]
    allowed = dict(RESUME_MAY_DIFFER)
    scheduler, warmup = training.get("lr_scheduler_type"), training.get("warmup_steps") or 0
    # A share of all steps as warm-up ends later in a longer run.
    if scheduler == "constant" or (scheduler == "constant_with_warmup" and (warmup == 0 or warmup >= 1)):
        allowed |= LENGTH_MAY_DIFFER
    if not training.get("load_best_model_at_end"):
        allowed |= SAVING_MAY_DIFFER
    return allowed


def questions_digest(tasks: Sequence[Task], prompts: Sequence[PromptTemplate]) -> str:
    """SHA-256 over what tasks and prompt templates say, in order, wherever their files lie."""
    content = {"tasks": [[t.name, t.to_dict()] for t in tasks], "prompts": [p.to_dict() for p in prompts]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

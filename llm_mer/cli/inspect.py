"""Looking at things: prompts as the model reads them, tasks, checkpoints and stores."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from llm_mer.errors import UserError, first_line


@dataclass
class PromptsConfig:
    """Options of ``llm-mer prompts list``."""


@dataclass
class PreviewConfig:
    """Options of ``llm-mer prompts preview``."""

    template: str = field(default="short", metadata={"help": "style, file or folder"})
    task: str = field(default="emotion", metadata={"help": "task whose question to preview"})
    text_en: str = field(default="I had no idea at all", metadata={"help": "English transcript in the preview"})
    text_zh: str = field(default="我一点都不知道", metadata={"help": "Chinese transcript in the preview"})
    pseudo_tokens: int = field(default=4, metadata={"help": "number of pseudo tokens"})
    backbone: str | None = field(
        default=None, metadata={"help": "folder or hub name: also count tokens, and show its chat template"}
    )
    history: int = field(default=2, metadata={"help": "earlier turns in the preview, for templates that show them"})


@dataclass
class TasksConfig:
    """Options of ``llm-mer tasks``."""


@dataclass
class InfoConfig:
    """Options of ``llm-mer info``."""

    path: str = field(default="", metadata={"help": "a checkpoint or a store", "required": True})


def show_tasks(_: TasksConfig) -> str:
    """Every built-in task: kind, target column, labels in both languages or range and step, metric convention."""
    from llm_mer.prompting.tasks import builtin_tasks

    lines = []
    for task in builtin_tasks().values():
        if task.kind == "classification":
            answers = ", ".join(f"{label.words['en']} {label.words['zh']}" for label in task.labels)
        else:
            low, high = task.require_range()
            answers = f"a number in [{low:g}, {high:g}] ({len(task.grid())} admissible answers)"
        lines.append(f"{task.name} ({task.kind}, column {task.target!r}, {task.metrics} metrics)\n    {answers}")
    return "\n".join(lines)


def list_prompts(_: PromptsConfig) -> str:
    """Every shipped template with its language, kind and style of answer."""
    from llm_mer.prompting.templates import load_prompts, prompt_folder

    templates = load_prompts([str(path) for path in sorted(prompt_folder().glob("*.yaml"))])
    width = max(len(t.name) for t in templates)
    return "\n".join(f"{t.name:<{width}}  {t.language}  {t.kind:<14}  answer: {t.answer}" for t in templates)


def preview_prompts(config: PreviewConfig) -> str:
    """Templates rendered for a task, pseudo tokens marked.

    Raises:
        UserError: an unknown template, none that fits the task, or a backbone whose tokenizer cannot be loaded.
    """
    from llm_mer.prompting.rendering import HistoryTurn, preview
    from llm_mer.prompting.tasks import get_task
    from llm_mer.prompting.templates import load_prompts

    tokenizer = None
    if config.backbone:
        from llm_mer.backbones.loading import read_tokenizer

        local = Path(config.backbone).is_dir()
        try:
            tokenizer = read_tokenizer(config.backbone, local)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"backbone {config.backbone!r}: its tokenizer cannot be loaded: {reason}") from None
    task = get_task(config.task)
    templates = [t for t in load_prompts([config.template]) if t.kind == task.kind]
    if not templates:
        raise UserError(f"{config.template}: no template for the {task.kind} task {task.name!r} there")
    turns = [HistoryTurn("AB"[i % 2], f"({i + 1})") for i in range(config.history)]
    texts = {"en": config.text_en, "zh": config.text_zh}
    shown = [preview(t, task, texts[t.language], config.pseudo_tokens, tokenizer, turns) for t in templates]
    return "\n\n".join(shown)


def show_info(config: InfoConfig) -> str:
    """``llm_mer.json`` of a checkpoint or ``store.json`` of a store, the long lists left out.

    Raises:
        UserError: neither is there.
    """
    from llm_mer.checkpoints.description import DESCRIPTION_FILE, CheckpointDescription
    from llm_mer.data.store import STORE_FILE, UtteranceStore

    folder = Path(config.path)
    if (folder / DESCRIPTION_FILE).is_file():
        description = CheckpointDescription.load(folder)
        backbone = description.backbone
        shown = {
            "adapter": description.model["adapter"],
            "backbone": None if backbone is None else backbone.name,
            "quantization": None if backbone is None else backbone.quantization,
            "tasks": list(description.processor["tasks"]),
            "feature_sizes": description.processor["feature_sizes"],
            "training": description.training,
            "data": {k: v for k, v in description.data.items() if k != "features"},
            "features": description.data.get("features"),
            "context": description.context,
            "versions": description.versions,
        }
        return json.dumps(shown, ensure_ascii=False, indent=1)
    if (folder / STORE_FILE).is_file():
        info = UtteranceStore.open(folder).info
        shown = {
            "utterances": info.counts,
            "feature_sizes": info.feature_sizes,
            "fingerprint": info.fingerprint,
            "description": info.description,
        }
        return json.dumps(shown, ensure_ascii=False, indent=1)
    raise UserError(f"{folder}: neither a checkpoint ({DESCRIPTION_FILE}) nor a store ({STORE_FILE})")

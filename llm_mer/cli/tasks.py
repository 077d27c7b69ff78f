"""``llm-mer tasks``: the built-in tasks and their labels."""

from __future__ import annotations

from dataclasses import dataclass

EXAMPLES = ("llm-mer tasks",)


@dataclass
class Options:
    """``llm-mer tasks`` has no options."""


def run(_: Options) -> str:
    """List the built-in tasks: kind, target column, labels in both languages or range, metric convention."""
    from llm_mer.prompting.tasks import builtin_tasks

    lines = []
    for task in builtin_tasks().values():
        if task.kind == "classification":
            answers = ", ".join(f"{label.words['en']} {label.words['zh']}" for label in task.labels)
        else:
            low, high = task.require_range()
            answers = f"a number in [{low:g}, {high:g}] ({len(task.grid())} possible answers)"
        lines.append(f"{task.name} ({task.kind}, column {task.target!r}, {task.metrics} metrics)\n    {answers}")
    return "\n".join(lines)

"""``llm-mer prompts list``: the prompt templates."""

from __future__ import annotations

from dataclasses import dataclass

EXAMPLES = ("llm-mer prompts list",)


@dataclass
class Options:
    """``llm-mer prompts list`` has no options."""


def run(_: Options) -> str:
    """List the shipped templates with language, kind and answer style."""
    from llm_mer.prompting.templates import load_prompts, prompt_folder

    templates = load_prompts([str(path) for path in sorted(prompt_folder().glob("*.yaml"))])
    width = max(len(t.name) for t in templates)
    return "\n".join(f"{t.name:<{width}}  {t.language}  {t.kind:<14}  answer: {t.answer}" for t in templates)

"""``llm-mer prompts preview``: templates as the model reads them, pseudo-token positions marked."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_mer.errors import UserError, first_line

EXAMPLES = (
    "llm-mer prompts preview --template short --task meld",
    "llm-mer prompts preview --template my_prompts.yaml --backbone Qwen/Qwen3-0.6B",
)


@dataclass
class Options:
    """Options of ``llm-mer prompts preview``."""

    template: str = field(default="short", metadata={"help": "style, file or folder"})
    task: str = field(default="emotion", metadata={"help": "task whose question to preview"})
    text_en: str = field(default="I had no idea at all", metadata={"help": "English transcript in the preview"})
    text_zh: str = field(default="我一点都不知道", metadata={"help": "Chinese transcript in the preview"})
    pseudo_tokens: int = field(default=4, metadata={"help": "number of pseudo tokens"})
    backbone: str | None = field(
        default=None,
        metadata={"help": "folder, GGUF file, package's model or hub name: also count tokens, and show its chat template"},
    )
    history: int = field(default=2, metadata={"help": "earlier turns in the preview, for templates that show them"})


def run(options: Options) -> str:
    """Render templates for a task, with pseudo tokens marked.

    Raises:
        UserError: an unknown template, none for the task, or a backbone whose tokenizer cannot be loaded.
    """
    from llm_mer.prompting.preview import preview
    from llm_mer.prompting.rendering import HistoryTurn
    from llm_mer.prompting.tasks import get_task
    from llm_mer.prompting.templates import load_prompts

    tokenizer = None
    if options.backbone:
        from llm_mer.backbones.loading import read_tokenizer

        try:
            tokenizer = read_tokenizer(options.backbone)
        except UserError:
            raise
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"backbone {options.backbone!r}: its tokenizer cannot be loaded: {reason}") from None
    task = get_task(options.task)
    templates = [t for t in load_prompts([options.template]) if t.kind == task.kind]
    if not templates:
        raise UserError(f"{options.template}: it has no template for the {task.kind} task {task.name!r}")
    turns = [HistoryTurn("AB"[i % 2], f"({i + 1})") for i in range(options.history)]
    texts = {"en": options.text_en, "zh": options.text_zh}
    shown = [preview(t, task, texts[t.language], options.pseudo_tokens, tokenizer, turns) for t in templates]
    return "\n\n".join(shown)

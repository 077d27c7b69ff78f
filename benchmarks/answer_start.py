"""How probable are the admissible answers, together, when an answer begins at once and when it begins as text goes on?

`bare` is the answer's own text behind the prompt; `joined` is what ``llm_mer.prompting.answer_start`` makes of it: a space
where the vocabulary joins words with the space before them, and in a chat what the assistant's turn has. The mass is
``Σ_c p(c | prompt)`` for a backbone that nothing was trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from common import options, report

from llm_mer.backbones.loading import load_backbone
from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.model.configuration_mer import MerConfig, build_adapter_config
from llm_mer.model.modeling_mer import MerForConditionalGeneration
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.answer_start import ANSWER_STARTS
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts
from llm_mer.scoring.answer_scorer import AnswerTreeScorer
from llm_mer.scoring.answer_tree import AnswerTree
from llm_mer.scoring.prompt_layout import TaskPrompts

TEXTS: dict[str, list[str]] = {
    "en": [
        "I can't believe you did that!",
        "What a lovely day.",
        "I'm so tired of this.",
        "Leave me alone.",
        "Wow, really?",
        "That is disgusting.",
        "He died last night.",
        "It is five o'clock.",
    ],
    "zh": ["今天真高兴。", "你怎么能这样！", "我好害怕。", "现在五点了。", "真恶心。", "他昨晚去世了。"],
}


def masses(model: MerForConditionalGeneration, processor: MerProcessor, task_name: str, language: str) -> list[torch.Tensor]:
    """``(N,)`` natural logs of the mass of all answers, with their ends and without."""
    task = get_task(task_name)
    prompts = [processor.encode_prompt(task, language, text, []) for text in TEXTS[language]]
    answers = processor.answers(task, language)
    found = []
    for end in (processor.end_token_id, None):
        (scores,) = AnswerTreeScorer(model).score([TaskPrompts(prompts, AnswerTree.build(answers, end))], {})
        found.append(scores.admissible_mass)
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--backbone", type=Path, required=True, help="folder of a causal language model")
    arguments = parser.parse_args()
    loaded = load_backbone(arguments.backbone)
    hidden = int(loaded.model.config.get_text_config().hidden_size)
    chosen = {"feature_sizes": {"text": hidden}, "backbone_size": hidden, "num_pseudo_tokens": 1}
    config = MerConfig(
        text_config=loaded.model.config, adapter="egmf", adapter_config=vars(build_adapter_config("egmf", chosen))
    )
    model = MerForConditionalGeneration.from_backbone(loaded.model, config).eval()
    asked = [("emotion", "en"), ("sims", "en"), ("emotion", "zh")]
    table = []
    with torch_threads(arguments.threads):
        for chat in ("never", "auto")[: 1 if arguments.quick else 2]:
            for task, language in asked[: 1 if arguments.quick else None]:
                for start in ANSWER_STARTS[::-1]:
                    tasks, prompts = [get_task(task)], load_prompts("instruct")
                    made = MerProcessor(
                        loaded.tokenizer, tasks, prompts, {}, {}, num_pseudo_tokens=0, chat=chat, answer_start=start
                    )
                    ended, bare = (mass.double().mean().exp().item() for mass in masses(model, made, task, language))
                    found = made.find_answer_start(tasks[0], language)
                    begins = repr(found.prompt_end + found.answer_prefix)
                    table.append([chat, task, language, start, begins, f"{bare:.1e}", f"{ended:.1e}"])
                    print(*table[-1], sep=" | ", file=sys.stderr, flush=True)
    head = ["chat", "task", "language", "answer_start", "between prompt and answer", "mass of the answers"]
    head += ["with their ends"]
    notes = (
        f"Backbone `{arguments.backbone.name}`, float32, template `instruct`, no pseudo tokens; {len(TEXTS['en'])} English, "
        f"{len(TEXTS['zh'])} Chinese sentences of the script; geometric means over them. `with their ends` asks for the end "
        "token behind the answer too, which few backbones write in plain text."
    )
    report("answer_start", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()

"""How much faster and smaller is this project's step and its inference than the field's reference recipe?

Aims: training ≥ 3 ×, inference ≥ 10 ×, memory of a step at a vocabulary of 152k ≤ 0.5 ×.

The reference recipe is written out below as LLM-centric instruction tuning is published: the language model frozen, every
row padded to the longest of the data set (transcript, audio and vision alike), logits at every position in training, one
``generate`` call a batch at inference and its text parsed. Both sides have the same backbone, adapter, pseudo tokens,
prompts, utterances, batches and optimiser. Prompts are of two styles: ``instruct``, which asks after the transcript, and
``preamble``, which has the instruction in front, where this project's passes share it.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Size, backbone, in_fork, options, ratio, report
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llm_mer.backbones.tiny import train_tokenizer
from llm_mer.backbones.tiny_text import generate_lines
from llm_mer.data.dataset import MerDataset
from llm_mer.data.schema import Utterance
from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.inference.predictor import Predictor
from llm_mer.model.collator import MerBatch, MerCollator
from llm_mer.model.configuration_mer import MerConfig, build_adapter_config
from llm_mer.model.modeling_mer import MerForConditionalGeneration
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.tasks import Task, get_task
from llm_mer.prompting.templates import load_prompts
from llm_mer.training.model_builder import add_lora
from llm_mer.training.options import ModelArguments

AUDIO, VISION = (157, 64), (32, 64)
"""Steps and size that MELD's features are padded to in the field's reference implementation."""
LONGEST_TRANSCRIPT = 69
"""Words of MELD's longest training utterance; the median is 6, the mean 8."""
LEARNING_RATE = 1e-4
STYLES = ("instruct", "preamble")


def utterances(count: int) -> list[Utterance]:
    """English utterances whose lengths are distributed like MELD's: log-normal around 6 words, the longest of 69.

    Audio and vision lengths follow the number of words.
    """
    random = np.random.default_rng(0)
    task = get_task("emotion")
    words = [word for line in generate_lines(3, 2000) for word in re.findall(r"[a-z]+", line)]
    lengths = np.clip(np.exp(random.normal(np.log(6), 0.91, count)).round().astype(int), 1, LONGEST_TRANSCRIPT)
    lengths[0] = LONGEST_TRANSCRIPT
    found = []
    for index, length in enumerate(lengths):
        share = min(1.0, length / 30)
        audio, vision = max(1, round(AUDIO[0] * share)), max(1, round(VISION[0] * share))
        start = int(random.integers(len(words) - length))
        found.append(
            Utterance(
                id=str(index),
                split="train",
                language="en",
                text=" ".join(words[start : start + length]),
                audio_features=random.normal(size=(audio, AUDIO[1])).astype(np.float32),
                vision_features=random.normal(size=(vision, VISION[1])).astype(np.float32),
                labels={"emotion": task.label_names[index % task.num_classes]},
            )
        )
    return found


@cache
def tokenizer_of(prompts: str) -> PreTrainedTokenizerFast:
    """A small vocabulary that has met the instruction, and so writes it with about a token a word, as a large one does."""
    instructions = [text for t in load_prompts(prompts) for text in (t.system, t.prefix, t.task) if text]
    return train_tokenizer([*generate_lines(0, 4000), *instructions * 50], 3200)


@dataclass
class Setting:
    """A data set, its processor and a way to build the model afresh.

    ``load`` makes the frozen backbone, of ``hidden`` features, with the same weights at every call.
    """

    hidden: int
    collator: MerCollator
    load: Callable[[], PreTrainedModel]
    adapter: str = "egmf"

    @classmethod
    def build(cls, size: Size, count: int, prompts: str = "instruct") -> Setting:
        return cls.around(lambda: backbone(size), size.hidden, count, prompts)

    @classmethod
    def around(cls, load: Callable[[], PreTrainedModel], hidden: int, count: int, prompts: str) -> Setting:
        templates = load_prompts(prompts)
        tokenizer = tokenizer_of(prompts)
        sizes = {"text": hidden, "audio": AUDIO[1], "vision": VISION[1]}
        task = get_task("emotion")
        processor = MerProcessor(tokenizer, [task], templates, sizes, {}, num_pseudo_tokens=4)
        return cls(hidden, MerCollator(MerDataset(utterances(count), [task]), processor), load)

    @property
    def task(self) -> Task:
        return self.collator.dataset.tasks[0]

    def model(self) -> MerForConditionalGeneration:
        """The frozen backbone with an untrained adapter, the same weights at every call."""
        loaded = self.load()
        given = {
            "num_pseudo_tokens": self.collator.processor.num_pseudo_tokens,
            "feature_sizes": self.collator.processor.feature_sizes,
            "backbone_size": self.hidden,
            "num_classes": self.task.num_classes,
        }
        config = build_adapter_config(self.adapter, given)
        wrapped = MerConfig(text_config=loaded.config, adapter=self.adapter, adapter_config=asdict(config))
        return MerForConditionalGeneration.from_backbone(loaded, wrapped)

    def batch(self, questions: Sequence[int], with_answer: bool) -> MerBatch:
        return self.collator.batch([self.collator.dataset.questions[i] for i in questions], with_answer)

    def longest(self) -> dict[str, int]:
        """The lengths every row of the reference is padded to, found over the data set once."""
        dataset, found = self.collator.dataset, {"prompt": 0, "answer": 0, "text": 0}
        for question in dataset.questions:
            sample = self.collator.prepare(question, True)
            assert sample.prompt is not None
            lengths = {"prompt": len(sample.prompt.ids), "answer": len(sample.answer), "text": len(sample.text_ids or [])}
            found = {name: max(value, lengths[name]) for name, value in found.items()}
        return {**found, "audio": AUDIO[0], "vision": VISION[0]}


# --- the reference recipe ---------------------------------------------------------------------------------------------


def padded(batch: MerBatch, longest: dict[str, int], filler: int, with_answer: bool) -> dict[str, Tensor]:
    """The batch with every row as long as the longest of the data set."""
    inputs = batch.model_inputs()
    length = longest["prompt"] + (longest["answer"] if with_answer else 0)
    fills = {"input_ids": filler, "labels": -100, "text_ids": filler}
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", "pseudo_token_mask", "labels"):
            missing = length - value.shape[1]
            inputs[name] = F.pad(value, (0, missing) if with_answer else (missing, 0), value=fills.get(name, 0))
        elif (kind := name.partition("_")[0]) in longest and name.endswith(("_features", "_mask", "_ids")):
            missing = longest[kind] - value.shape[1]
            inputs[name] = F.pad(value, (0, 0) * (value.ndim - 2) + (0, missing), value=fills.get(name, 0))
    return inputs


def reference_loss(model: MerForConditionalGeneration, inputs: dict[str, Tensor]) -> Tensor:
    """Logits at every position in float32, shifted, -100 ignored; the adapter's own losses on top."""
    given = {name: value for name, value in inputs.items() if name != "labels"}
    output = model.model(**given, use_cache=False)
    logits = model.lm_head(output.last_hidden_state).float()
    shifted = logits[:, :-1].reshape(-1, logits.shape[-1])
    loss = F.cross_entropy(shifted, inputs["labels"][:, 1:].reshape(-1))
    return loss + sum(output.fusion.aux_losses.values(), torch.zeros(()))


@torch.no_grad()
def reference_answers(setting: Setting, model: Any, inputs: dict[str, Tensor], tokens: int) -> list[Any]:
    """One greedy ``generate``, decoded and parsed."""
    processor = setting.collator.processor
    assert processor.tokenizer is not None
    output = model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=processor.end_token_id,
        pad_token_id=processor.filler_id,
    )
    texts = processor.tokenizer.batch_decode(output[:, -tokens:], skip_special_tokens=True)
    return [setting.task.parse(text, "en", "word") for text in texts]


# --- this project's ---------------------------------------------------------------------------------------------------


def our_loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """As the trainer calls the model: logits where there is an answer."""
    output = model(**inputs, use_cache=False)
    loss: Tensor = output.loss + sum(output.fusion.aux_losses.values(), torch.zeros(()))
    return loss


# --- measuring --------------------------------------------------------------------------------------------------------


def optimised(
    model: nn.Module, loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]
) -> Callable[[dict[str, Tensor]], None]:
    """A training step over what is trainable."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

    def step(inputs: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        loss(model, inputs).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


@dataclass
class Seconds:
    """Processor and wall seconds of each turn of one side."""

    processor: list[float]
    wall: list[float]


def in_turn(sides: dict[str, Callable[[int], object]], turns: int) -> dict[str, Seconds]:
    """Every side on the data of each turn, one after another, after one turn that does not count."""
    taken = {name: Seconds([], []) for name in sides}
    for turn in range(-1, turns):
        for name, work in sides.items():
            wall, processor = time.perf_counter(), time.process_time()
            work(max(turn, 0))
            if turn >= 0:
                taken[name].processor.append(time.process_time() - processor)
                taken[name].wall.append(time.perf_counter() - wall)
    return taken


TRAINING = ("reference", "frozen", "frozen, packed", "LoRA", "LoRA, packed")
PACKING_LENGTH = 384


def training_sides(setting: Setting, rounds: list[list[int]]) -> dict[str, Callable[[int], object]]:
    """A step on the batch of each round, collated beforehand on all sides."""
    longest, filler = setting.longest(), setting.collator.processor.filler_id
    plain = [setting.batch(questions, True) for questions in rounds]
    full = [padded(batch, longest, filler, True) for batch in plain]
    ours = [batch.model_inputs() for batch in plain]
    packing = dataclasses.replace(setting.collator, packing_length=PACKING_LENGTH)
    asked = setting.collator.dataset.questions
    packed = [packing.batch([asked[i] for i in questions], True).model_inputs() for questions in rounds]
    frozen = optimised(setting.model().train(), our_loss)
    adapted = optimised(add_lora(setting.model(), ModelArguments()).train(), our_loss)
    steps = {
        "reference": (optimised(setting.model().train(), reference_loss), full),
        "frozen": (frozen, ours),
        "frozen, packed": (frozen, packed),
        "LoRA": (adapted, ours),
        "LoRA, packed": (adapted, packed),
    }

    def side(name: str) -> Callable[[int], object]:
        step, data = steps[name]
        return lambda turn: step(data[turn])

    return {name: side(name) for name in TRAINING}


def inference_sides(setting: Setting, rounds: list[list[int]], rows: int) -> dict[str, Callable[[int], object]]:
    """Answers to a round's questions, collation and parsing included; the reference takes them as they come."""
    longest, collator = setting.longest(), setting.collator
    model = setting.model().eval()
    predictors = {
        name: Predictor(model, collator.processor, batch_size=rows, answer_end=end)
        for name, end in (("ours", True), ("ours, no ends", False))
    }

    def reference(turn: int) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(rounds[turn]), rows):
            batch = setting.batch(rounds[turn][start : start + rows], False)
            inputs = padded(batch, longest, collator.processor.filler_id, False)
            given = {name: value.to(model.device) for name, value in inputs.items()}
            found += reference_answers(setting, model, given, longest["answer"])
        return found

    def side(predictor: Predictor) -> Callable[[int], object]:
        return lambda turn: predictor.predict(collator.dataset, rounds[turn])

    return {"reference": reference, **{name: side(predictor) for name, predictor in predictors.items()}}


def resident(key: str) -> float:
    """A value of ``/proc/self/status`` in MB (Linux)."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def memory(side: str, size: Size, style: str, count: int, rows: int) -> tuple[float, float]:
    """MB that a step of one side adds at its peak to what the built model holds, and the whole peak, in this process."""
    torch.set_num_threads(1)
    setting = Setting.build(size, count, style)
    # The longest utterance is among them, so our padding has no advantage here.
    if side.endswith("packed"):
        setting.collator.packing_length = PACKING_LENGTH
    batch = setting.batch(range(rows), True)
    if side == "reference":
        step = optimised(setting.model().train(), reference_loss)
        inputs = padded(batch, setting.longest(), setting.collator.processor.filler_id, True)
    else:
        model: nn.Module = setting.model()
        step = optimised((add_lora(model, ModelArguments()) if side.startswith("LoRA") else model).train(), our_loss)
        inputs = batch.model_inputs()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step(inputs)
    return resident("VmHWM") - before, resident("VmHWM")


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def rows_of(taken: dict[str, Seconds], samples: int) -> list[list[str]]:
    """Of each side: samples a processor second, samples a wall second, times the reference by both."""
    table = []
    for name, seconds in taken.items():
        cells = [name, spread([samples / s for s in seconds.processor]), spread([samples / s for s in seconds.wall])]
        for of, to in (("processor", "processor"), ("wall", "wall")):
            cells.append(f"{ratio(getattr(taken['reference'], of), getattr(seconds, to)):.1f} ×")
        table.append(cells)
    return table


def verdict(table: Sequence[Sequence[str]]) -> str:
    """Which settings reach the aims, by processor time, and which miss them."""
    aims = [("training", 7, 3.0, "training ≥ 3 ×"), ("inference", 7, 10.0, "inference ≥ 10 ×")]
    found = []
    for what, column, least, aim in aims:
        cells = [row for row in table if row[3] == what and row[4] != "reference"]
        names = {True: [], False: []}  # type: dict[bool, list[str]]
        for row in cells:
            names[float(row[column].split()[0]) >= least].append(f"{row[0]} at {row[1]} ({row[2]}, {row[4]}, {row[column]})")
        found.append(f"{aim}: reached by {'; '.join(names[True]) or 'none'}; missed by {'; '.join(names[False]) or 'none'}.")
    large = [row for row in table if row[1] == "152,000" and row[3] == "training" and row[4] != "reference"]
    if large:
        cells = [f"{row[2]}, {row[4]} {row[10]} added, {row[12]} peak" for row in large]
        found.append(f"Memory ≤ 0.5 × at 152,000: {'; '.join(cells)}.")
    return "\n\n".join(found)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=8, help="batch size (the reference implementation's is 8)")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    plan = [
        Size(4, 128, 4_000),
        *(Size(6, 256, vocabulary) for vocabulary in (4_000, 65_000, 152_000)),
        Size(12, 768, 4_000),
    ]
    rows, turns, count = arguments.rows, arguments.turns, 512
    if arguments.quick:
        plan, rows, turns, count = [Size(2, 128, 4_000)], 4, 2, 32
    table: list[list[str]] = []
    # Before any other work: a forked process would use memory again that this one has freed, and show no peak. What
    # libraries load when LoRA is first put on a model is loaded for all sides.
    add_lora(Setting.build(Size(1, 64, 4_000), 8).model(), ModelArguments())
    cases = [(size, style) for size in plan for style in STYLES]
    peaks = {(*case, side): in_fork(memory, side, *case, 64, rows) for case in cases for side in TRAINING}
    for size, style in cases:
        asked = 8 if arguments.quick else 32 if size.hidden > 256 else 128
        with torch_threads(arguments.threads):
            setting = Setting.build(size, count, style)
            random = np.random.default_rng(1)
            order = random.permutation(len(setting.collator.dataset)).tolist()
            trained = in_turn(training_sides(setting, [order[i * rows : (i + 1) * rows] for i in range(turns)]), turns)
            questions = [order[i * asked : (i + 1) * asked] for i in range(turns)]
            answered = in_turn(inference_sides(setting, questions, rows), turns)
        place = [str(size), f"{size.vocabulary:,}", style]
        for line in rows_of(trained, rows):
            added, peak = peaks[size, style, line[0]]
            reference = peaks[size, style, "reference"]
            memories = [f"{added:.0f}", f"{added / reference[0]:.2f} ×", f"{peak:.0f}", f"{peak / reference[1]:.2f} ×"]
            table.append([*place, "training", *line, *memories])
            print(*table[-1], file=sys.stderr, flush=True)
        for line in rows_of(answered, asked):
            table.append([*place, "inference", *line, "", "", "", ""])
            print(*table[-1], file=sys.stderr, flush=True)
    head = ["layers × size", "vocabulary", "prompts", "what", "side", "samples / processor s", "samples / wall s"]
    head += ["× reference, processor", "× reference, wall", "added by a step, MB", "÷ reference", "peak, MB", "÷ reference"]
    longest = setting.longest()
    lengths = [setting.collator.length(question) for question in setting.collator.dataset.questions]
    notes = (
        f"Batch {rows}, {turns} turns of all sides one after another, median (range); ratios are medians of those within a "
        f"turn. {arguments.threads} thread(s), float32, random weights; the cores are shared with other work, so "
        f"processor time is the fair measure and wall time stands beside it. {count} utterances with MELD's lengths: "
        f"prompts and answers of {statistics.median(lengths):.0f} tokens in the median, {max(lengths)} the longest, to "
        f"which the reference pads; answers of up to {longest['answer']} tokens, which is how many the reference may "
        "generate (random weights do not end earlier). `frozen` trains the adapter alone, as the reference does; `LoRA` "
        "trains this project's default LoRA as well, which the reference has not; `packed` puts the batch into rows of at "
        f"most {PACKING_LENGTH} tokens, what its prompts begin with computed once. Inference answers a round of 128 "
        "questions (32 of the largest backbone) in batches of like length, with probabilities for every label where the "
        "reference has a text; without ends a label is scored by its own tokens alone. The reference's `generate` is "
        "transformers' own, which computes logits at the last position only. Training leaves "
        "collation out on all sides, inference has it in. Memory is of a batch that holds the longest utterance, in the "
        "first step of a process of its own. The backbones are small, so the vocabulary head has a far larger share of a "
        "step than in one of billions of parameters, and so has what leaving it out saves."
    )
    report("reference_recipe", __doc__, head, table, f"{notes}\n\n{verdict(table)}", arguments.quick)


if __name__ == "__main__":
    main()

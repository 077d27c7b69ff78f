"""Predictions of a whole dataset by one or several processes, kept batch by batch so that an interrupted run goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mer.checkpoints.run_differences import compare_settings
from llm_mer.data.words import split_words
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.distributed.progress import track_progress
from llm_mer.errors import UserError
from llm_mer.inference.prediction import Prediction, require_finite_answers
from llm_mer.storage.atomic_files import write_text_atomically
from llm_mer.storage.json_lines import parse_json_object
from llm_mer.storage.json_text import dump_json
from llm_mer.storage.system_errors import naming_path

if TYPE_CHECKING:
    from llm_mer.data.dataset import MerDataset
    from llm_mer.inference.predictor import Batch, Predictor

JOURNAL = "predictions.partial.jsonl"


@dataclass
class Journal:
    """Finished batches of an evaluation, one line each, after a line with all the settings the answers come from."""

    path: Path
    settings: dict[str, Any]
    batches: dict[tuple[str, tuple[int, ...]], list[Prediction]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any]) -> Journal:
        """Read what a run of the same settings has left, or begin; a line that was cut off is dropped.

        Raises:
            UserError: the file is of other settings, with what differs.
        """
        journal = cls(path, json.loads(json.dumps(settings)))
        if not path.is_file():
            return journal
        # At line feeds alone: a text may hold other characters that splitlines takes for ends of lines.
        *complete, rest = path.read_bytes().split(b"\n")
        if not complete:
            path.unlink()
            return journal
        before: dict[str, Any] = {}
        for number, line in enumerate(complete, 1):
            where = f"{path}:{number}"
            try:
                entry = parse_json_object(line, where)
                if number == 1:
                    before = dict(entry["settings"])
                    continue
                answers = [Prediction.from_dict(p) for p in entry["predictions"]]
                journal.batches[entry["condition"], tuple(entry["questions"])] = answers
            except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = str(error).removeprefix(f"{where}: ") if isinstance(error, UserError) else repr(error)
                raise UserError(f"{where}: damaged ({reason}); delete the file to begin again") from None
        differences = [f"{d.name} was {d.before!r}, now {d.now!r}" for d in compare_settings(before, journal.settings)]
        if differences:
            raise UserError(
                f"{path} holds the unfinished answers of another evaluation: {'; '.join(differences)}; finish that one, "
                "name another --output, or delete the file"
            )
        if rest:
            write_text_atomically(path, "".join(f"{line.decode()}\n" for line in complete))
        return journal

    def append(self, condition: str, questions: tuple[int, ...], predictions: list[Prediction]) -> None:
        """Keep one finished batch."""
        lines: list[dict[str, Any]] = [
            {"condition": condition, "questions": questions, "predictions": [p.to_dict() for p in predictions]}
        ]
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines.insert(0, {"settings": self.settings})
        with naming_path(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(dump_json(line) + "\n" for line in lines)

    def finished(self, condition: str) -> dict[tuple[int, ...], list[Prediction]]:
        """Batches of a condition that were done before, by their questions."""
        return {questions: answers for (name, questions), answers in self.batches.items() if name == condition}

    def remove(self) -> None:
        """Delete the file: all is written elsewhere."""
        self.path.unlink(missing_ok=True)


def placed(dataset: MerDataset, batch: Batch, answers: list[Prediction]) -> list[Prediction]:
    """The answers with what groups them: the length of the transcript as it is there, and the place in the conversation."""
    for index, answer in zip(batch.questions, answers, strict=True):
        row = dataset.questions[index].row
        text = dataset.utterances[row].text
        answer.length = None if text is None else len(split_words(text, answer.language))
        answer.position = dataset.position(row)
    return answers


def predict_all(
    predictor: Predictor,
    dataset: MerDataset,
    condition: str,
    processes: ProcessGroup,
    journal: Journal | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """Answers to every question of a dataset, in order, on every process.

    The batches are those of one process, and each is answered whole by one process, so the numbers are the same to the
    last digit on any number of processes. After each round of one batch a process, the first keeps them in the journal.

    Raises:
        UserError: on every process, an answer of any that holds NaN or infinity.
    """
    batches = predictor.batches(dataset)
    done: dict[tuple[int, ...], list[Prediction]] = processes.broadcast_from_first(
        journal.finished(condition) if journal else {}
    )
    found: dict[int, Prediction] = {}
    for questions, answers in done.items():
        found.update(zip(questions, answers, strict=True))
    rest = [batch for batch in batches if batch.questions not in done]
    shown = progress and processes.is_first
    with (
        predictor.evaluating(),
        track_progress(
            total=len(dataset), initial=len(found), description=condition, unit="answer", hidden=not shown, keep=False
        ) as bar,
    ):
        for start in range(0, len(rest), processes.world_size):
            turn = rest[start : start + processes.world_size]
            mine = turn[processes.rank : processes.rank + 1]
            own = placed(dataset, mine[0], predictor.predict_batch(dataset, mine[0])) if mine else []
            gathered = processes.gather(own)
            # Of all processes: where one alone stopped, the others would wait for it.
            require_finite_answers(answer for answers in gathered for answer in answers)
            for batch, answers in zip(turn, gathered, strict=False):
                found.update(zip(batch.questions, answers, strict=True))
                if journal is not None and processes.is_first:
                    journal.append(condition, batch.questions, answers)
                bar.update(len(batch.questions))
    return [found[index] for index in range(len(dataset))]

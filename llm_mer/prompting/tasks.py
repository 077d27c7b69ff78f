"""Tasks: a label set or a score range, and the conversion between a value and the text of an answer."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.task_checks import check_keys, check_spellings, check_words, read_range, require_text
from llm_mer.prompting.text_forms import compose
from llm_mer.storage.quoting import quote
from llm_mer.storage.yaml_text import parse_yaml, read_yaml

ANSWER_STYLES: tuple[str, ...] = ("word", "index", "number")
CONVENTIONS: dict[str, tuple[str, ...]] = {
    "classification": ("classification", "iemocap"),
    "regression": ("plain", "mosi", "sims"),
}
"""Metric conventions a kind of task may name."""
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
"""A score as data files write it."""
METRIC_RANGES: dict[str, tuple[float, float]] = {"mosi": (-3.0, 3.0), "sims": (-1.0, 1.0)}
"""Conventions that cut a score at fixed points: the one range they are about, whose default they are."""


def label_texts(value: Any) -> tuple[str, ...]:
    """How a task file may write a label of the data: a class that the data number, ``1`` or ``1.0``, may be ``1`` there."""
    text = compose(str(value).strip())
    return (text, str(int(value))) if isinstance(value, float) and value.is_integer() else (text,)


@dataclass(frozen=True)
class Label:
    """One class: its canonical name (in data files) and its word in each language (in prompts and answers)."""

    name: str
    words: dict[str, str]


@dataclass(frozen=True)
class Task:
    """What is asked of an utterance.

    Attributes:
        name: e.g. ``emotion``. kind: ``classification`` or ``regression``.
        target: key in :attr:`llm_mer.data.schema.Utterance.labels` that holds the truth.
        labels: fixed order; empty for regression.
        aliases: other spellings of a label in data files, ``{alias: name}``; nothing is guessed beyond these.
        ignored: labels of the data that are outside the set on purpose: such an utterance is not asked about.
        score_range: inclusive, in the unit of the data; None for classification.
        decimals: digits after the point of a numeric answer; the grid of admissible answers follows from it.
        question: in words, by language, for prompts that show ``{question}``; it tells two tasks of one kind apart.
        metrics: convention of :mod:`llm_mer.evaluation.metrics`, one of :data:`CONVENTIONS`.
    """

    name: str
    kind: str
    target: str
    labels: tuple[Label, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    score_range: tuple[float, float] | None = None
    decimals: int = 1
    metrics: str = "classification"
    question: dict[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    def words(self, language: str) -> tuple[str, ...]:
        """Label words in a language, in label order. Raises ``UserError`` when the task has none in it."""
        if any(language not in label.words for label in self.labels):
            raise UserError(f"task {self.name!r} has no label words in language {language!r}")
        return tuple(label.words[language] for label in self.labels)

    def class_index(self, value: str | float, where: str = "") -> int:
        """Index of a label given by name, alias or a word of either language. Raises ``UserError`` otherwise."""
        for text in label_texts(value):
            name = self.aliases.get(text, text)
            for index, label in enumerate(self.labels):
                if name == label.name or name in map(compose, label.words.values()):
                    return index
        raise UserError(
            f"{where + ': ' if where else ''}label {value!r} is not in task {self.name!r}; "
            f"it knows {', '.join(self.label_names)}"
        )

    def ignores(self, value: Any) -> bool:
        """Whether a label of the data is left out on purpose."""
        return any(text in self.ignored for text in label_texts(value))

    def score(self, value: str | float, where: str = "") -> float:
        """The truth as a float, checked against the range."""
        low, high = self.require_range()
        number = float("nan")
        # float would take 1_0 for ten, and a truth value for 1.
        if NUMBER.fullmatch(value.strip()) if isinstance(value, str) else not isinstance(value, bool):
            with suppress(TypeError, ValueError):
                number = float(value)
        if not low <= number <= high:
            raise UserError(
                f"{where + ': ' if where else ''}score {value!r} of task {self.name!r} is not a number in [{low}, {high}]"
            )
        return number

    def require_range(self) -> tuple[float, float]:
        """The score range of a regression task."""
        if self.score_range is None:
            raise ValueError(f"task {self.name} has no score range: it is a {self.kind} task")
        return self.score_range

    def answers(self, language: str, style: str) -> tuple[str, ...]:
        """Every admissible answer text: one per class, or one per decimal of the score grid in rising order."""
        if self.kind == "classification":
            if style == "word":
                return self.words(language)
            if style == "index":
                return tuple(str(i) for i in range(self.num_classes))
            raise UserError(f"task {self.name!r} is classification: its answer is a word or an index, not {style!r}")
        if style != "number":
            raise UserError(f"task {self.name!r} is regression: its answer is a number, not {style!r}")
        return tuple(self.format_score(v) for v in self.grid())

    def grid(self) -> tuple[float, ...]:
        """Admissible scores in rising order, ``10^-decimals`` apart, both ends of the range included."""
        low, high = self.require_range()
        unit = 10**self.decimals
        first, last = round(low * unit), round(high * unit)
        return tuple(i / unit for i in range(first, last + 1))

    def format_score(self, value: float) -> str:
        """A score as answer text, rounded half to even on the grid: ``-0.04`` → ``0.0`` (never ``-0.0``)."""
        step = Decimal(1).scaleb(-self.decimals)
        rounded = Decimal(repr(float(value))).quantize(step, rounding=ROUND_HALF_EVEN)
        return str(abs(rounded) if rounded == 0 else rounded)

    def answer_text(self, value: str | float, language: str, style: str) -> str:
        """The answer a sample is trained on."""
        if self.kind == "classification":
            return self.answers(language, style)[self.class_index(value)]
        low, high = self.require_range()
        return self.format_score(min(max(self.score(value), low), high))

    def parse(self, text: str, language: str, style: str) -> int | float | None:
        """Read a free generation: class index or score; None when it is not an admissible answer.

        White space, letter case and one closing full stop are forgiven; nothing else is. An answer is never guessed
        at, and never mapped to a class by default.
        """
        whole = text.strip()
        cleaned = re.sub(r"[.。]$", "", whole).strip()
        if self.kind == "classification":
            folded = [answer.casefold() for answer in self.answers(language, style)]
            read = (spelling.casefold() for spelling in (whole, cleaned))  # a label may end in a full stop itself
            return next((folded.index(spelling) for spelling in read if spelling in folded), None)
        if re.fullmatch(r"[+-]?[0-9]+(?:\.[0-9]+)?", cleaned) is None:
            return None
        number = float(cleaned)
        low, high = self.require_range()
        return number if low <= number <= high else None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for a checkpoint's own description; :meth:`from_dict` reads them back."""
        entry: dict[str, Any] = {"kind": self.kind, "target": self.target, "metrics": self.metrics}
        if self.question:
            entry["question"] = dict(self.question)
        if self.labels:
            entry["labels"] = [{"name": label.name, **label.words} for label in self.labels]
        if self.aliases:
            entry["aliases"] = dict(self.aliases)
        if self.ignored:
            entry["ignored"] = list(self.ignored)
        if self.score_range is not None:
            entry["range"] = list(self.score_range)
            entry["decimals"] = self.decimals
        return entry

    @classmethod
    def from_checkpoint(cls, name: str, entry: dict[str, Any], where: str = "checkpoint") -> Task:
        """:meth:`from_dict` of what :meth:`to_dict` wrote, an earlier version's too, which gave any range MOSI's metrics."""
        known = METRIC_RANGES.get(entry.get("metrics", ""))
        if known is not None and entry.get("range") != list(known):
            entry = {**entry, "metrics": "plain"}
        return cls.from_dict(name, entry, where)

    @classmethod
    def from_dict(cls, name: str, entry: dict[str, Any], where: str = "tasks") -> Task:
        """Build and check a task from its YAML form."""
        if not isinstance(entry, dict):
            raise UserError(f"{where}: task {name!r} is {entry!r}; it must be a mapping of keys to values")
        known = {"kind", "target", "labels", "aliases", "ignored", "range", "decimals", "metrics", "question"}
        unknown = sorted(set(entry) - known)
        if unknown:
            raise UserError(f"{where}: task {name!r} has unknown keys {unknown}; known are {sorted(known)}")
        require_text(name, f"{where}: the name of a task")
        kind = entry.get("kind")
        if kind not in ("classification", "regression"):
            raise UserError(f"{where}: task {name!r} has kind {kind!r}; it must be classification or regression")
        check_keys(entry, kind, f"{where}: task {name!r}")
        metrics = str(entry.get("metrics", _default_metrics(kind, entry.get("range"))))
        if metrics not in CONVENTIONS[kind]:
            allowed = " or ".join(CONVENTIONS[kind])
            raise UserError(f"{where}: task {name!r} has metrics {metrics!r}; a {kind} task has {allowed}")
        question = entry.get("question") or {}
        if not isinstance(question, dict) or not all(isinstance(v, str) and v.strip() for v in question.values()):
            raise UserError(f"{where}: task {name!r} has question {question!r}; it must be {{en: …, zh: …}}, text in each")
        if unsupported := sorted(str(language) for language in question if language not in LANGUAGES):
            raise UserError(f"{where}: task {name!r} has a question in {unsupported}; languages are {', '.join(LANGUAGES)}")
        is_classes = kind == "classification"
        answers = _read_classes(name, entry, where) if is_classes else _read_range(name, entry, where, metrics)
        target = compose(require_text(entry.get("target", name), f"{where}: task {name!r}: target"))
        return cls(name=name, kind=kind, target=target, metrics=metrics, question=dict(question), **answers)


def _read_classes(name: str, entry: dict[str, Any], where: str) -> dict[str, Any]:
    """The checked ``labels``, ``aliases`` and ``ignored`` of a classification task."""
    labels = []
    given = entry.get("labels") or []
    if not isinstance(given, list):
        raise UserError(f"{where}: task {name!r} has labels {given!r}; it must be a list of {{name: …, en: …, zh: …}}")
    for row in given:
        if not isinstance(row, dict) or "name" not in row:
            raise UserError(f"{where}: task {name!r} has label {row!r}; a label is {{name: …, en: …, zh: …}}")
        words = {str(k): require_text(v, f"{where}: task {name!r}: label {quote(row)}") for k, v in row.items()}
        labels.append(Label(compose(words.pop("name")), words))
    if len(labels) < 2:
        raise UserError(f"{where}: task {name!r} needs at least two labels, found {len(labels)}")
    languages = set(labels[0].words)
    for label in labels:
        if set(label.words) != languages:
            raise UserError(f"{where}: label {label.name!r} of task {name!r} lacks a word in some language")
    names = [label.name for label in labels]
    if len(set(names)) != len(names):
        raise UserError(f"{where}: task {name!r} names a label twice: {names}")
    for language in languages:
        spoken = [label.words[language] for label in labels]
        if len(set(spoken)) != len(spoken):
            raise UserError(f"{where}: task {name!r} uses a word of language {language!r} twice: {spoken}")
    by_language = {language: [label.words[language] for label in labels] for language in sorted(languages)}
    check_words(names, by_language, f"{where}: task {name!r}")
    given_aliases = entry.get("aliases") or {}
    if not isinstance(given_aliases, dict):
        raise UserError(f"{where}: task {name!r} has aliases {given_aliases!r}; it must be a mapping of spellings to labels")
    place = f"{where}: task {name!r}: aliases"
    aliases = {compose(require_text(k, place)): compose(require_text(v, place)) for k, v in given_aliases.items()}
    unknown = sorted(set(aliases.values()) - set(names))
    if unknown:
        raise UserError(f"{where}: task {name!r} has aliases of unknown labels {unknown}; labels are {names}")
    spellings = [(label.name, label.name, "the name") for label in labels]
    spellings += [(word, label.name, f"the {language} word") for label in labels for language, word in label.words.items()]
    spellings += [(alias, label, "an alias") for alias, label in aliases.items()]
    check_spellings(spellings, f"{where}: task {name!r}")
    ignored = entry.get("ignored") or []
    if not isinstance(ignored, list):
        raise UserError(f"{where}: task {name!r} has ignored {ignored!r}; it must be a list of labels")
    ignored = [compose(require_text(label, f"{where}: task {name!r}: ignored")) for label in ignored]
    both = sorted({spelling for spelling, _, _ in spellings} & set(ignored))
    if both:
        raise UserError(f"{where}: task {name!r} both asks about and ignores {both}")
    return {"labels": tuple(labels), "aliases": aliases, "ignored": tuple(ignored)}


def _read_range(name: str, entry: dict[str, Any], where: str, metrics: str) -> dict[str, Any]:
    """The checked ``score_range`` and ``decimals`` of a regression task."""
    bounds, decimals = entry.get("range"), entry.get("decimals", 1)
    low, high = read_range(bounds, decimals, f"{where}: task {name!r}")
    if METRIC_RANGES.get(metrics, (low, high)) != (low, high):
        raise UserError(
            f"{where}: task {name!r} has metrics {metrics!r} and range {bounds!r}; they are for the range "
            f"{list(METRIC_RANGES[metrics])} alone: leave metrics out, or write plain"
        )
    return {"score_range": (low, high), "decimals": decimals}


def _default_metrics(kind: str, bounds: Any) -> str:
    """The convention of a published range, else the first of a kind; a range that is none is refused later."""
    if kind == "regression":
        return next((name for name, known in METRIC_RANGES.items() if bounds in (known, list(known))), "plain")
    return CONVENTIONS[kind][0]


@cache
def builtin_tasks() -> dict[str, Task]:
    """The tasks of ``llm_mer/prompting/resources/tasks.yaml``."""
    text = resources.files("llm_mer.prompting").joinpath("resources/tasks.yaml").read_text(encoding="utf-8")
    return {
        name: Task.from_dict(name, entry, "resources/tasks.yaml")
        for name, entry in parse_yaml(text, "resources/tasks.yaml").items()
    }


def get_task(name: str) -> Task:
    """A built-in task by name, or a user's own by the path of a YAML file that holds exactly one.

    Raises:
        UserError: no such task or file, or the file does not describe one task.
    """
    if name in builtin_tasks():
        return builtin_tasks()[name]
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such task file")
        content = read_yaml(path, name)
        if not isinstance(content, dict) or len(content) != 1:
            raise UserError(f"{name}: a task file holds exactly one task, {{name: {{kind: …}}}}")
        ((task_name, entry),) = content.items()
        return Task.from_dict(task_name, entry, name)
    raise UserError(f"unknown task {name!r}; built in are {', '.join(builtin_tasks())}, or name a .yaml file")

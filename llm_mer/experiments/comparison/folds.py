"""The folds of a comparison: made or read once, written beside its runs, and the same for every system and seed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llm_mer.data.fold_rules import SESSION, SPEAKER, make_folds, warn_of_shared
from llm_mer.data.folds import FOLDS_FILE, Fold, Folds, all_utterances, select_fold
from llm_mer.data.reading import read_utterances
from llm_mer.errors import UserError
from llm_mer.experiments.comparison.results import RUN
from llm_mer.experiments.comparison.systems import plain_name
from llm_mer.experiments.options import CompareConfig

if TYPE_CHECKING:
    from llm_mer.training.run_config import RunConfig

logger = logging.getLogger(__name__)


def prepare_folds(config: CompareConfig, base: RunConfig) -> Folds | None:
    """The folds of ``--folds``, also written to ``OUTPUT/folds.json``; None where none were asked for.

    They are made of the utterances in the languages of ``base``, whichever split these are in.

    Raises:
        UserError: folds that cannot be made, a file of folds of other data, or other folds than finished runs have.
    """
    if not config.folds:
        return None
    if base.data.folds is not None:
        raise UserError(f"--folds {config.folds}: the configuration names folds itself, {base.data.folds}; keep one of both")
    for name, part in (("train_split", "train"), ("eval_split", "valid")):
        if (given := getattr(base.data, name)) != part:
            raise UserError(
                f"{name}: {given!r} with --folds, whose parts are train, valid and test; leave it out, for {part!r}"
            )
    splits, _, fingerprint = read_utterances(base.data.data)
    utterances = [u for u in all_utterances(splits) if base.data.languages is None or u.language in base.data.languages]
    if config.folds in (SESSION, SPEAKER) or config.folds.lstrip("-").isdecimal():
        folds = make_folds(utterances, config.folds, config.validation, config.fold_seed, fingerprint)
    elif Path(config.folds).is_file():
        folds = Folds.load(Path(config.folds))
        for fold in folds.folds:
            select_fold(splits, fold, config.folds)
    else:
        raise UserError(
            f"--folds {config.folds}: no such file; write session, speaker, a number of folds from 2 on, or the path of a "
            "file of folds"
        )
    _check_folders(folds.names)
    _say_what_is_left_out(folds, len(utterances))
    warn_of_shared([u for u in all_utterances(splits)], folds)
    _write_folds(folds.folds, folds, Path(config.output))
    return folds


def _check_folders(names: Iterable[str]) -> None:
    counts = Counter(plain_name(name) for name in names)
    if (name := next((name for name, count in counts.items() if count > 1), None)) is not None:
        raise UserError(f"two folds would be written into the folder fold-{name}; give them names that differ in letters")


def _say_what_is_left_out(folds: Folds, total: int) -> None:
    tested = sum(len(fold.test) for fold in folds.folds)
    sizes = sorted(len(fold.test) for fold in folds.folds)
    logger.info("%d folds by %s test %d to %d utterances each", len(sizes), folds.by, sizes[0], sizes[-1])
    if tested < total:
        logger.warning("%d of %d utterances are tested in no fold", total - tested, total)


def _write_folds(chosen: tuple[Fold, ...], folds: Folds, output: Path) -> None:
    path = output / FOLDS_FILE
    if path.is_file() and any(output.glob(f"*/fold-*/{RUN}")) and Folds.load(path).folds != chosen:
        raise UserError(f"{path}: the finished runs there have other folds; name another --output or delete it")
    output.mkdir(parents=True, exist_ok=True)
    folds.save(path)

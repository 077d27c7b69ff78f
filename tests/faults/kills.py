"""``make kills``: commands killed at random moments and called again end with what an undisturbed run ends with.

python tests/faults/kills.py --rounds 20 --seed 1 [COMMAND …]

A round calls a command in an empty place, kills it (SIGKILL) at a random moment of its work, and calls it again to its end.
Its results, and what lies beside them, are then compared with those of a run that was left alone. Rounds that are done are
noted in FOLDER/rounds.jsonl, and the same call goes on after them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import psutil  # noqa: E402
from kill_jobs import JOBS, OUTPUT, Inputs  # noqa: E402

PRELOADED = ("torch", "transformers", "trl", "peft", "datasets", "pandas", "scipy.stats", "kill_jobs")
"""Imported before a command is started, so that the moments fall on its work."""
LONGEST_SECONDS = 600.0
NOTES = "rounds.jsonl"


@dataclass(frozen=True)
class Round:
    """One kill and what came of it. ``second`` is the moment, ``alone`` kills the program and not its workers.

    ``failure`` says what is wrong with the result, None for nothing.
    """

    command: str
    number: int
    seed: int
    second: float
    alone: bool
    failure: str | None


def call(words: Sequence[str], log: str) -> None:
    """One command in a session of its own; ends this process with its exit code."""
    os.setsid()
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
    from llm_mer.cli.main import main

    sys.exit(main(list(words)))


class Kills:
    """Rounds of commands in ``folder``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.inputs = Inputs(folder / "inputs")
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))
        self.undisturbed: dict[str, tuple[Path, float]] = {}

    def start(self, words: Sequence[str], log: Path) -> ForkServerProcess:
        process = self.context.Process(target=call, args=(list(words), str(log)))
        process.start()
        return process

    def finish(self, words: Sequence[str], log: Path) -> str | None:
        """Call a command to its end; what is wrong with that, or None."""
        process = self.start(words, log)
        process.join(LONGEST_SECONDS)
        if process.exitcode is None:
            end_session(process)
            return f"still running after {LONGEST_SECONDS:.0f} s"
        if process.exitcode:
            last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            return f"exit code {process.exitcode}: {''.join(last)}"
        return None

    def left_alone(self, command: str) -> tuple[Path, float]:
        """The folder of an undisturbed run of a command, and the seconds that it took."""
        if command not in self.undisturbed:
            folder = self.folder / command / "undisturbed"
            self.start_afresh(folder)
            begun = time.monotonic()
            failure = self.finish(JOBS[command].words(self.inputs, folder / OUTPUT), folder.with_suffix(".log"))
            if failure is not None:
                raise RuntimeError(f"{command} without a kill: {failure}")
            self.undisturbed[command] = folder, time.monotonic() - begun
        return self.undisturbed[command]

    @staticmethod
    def start_afresh(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)
        folder.mkdir(parents=True)

    def run_round(self, command: str, number: int) -> Round:
        """Kill a command once and call it again."""
        chance = random.Random(f"{self.seed} {command} {number}")
        alone = chance.random() < 0.5
        expected, seconds = self.left_alone(command)
        folder = self.folder / command / f"round-{number}"
        words, log = JOBS[command].words(self.inputs, folder / OUTPUT), folder.with_suffix(".log")
        while True:
            self.start_afresh(folder)
            moment = chance.uniform(0, seconds)
            process = self.start(words, log)
            process.join(moment)
            if process.exitcode is None:
                break
            seconds = min(seconds, moment) * 0.95  # it was done before: drawn again
        if alone:
            process.kill()
            process.join()
            failure = wait_for_orphans(process)
        else:
            end_session(process)
            failure = None
        failure = failure or self.finish(words, log) or self.difference(command, folder, expected)
        return Round(command, number, self.seed, round(moment, 3), alone, failure)

    def difference(self, command: str, folder: Path, expected: Path) -> str | None:
        """What distinguishes a place from that of the undisturbed run; None for nothing."""
        job = JOBS[command]
        found, right = job.outcome(folder / OUTPUT), job.outcome(expected / OUTPUT)
        odd = sorted(name for name in found.keys() | right.keys() if found.get(name) != right.get(name))
        if odd:
            return f"other results: {', '.join(odd)}"
        beside, before = ({path.name for path in place.iterdir()} for place in (folder, expected))
        inside, once = ({p.name for p in (place / OUTPUT).rglob(".*")} for place in (folder, expected))
        left = sorted((beside - before) | (inside - once))
        return f"left behind: {', '.join(left)}" if left else None


def end_session(process: ForkServerProcess) -> None:
    """Kill a command and everything it started, and wait for it."""
    assert process.pid is not None
    started: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    psutil.wait_procs(started, timeout=30)


def wait_for_orphans(process: ForkServerProcess, patience: float = 60.0) -> str | None:
    """Wait until the processes of a killed command's session have ended by themselves; else kill them and say so."""
    end = time.monotonic() + patience
    while left := [p for p in psutil.process_iter() if session_of(p.pid) == process.pid]:
        if time.monotonic() > end:
            for each in left:
                each.kill()
            return f"{len(left)} workers outlived the killed program by {patience:.0f} s"
        time.sleep(0.1)
    return None


def session_of(number: int) -> int | None:
    """The session of a process that is alive; None for one that has ended."""
    with suppress(OSError, psutil.Error):
        return os.getsid(number) if psutil.Process(number).status() != psutil.STATUS_ZOMBIE else None
    return None


def read_rounds(path: Path, seed: int) -> dict[tuple[str, int], Round]:
    """The rounds of a seed that are done."""
    if not path.is_file():
        return {}
    found = [Round(**json.loads(line)) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
    return {(each.command, each.number): each for each in found if each.seed == seed}


def table(rounds: Sequence[Round]) -> str:
    """One line a command: kills, when, and what was wrong."""
    lines = ["| command | kills | moments (s) | as undisturbed | otherwise |", "| --- | --- | --- | --- | --- |"]
    for command in dict.fromkeys(each.command for each in rounds):
        own = [each for each in rounds if each.command == command]
        wrong = [each for each in own if each.failure is not None]
        moments = f"{min(each.second for each in own):.2f} to {max(each.second for each in own):.2f}"
        told = "; ".join(f"{each.number}: {each.failure}" for each in wrong) or "–"
        lines.append(f"| {command} | {len(own)} | {moments} | {len(own) - len(wrong)} | {told} |")
    return "\n".join(lines)


def parse_rounds(description: str, commands: Sequence[str], rounds: int, folder: str) -> argparse.Namespace:
    """Which ``commands`` to disturb (all where none is named), how often, with which seed and in what folder."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(commands)}; default: all")
    parser.add_argument("--rounds", type=int, default=rounds, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(folder), help="of inputs, results and notes")
    given = parser.parse_args()
    given.commands = given.commands or list(commands)
    if unknown := set(given.commands) - set(commands):
        parser.error(f"unknown commands {', '.join(sorted(unknown))}; choose from {', '.join(commands)}")
    given.folder.mkdir(parents=True, exist_ok=True)
    return given


def main() -> int:
    """Kill; the exit code is 1 where a result is not that of an undisturbed run."""
    given = parse_rounds("kill commands at random moments and go on", list(JOBS), 20, "build/kills")
    notes = given.folder / NOTES
    kills = Kills(given.folder.resolve(), given.seed)
    kills.inputs.make()
    done = read_rounds(notes, given.seed)
    for command in given.commands:
        for number in range(given.rounds):
            if (command, number) not in done:
                found = kills.run_round(command, number)
                with notes.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(found)) + "\n")
                done[command, number] = found
                if found.failure is None:
                    shutil.rmtree(given.folder / command / f"round-{number}")
            last = done[command, number]
            told = last.failure or "as undisturbed"
            print(f"{command} {number + 1}/{given.rounds}, at {last.second:.2f} s: {told}", flush=True)
    asked = [done[command, number] for command in given.commands for number in range(given.rounds)]
    print(table(asked))
    return int(any(each.failure is not None for each in asked))


if __name__ == "__main__":
    sys.exit(main())

"""``make interrupts``: Ctrl-C twice, as a terminal sends it to a command and all its workers, at random moments.

python tests/faults/interrupts.py --rounds 5 --seed 1 [COMMAND …]

The first ends the command with one line and exit code 130, the second comes while it cleans up. Nothing half-written and no
worker is left, and the same command then ends with what an undisturbed run ends with.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from kill_jobs import JOBS, OUTPUT  # noqa: E402
from kills import Kills, Round, parse_rounds, table, wait_for_orphans  # noqa: E402

EXIT_CODE = 130
LONGEST_CLEAN_UP = 60.0
COMMANDS = tuple(name for name in JOBS if name != "train")  # which saves, and ends with a line of its own


class Interrupts(Kills):
    """Rounds in which a command is interrupted twice."""

    def run_round(self, command: str, number: int) -> Round:
        """Interrupt a command twice and call it again."""
        chance = random.Random(f"{self.seed} {command} {number}")
        pause = chance.uniform(0.0, 0.3)
        expected, seconds = self.left_alone(command)
        folder = self.folder / command / f"round-{number}"
        words, log = JOBS[command].words(self.inputs, folder / OUTPUT), folder.with_suffix(".log")
        while True:
            self.start_afresh(folder)
            moment = chance.uniform(0.1, seconds)
            process = self.start(words, log)
            process.join(moment)
            if process.exitcode is None:
                break
            seconds = min(seconds, moment) * 0.95  # it was done before: drawn again
        for _ in range(2):
            assert process.pid is not None
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGINT)
            process.join(pause)
        process.join(LONGEST_CLEAN_UP)
        failure = what_is_wrong(process.exitcode, log.read_text("utf-8", "replace"), command)
        failure = failure or wait_for_orphans(process, patience=5.0) or left_behind(folder)
        failure = failure or self.finish(words, log) or self.difference(command, folder, expected)
        return Round(command, number, self.seed, round(moment, 3), False, failure)


def what_is_wrong(code: int | None, log: str, command: str) -> str | None:
    """What is wrong with the end of an interrupted command; None for nothing."""
    if code is None:
        return f"still running {LONGEST_CLEAN_UP:.0f} s after the second Ctrl-C"
    if "Traceback" in log or "Exception ignored" in log:
        return f"a traceback: {log.strip().splitlines()[-1]}"
    if code == 0:
        return None  # it was done
    if code != EXIT_CODE:
        return f"exit code {code}: {''.join(log.strip().splitlines()[-1:])}"
    said = [line for line in log.splitlines() if line.startswith(f"llm-mer {command}: interrupted")]
    last = [line for line in said if "cleaning up" not in line]
    return None if len(last) == 1 else f"{len(last)} lines say that it was interrupted"


def left_behind(folder: Path) -> str | None:
    """Temporary files and folders under hidden names; None for none. Locks of a place hold nothing."""
    found = sorted(p.name for p in folder.rglob(".*") if not p.name.endswith(".lock") or ".staging-" in p.name)
    return f"left behind: {', '.join(found)}" if found else None


def main() -> int:
    """Interrupt; the exit code is 1 where something was wrong."""
    given = parse_rounds("interrupt commands twice at random moments", COMMANDS, 5, "build/interrupts")
    rounds = []
    interrupts = Interrupts(given.folder.resolve(), given.seed)
    interrupts.inputs.make()
    for command in given.commands:
        for number in range(given.rounds):
            found = interrupts.run_round(command, number)
            rounds.append(found)
            if found.failure is None:
                shutil.rmtree(given.folder / command / f"round-{number}")
            print(f"{command} {number + 1}/{given.rounds}, at {found.second:.2f} s: {found.failure or 'right'}", flush=True)
    print(table(rounds))
    return int(any(each.failure is not None for each in rounds))


if __name__ == "__main__":
    sys.exit(main())

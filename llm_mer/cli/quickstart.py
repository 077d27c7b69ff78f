"""``llm-mer quickstart``: the main job on real media, from clips to a report, on a generated corpus."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llm_mer.errors import UserError
from llm_mer.resources.files import resource
from llm_mer.storage.json_lines import read_json_lines
from llm_mer.storage.json_text import dump_json

EXAMPLES = ("llm-mer quickstart", "llm-mer quickstart --utterances 600")
UTTERANCES = 360
HELD_OUT_CLIPS = ("en-test-000-02", "zh-test-000-02")
"""The clips that are answered at the end."""
SHOWN_ROW_PREFIXES = ("as is ", "audio and vision shuffled ")
LLM_MER = (sys.executable, "-m", "llm_mer")
ACCELERATE = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)


@dataclass
class Options:
    """Options of ``llm-mer quickstart``."""

    utterances: int = field(default=UTTERANCES, metadata={"help": "utterances of each language; 600 is the full corpus"})
    output: str = field(default="", metadata={"help": "output folder (default: runs/quickstart; other sizes beside it)"})


class Steps:
    """Runs the steps of the job as separate programs, and prints the current step and elapsed seconds."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        self._environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}

    def announce(self, text: str) -> None:
        """Print the headline of a step."""
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        print(f"\n{bold}== {text} ({time.monotonic() - self._start:.0f} s){plain}", flush=True)

    def run(self, *command: str | Path, output: Path | None = None) -> None:
        """Run a program; its standard output is passed through, or written to a file.

        Raises:
            UserError: it failed; its message is on standard error.
        """
        with open(output or os.devnull, "w", encoding="utf-8") as stream:
            done = subprocess.run(
                [str(word) for word in command],
                env=self._environment,
                stdout=None if output is None else stream,
                check=False,
            )
        _check_exit_code(command, done.returncode)

    @contextmanager
    def run_in_background(self, log: Path, *command: str | Path) -> Iterator[None]:
        """Run a program in parallel to the block, with its output in ``log``, and wait for it at the end.

        Raises:
            UserError: it failed; the end of its log is printed.
        """
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                [str(word) for word in command], env=self._environment, stdout=stream, stderr=subprocess.STDOUT
            )
        try:
            yield
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            print("\n".join(log.read_text(encoding="utf-8").splitlines()[-30:]), file=sys.stderr)
        _check_exit_code(command, process.returncode)


def _check_exit_code(command: Sequence[str | Path], code: int) -> None:
    if code:
        words = [str(word) for word in command if str(word) != sys.executable]
        raise UserError(f"a step ended with exit code {code}: {' '.join(words)}")


def held_out_manifest(corpus: Path) -> Path:
    """Write a manifest of only the :data:`HELD_OUT_CLIPS`, beside the corpus's own."""
    entries = read_json_lines(corpus / "manifest.jsonl")
    path = corpus / "held_out.jsonl"
    path.write_text("".join(f"{dump_json(e)}\n" for _, e in entries if e["id"] in HELD_OUT_CLIPS), encoding="utf-8")
    return path


def run(options: Options) -> None:
    """Run all steps: corpus and backbone, features, training with all modalities and with text alone, evaluation, report.

    Raises:
        UserError: too few utterances, or a step that failed.
    """
    if options.utterances < 1:
        raise UserError(f"--utterances {options.utterances}: it must be at least 1")
    default_folder = "runs/quickstart" if options.utterances == UTTERANCES else f"runs/quickstart-{options.utterances}"
    folder = Path(options.output or default_folder)
    corpus, features, egmf, text = (folder / name for name in ("corpus", "features", "egmf", "text"))
    answers, report = folder / "answers.jsonl", folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    steps = Steps()

    steps.announce("1/6 a bilingual corpus of real clips, and in parallel a tiny bilingual language model")
    with steps.run_in_background(folder / "backbone.log", *LLM_MER, "train-backbone"):
        count = str(options.utterances)
        steps.run(*LLM_MER, "make-corpus", "--output", corpus, "--utterances_per_language", count)
        steps.announce("2/6 features")
        steps.run(*LLM_MER, "extract", "--manifest", corpus / "manifest.jsonl", "--output", features)

    steps.announce("3/6 fine-tuning: EGMF, and in parallel the same model without audio and vision")
    # The folder belongs to the quickstart: results of an earlier one are replaced when the new run is complete.
    train = (*ACCELERATE, resource("finetune.py"), "--overwrite_output_dir", "true", "--data", features, "--config")
    with steps.run_in_background(folder / "text.log", *train, "configs/quickstart_text.yaml", "--output_dir", text):
        steps.run(*train, "configs/quickstart.yaml", "--output_dir", egmf)

    steps.announce("4/6 evaluation on held-out speakers")
    evaluate = (*LLM_MER, "evaluate", "--data", features, "--checkpoint")
    with steps.run_in_background(folder / "text_evaluation.log", *evaluate, text):
        steps.run(
            *(*evaluate, egmf, "--conditions", "shuffle:audio,vision", "without:audio,vision", "without:text"),
            *("--generate", "--dialogue_decoder", "offline", "--keep_features"),
            output=folder / "evaluation.txt",
        )
        for line in (folder / "evaluation.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith(SHOWN_ROW_PREFIXES):
                print(line, flush=True)

    steps.announce("5/6 inference on a held-out English and a held-out Chinese clip")
    answers.unlink(missing_ok=True)
    manifest = held_out_manifest(corpus)
    infer = (sys.executable, resource("infer.py"), "--checkpoint", egmf)
    steps.run(*infer, "--manifest", manifest, "--output", answers, "--echo")

    steps.announce("6/6 report")
    compared = ("--evaluations", egmf, "--text_only", text, "--inference", answers)
    steps.run(*LLM_MER, "report", *compared, "--facts", "quickstart", "--output", report)
    steps.announce(f"done: open {report}")

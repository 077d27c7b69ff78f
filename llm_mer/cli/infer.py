"""``infer.py`` and ``llm-mer infer``: a clip, text, features, a manifest or standard input → JSONL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.checkpoints.hub import resolve_checkpoint
from llm_mer.cli.answering import AnsweringRun
from llm_mer.data.schema import Utterance
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.distributed.progress import track_progress, write_line
from llm_mer.errors import UserError
from llm_mer.inference.dialogues import check_dialogues_together
from llm_mer.inference.inputs import InferConfig, check_one_input, inputs, known_columns, known_labels
from llm_mer.inference.inputs import InferConfig as Options
from llm_mer.inference.output_file import Continuation, answer_file, lock_answers
from llm_mer.inference.prediction import Prediction
from llm_mer.inference.provenance import Provenance, check_answered
from llm_mer.scoring.engines.base import read_options

if TYPE_CHECKING:
    from llm_mer.inference.pipeline import MerPipeline

EXAMPLES = (
    'python infer.py --checkpoint runs/quickstart/egmf --text "I am so happy"',
    "python infer.py --checkpoint runs/quickstart/egmf --video clip.mp4 --text 我很高兴",
    "python infer.py --checkpoint runs/quickstart/egmf --manifest clips.jsonl --output answers.jsonl",
)


def run(options: Options) -> None:
    """See :func:`infer`."""
    infer(options)


def format_readable(prediction: Prediction, diagnostics: Sequence[DiagnosticInfo] = ()) -> str:
    """``en-test-1  emotion  happy  p .93, then surprised .04 · truth happy``; a score shows its central 80 %.

    ``diagnostics`` that have a label are included, e.g. ``expert weights 0.31 0.40 0.29``.
    """
    parts = [f"{prediction.id}  {prediction.task}"]
    if isinstance(prediction.value, str):
        ranked = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
        parts.append(f"{prediction.value}  p {prediction.probabilities[prediction.value]:.2f}")
        runner_up = next((pair for pair in ranked if pair[0] != prediction.value), None)
        if runner_up is not None:
            parts[-1] += f", then {runner_up[0]} {runner_up[1]:.2f}"
    elif prediction.interval is not None:
        parts.append(f"{prediction.value:+.1f}  80 % within {prediction.interval[0]:+.1f} to {prediction.interval[1]:+.1f}")
    else:
        parts.append(f"{prediction.value:+.1f}")
    parts += [
        info.summary(prediction.diagnostics[info.name])
        for info in diagnostics
        if info.label and info.of_samples and info.name in prediction.diagnostics
    ]
    if prediction.truth is not None:
        truth = prediction.truth if isinstance(prediction.truth, str) else f"{prediction.truth:+.1f}"
        parts.append(f"truth {truth}")
    return "  ·  ".join(parts)


def check_options(config: InferConfig, processes: ProcessGroup) -> None:
    """Raises :class:`UserError` for invalid options, before anything is read or loaded."""
    for name in ("batch_size", "read_ahead"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: it must be at least 1")
    if config.output is not None and Path(config.output).is_dir():
        raise UserError(f"--output {config.output}: is a folder; name a file")
    if processes.world_size > 1 and (config.output is None or config.stdin):
        raise UserError("several processes need a --manifest and an --output file; use one process for other inputs")
    if check_one_input(config) == "clip" and config.dialogue_decoder != "none":
        raise UserError("--dialogue_decoder decodes the dialogues of a --manifest or of --stdin; leave it out for one clip")


def load_pipeline(config: InferConfig, checkpoint: Path, processes: ProcessGroup) -> MerPipeline:
    """Load the checkpoint with the given options. Raises :class:`UserError` if they do not match it."""
    from llm_mer.inference.pipeline import MerPipeline

    pipeline = MerPipeline.from_pretrained(
        checkpoint,
        backbone=config.backbone,
        adapter=config.adapter,
        device=config.device or processes.device,
        dtype=config.dtype,
        engine=config.engine,
        engine_options=read_options(config.engine_options),
        batch_size=config.batch_size,
        generate=config.generate,
        answer_end=config.answer_end,
        calibration=config.calibration,
        answer=config.answer,
        long_clips=config.long_clips,
        windows=config.windows,
        window_overlap=config.window_overlap,
    )
    if config.dialogue_decoder != "none" and not pipeline.description.shift_probability:
        raise UserError(
            f"{config.checkpoint} was trained without dialogues and their speakers, so it has no shift probability for "
            "--dialogue_decoder"
        )
    task_names = [task.name for task in pipeline.named_tasks(config.tasks)]
    if config.dialogue_decoder != "none" and not set(task_names) & set(pipeline.description.shift_probability):
        raise UserError(f"--dialogue_decoder: none of the tasks asked ({', '.join(task_names)}) has classes to decode")
    return pipeline


def infer(config: InferConfig) -> int:
    """Answer everything and write JSONL; returns the number of utterances answered.

    With several processes each answers its share of the groups (:class:`PartFiles`), and the output is the same as that of
    one process. With ``--output``, an interrupted run resumes after the last complete line, if checkpoint, options and
    inputs are the same. An input that cannot be used becomes a line ``{"id": …, "error": …}`` unless ``--on_bad_input
    stop``.
    """
    processes = ProcessGroup.join()
    check_options(config, processes)
    checkpoint = resolve_checkpoint(config.checkpoint)

    def read_inputs() -> Iterator[Utterance | tuple[str, str]]:
        return inputs(config, known_labels(checkpoint), known_columns(checkpoint))

    stream = read_inputs()
    first = next(stream, None)  # invalid inputs fail before a model is loaded
    if first is None:
        raise UserError("nothing to answer: the input is empty")
    if config.stdin and config.dialogue_decoder == "offline":
        raise UserError("--dialogue_decoder offline needs whole dialogues; with --stdin use online")
    with lock_answers(config.output, processes):
        pipeline = load_pipeline(config, checkpoint, processes)
        answered = answer(config, pipeline, read_inputs, chain([first], stream), processes)
        return sum(processes.gather(answered))


def answer(
    config: InferConfig,
    pipeline: MerPipeline,
    read_inputs: Callable[[], Iterable[Utterance | tuple[str, str]]],
    items: Iterable[Utterance | tuple[str, str]],
    processes: ProcessGroup,
) -> int:
    """Answer ``items`` and write them to the output, continuing a previous run; returns the number of answers.

    Args:
        read_inputs: reads the same inputs from the beginning, for what needs to see them before they are answered.
    """
    task_names = [task.name for task in pipeline.named_tasks(config.tasks)]

    speakers = None if config.speaker_data is None else pipeline.know_speakers(config.speaker_data)

    def claim(output: Path, answered: bool) -> None:
        Provenance.of(config, pipeline.folder, task_names, pipeline.predictor.precision, speakers).claim(output, answered)

    def compare(done: dict[str, str | None]) -> None:
        if done and not config.stdin:  # lines of a stream are compared as they arrive
            check_answered(str(config.output), done, read_inputs())

    diagnostics = pipeline.predictor.adapter.diagnostic_info()

    def echo(prediction: Prediction) -> None:
        write_line(format_readable(prediction, diagnostics))

    with (
        pipeline.predictor.evaluating(),
        answer_file(config.output, processes, len(task_names), Continuation(claim, compare)) as out,
        track_progress(description="infer", unit="utterance", hidden=config.output is None or not processes.is_first) as bar,
    ):
        echoes = config.echo and config.output is not None
        answering = AnsweringRun(
            config, pipeline, processes, out, lambda new: bar.update(new * processes.world_size), echo if echoes else None
        )
        if answering.whole_dialogues and config.manifest is not None:
            check_dialogues_together(read_inputs(), answering.decodes)
        return answering.run(items)

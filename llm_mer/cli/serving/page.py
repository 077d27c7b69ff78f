"""The demo's page (Gradio): a clip goes in, and every task's answer comes out."""

from __future__ import annotations

import html
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mer.cli.serving.answers import ShownAnswer, ask, shown_answers
from llm_mer.cli.serving.messages import DEFECT, message_of
from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.tasks import Task

if TYPE_CHECKING:
    from llm_mer.inference.pipeline import MerPipeline

logger = logging.getLogger(__name__)

LEAST_GRADIO = (6, 31)
"""The options that keep its pages private are not all known to earlier versions."""


def build_page(pipeline: MerPipeline, folder: Path, most_seconds: float, queue_size: int) -> Any:
    """The page as Gradio's ``Blocks``; one clip is answered at a time, and ``queue_size`` wait.

    Args:
        folder: where uploads lie; no other file is taken. most_seconds: longest clip that is taken.
    """
    import gradio as gr

    tasks = pipeline.tasks
    with gr.Blocks(title="llm_mer", analytics_enabled=False) as page:
        with gr.Row():
            with gr.Column():
                inputs = [
                    gr.Video(label=f"Video (with its sound), at most {most_seconds:g} s"),
                    gr.Audio(type="filepath", label="Sound, if not the video's"),
                    gr.Textbox(label="Transcript"),
                    gr.Radio(["auto", *LANGUAGES], value="auto", label="Language"),
                ]
                button = gr.Button("Answer", variant="primary")
            with gr.Column():
                outputs = [part for task in tasks for part in _parts(gr, task)]
                with gr.Accordion("Diagnostics of the adapter", open=False):
                    outputs.append(gr.JSON(show_label=False))
        for component in inputs[:2]:
            _take_uploads_only(gr, component, folder)

        def handle(video: str | None, audio: str | None, text: str | None, language: str) -> list[Any]:
            try:
                predictions = ask(pipeline, video, audio, text or "", language, most_seconds)
                values = [value for shown in shown_answers(tasks, predictions) for value in _values(shown)]
                return [*values, predictions[0].diagnostics]
            except Exception as error:
                told = message_of(error, _names(pipeline, folder, video, audio))
                if told is None:
                    logger.exception("a clip could not be answered")
                # The page takes a message for HTML, and a message may quote what somebody wrote.
                raise gr.Error(html.escape(told or DEFECT), print_exception=False) from None

        button.click(handle, inputs, outputs, api_name="answer", concurrency_limit=1)
    return page.queue(max_size=queue_size, default_concurrency_limit=1, api_open=False)


def _parts(gr: Any, task: Task) -> list[Any]:
    """What shows one task's answer, in the order of :func:`_values`."""
    about: list[Any] = []
    with gr.Column(variant="panel"):
        if task.kind == "classification":
            about.append(gr.Label(label=task.name))
        else:
            low, high = task.require_range()
            about.append(gr.Number(label=f"{task.name} ({low:g} to {high:g})", interactive=False))
            about.append(gr.BarPlot(x="score", y="probability", x_lim=[low, high], height=160, show_label=False, buttons=[]))
        about.append(gr.Textbox(label=f"about the answer to {task.name}", lines=2, max_lines=8, interactive=False))
    return about


def _values(shown: ShownAnswer) -> list[Any]:
    """The values of :func:`_parts`."""
    remarks = "\n".join(shown.remarks)
    if isinstance(shown.value, str):
        return [{str(label): probability for label, probability in shown.probabilities}, remarks]
    import pandas as pd  # comes with Gradio

    distribution = pd.DataFrame(shown.probabilities, columns=["score", "probability"]) if shown.probabilities else None
    return [shown.value, distribution, remarks]


def _take_uploads_only(gr: Any, component: Any, folder: Path) -> None:
    """Gradio fetches an address that is sent in place of a file, and of a mounted page any file of this machine."""

    async def take(path: str | Path | None) -> str | None:
        if path is None:
            return None
        if not os.path.realpath(str(path)).startswith(f"{folder}{os.sep}"):
            raise gr.Error("only files that were uploaded are taken", print_exception=False)
        return str(path)

    component.async_move_resource_to_block_cache = take


def _names(pipeline: MerPipeline, folder: Path, video: str | None, audio: str | None) -> dict[str, str]:
    """What places of this machine are called on the page."""
    names = {str(Path.home()): "~", str(folder): "the uploads", os.getcwd(): "."}
    names |= {str(pipeline.folder): pipeline.folder.name, str(pipeline.folder.resolve()): pipeline.folder.name}
    for path, name in ((video, "the video"), (audio, "the sound")):
        if path:
            names |= {path: name, os.path.realpath(path): name}
    return {place: name for place, name in names.items() if len(place) > 1}


def check_gradio() -> None:
    """Raises :class:`UserError` where Gradio is missing or too old; nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("gradio")
    except PackageNotFoundError:
        raise UserError("the demo needs Gradio: pip install 'llm-mer[demo]'") from None
    if _numbers(found) < LEAST_GRADIO:
        least = ".".join(map(str, LEAST_GRADIO))
        raise UserError(f"the demo needs Gradio {least} or newer, and {found} is installed: pip install -U 'llm-mer[demo]'")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())

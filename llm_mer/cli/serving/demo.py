"""``llm-mer demo``: a page on this machine to try a checkpoint on clips (Gradio, extra ``demo``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.features.media import sound_of
from llm_mer.prompting.languages import LANGUAGES

if TYPE_CHECKING:
    from llm_mer.inference.pipeline import MerPipeline


@dataclass
class DemoConfig:
    """Options of ``llm-mer demo``."""

    checkpoint: str = field(default="", metadata={"help": "folder written by finetune.py", "required": True})
    host: str = field(
        default="127.0.0.1", metadata={"help": "address to serve on; the default is reachable from this machine only"}
    )
    port: int = field(default=7860, metadata={"help": "port"})
    backbone: str | None = field(default=None, metadata={"help": "use this backbone folder instead of the recorded one"})
    adapter: str | None = field(
        default=None, metadata={"help": "package.module:Class, where the checkpoint's adapter is a class of yours"}
    )


def answer(
    pipeline: MerPipeline, video: str | None, audio: str | None, text: str, language: str
) -> tuple[dict[str, float], str, dict[str, Any]]:
    """Label probabilities of the first classification task, the scores as text, and the adapter's diagnostics.

    Raises:
        UserError: no input at all, or a file that cannot be used.
    """
    if not (video or audio or text.strip()):
        raise UserError("give a video, a sound or a text")
    utterance = Utterance(
        id="demo",
        split="test",
        language="" if language == "auto" else language,
        text=text.strip() or None,
        audio=audio or (sound_of(video) if video else None),
        vision=video,
    )
    predictions = pipeline([utterance])
    labels: dict[str, float] = {}
    scores = []
    for prediction in predictions:
        if prediction.interval is None and prediction.probabilities:
            labels = labels or prediction.probabilities
        else:
            between = (
                ""
                if prediction.interval is None
                else f", 80 % between {prediction.interval[0]} and {prediction.interval[1]}"
            )
            scores.append(f"{prediction.task}: {prediction.value}{between}")
    return labels, "\n".join(scores), predictions[0].diagnostics


def build(pipeline: MerPipeline) -> Any:
    """The page. Raises :class:`UserError` without Gradio."""
    try:
        import gradio as gr
    except ImportError:
        raise UserError("the demo needs Gradio: pip install 'llm-mer[demo]'") from None

    def handle(video: str | None, audio: str | None, text: str, language: str) -> Any:
        try:
            return answer(pipeline, video, audio, text or "", language)
        except UserError as error:
            raise gr.Error(str(error)) from None

    return gr.Interface(
        handle,
        [
            gr.Video(label="Video (with its sound)"),
            gr.Audio(type="filepath", label="Sound, if not the video's"),
            gr.Textbox(label="Transcript"),
            gr.Radio(["auto", *LANGUAGES], value="auto", label="Language"),
        ],
        [gr.Label(label="Classes"), gr.Textbox(label="Scores"), gr.JSON(label="Diagnostics of the adapter")],
        title="llm_mer",
        flagging_mode="never",
        analytics_enabled=False,
    )


def run(config: DemoConfig) -> None:
    """Load the checkpoint and serve until interrupted."""
    from llm_mer.inference.pipeline import MerPipeline

    pipeline = MerPipeline.from_pretrained(config.checkpoint, backbone=config.backbone, adapter=config.adapter)
    build(pipeline).launch(server_name=config.host, server_port=config.port, share=False)

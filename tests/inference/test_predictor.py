"""Predictions are always valid and the same however they are asked for; ``infer.py`` reads every kind of input."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_utterances, training_options, values_of

from llm_mer.cli.answering import batches
from llm_mer.cli.infer import answer as answer_all
from llm_mer.cli.infer import infer
from llm_mer.cli.serving.answers import ask as ask_demo
from llm_mer.data.dataset import MerDataset
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.manifest import write_manifest
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError
from llm_mer.inference.conversations import CONVERSATIONS_KEPT, Conversations
from llm_mer.inference.inputs import InferConfig, single_utterance
from llm_mer.inference.output_file import finished_ids
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction
from llm_mer.inference.predictor import Batch, Predictor
from llm_mer.model.collator import MerCollator
from llm_mer.prompting.tasks import get_task


@pytest.fixture(scope="module")
def pipeline(trained: Path) -> MerPipeline:
    return MerPipeline.from_pretrained(trained)


@pytest.fixture(scope="module")
def utterances(store: Path) -> list[Utterance]:
    return list(UtteranceStore.open(store).split("test"))[:10]


def close(one: list[Prediction], two: list[Prediction]) -> bool:
    return all(np.allclose(a.log_probabilities, b.log_probabilities, atol=1e-4) for a, b in zip(one, two, strict=True))


# --- predictions ------------------------------------------------------------------------------------------------------


def test_every_answer_is_valid_and_its_probabilities_sum_to_one(pipeline: MerPipeline, utterances: list[Utterance]) -> None:
    found = pipeline(utterances)
    assert [(p.id, p.task) for p in found] == [(u.id, t) for u in utterances for t in ("emotion", "sentiment")]
    for prediction in found:
        assert sum(np.exp(prediction.log_probabilities)) == pytest.approx(1.0, abs=1e-4)
        if prediction.task == "emotion":
            assert prediction.value in get_task("emotion").label_names
            assert prediction.value == max(prediction.probabilities, key=lambda name: prediction.probabilities[name])
            assert prediction.head_value in get_task("emotion").label_names
        else:
            assert prediction.value == prediction.median
            assert -3.0 <= float(prediction.value) <= 3.0
            low, high = prediction.interval or (0, 0)
            assert low <= float(prediction.value) <= high
            assert len(prediction.log_probabilities) == 61
        assert set(prediction.diagnostics) >= {"expert_weights"}
        assert Prediction.from_dict(json.loads(json.dumps(prediction.to_dict()))) == prediction


@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_batch_size_changes_nothing(
    size: int, trained: Path, pipeline: MerPipeline, utterances: list[Utterance]
) -> None:
    other = MerPipeline.from_pretrained(trained, batch_size=size)
    assert close(other(utterances), pipeline(utterances))


def test_without_its_end_an_answer_is_as_probable_as_its_tokens(trained: Path, utterances: list[Utterance]) -> None:
    pipeline = MerPipeline.from_pretrained(trained, answer_end=False)
    predictor, task = pipeline.predictor, pipeline.named_tasks(["emotion"])[0]
    core: Any = predictor.core
    dataset = pipeline.dataset(utterances[:3], ["emotion"])
    with torch.no_grad(), predictor.evaluating():
        for prediction, question in zip(predictor.predict(dataset), dataset.questions, strict=True):
            inputs = (
                MerCollator(dataset, predictor.processor, predictor.adapter.uses_context)
                .batch([question], False)
                .model_inputs()
            )
            expected = []
            for answer in predictor.processor.answers(task, prediction.language):
                tail = torch.tensor([answer])
                ids = torch.cat([inputs["input_ids"], tail], dim=1)
                logits = core(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0]
                chosen = logits[-1 - len(answer) : -1].double().log_softmax(-1).gather(1, tail.T)
                expected.append(float(chosen.sum()))
            normalised = torch.tensor(expected).log_softmax(-1)
            assert prediction.log_probabilities == pytest.approx(normalised.tolist(), abs=1e-3)
            assert prediction.value == task.label_names[int(normalised.argmax())]


def test_without_ends_answers_of_which_one_begins_another_are_refused(trained: Path, utterances: list[Utterance]) -> None:
    pipeline = MerPipeline.from_pretrained(trained, answer_end=False)
    processor = pipeline.predictor.processor
    one, another = processor.encode("1"), processor.encode("1 1")
    assert another[: len(one)] == one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "answers", lambda *given: [one, another])
        with pytest.raises(UserError, match="begins with another's tokens"):
            pipeline(utterances[:1], ["emotion"])


def test_one_utterance_takes_one_pass_and_a_stream_computes_what_prompts_begin_with_once(
    trained: Path, utterances: list[Utterance]
) -> None:
    pipeline = MerPipeline.from_pretrained(trained, batch_size=1)
    core: Any = pipeline.predictor.core
    widths: list[int] = []
    core.model.language_model.register_forward_pre_hook(
        lambda _m, _a, given: widths.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    english = [u for u in utterances if u.language == "en"][:3]
    alone = [pipeline([u], ["emotion"])[0] for u in english]
    assert len(widths) == 3
    widths.clear()
    with pipeline.predictor.evaluating():
        together = [pipeline([u], ["emotion"])[0] for u in english]
    assert len(widths) == 4, "a prefix and three questions"
    assert close(alone, together)


def test_order_and_company_change_nothing(pipeline: MerPipeline, utterances: list[Utterance]) -> None:
    forwards = pipeline(utterances, ["emotion"])
    backwards = pipeline(utterances[::-1], ["emotion"])
    assert close(forwards, backwards[::-1])
    assert close(pipeline(utterances[4:5], ["emotion"]), forwards[4:5])


def test_a_stream_answers_like_a_list(pipeline: MerPipeline, utterances: list[Utterance]) -> None:
    assert close(list(pipeline.stream(iter(utterances), batch_size=4)), pipeline(utterances))


@pytest.mark.parametrize("kept", [c for n in (1, 2) for c in combinations(("text", "audio", "vision"), n)])
def test_any_modality_may_be_missing(kept: tuple[str, ...], pipeline: MerPipeline, utterances: list[Utterance]) -> None:
    gone = {f"{m}_features": None for m in ("audio", "vision") if m not in kept}
    gone |= {"text": None} if "text" not in kept else {}
    found = pipeline([dataclasses.replace(u, **gone) for u in utterances])
    assert len(found) == 20
    assert all(np.isfinite(p.log_probabilities).all() for p in found)


def test_an_utterance_with_nothing_at_all_is_an_error_that_names_it(
    pipeline: MerPipeline, utterances: list[Utterance]
) -> None:
    with pytest.raises(UserError, match="'empty'"):
        pipeline([utterances[0], Utterance(id="empty", language="en")])


def test_free_generation_is_kept_and_parsed_but_never_guessed_at(trained: Path, utterances: list[Utterance]) -> None:
    found = MerPipeline.from_pretrained(trained, generate=True)(utterances)
    for prediction in found:
        task = get_task(prediction.task)
        style = "word" if task.kind == "classification" else "number"
        assert prediction.generated is not None
        parsed = task.parse(prediction.generated, prediction.language, style)
        expected = task.label_names[int(parsed)] if task.kind == "classification" and parsed is not None else parsed
        assert prediction.parsed == expected
    assert any(p.parsed == p.value for p in found)


@pytest.mark.parametrize("statistic", ["mean", "median", "mode"])
def test_the_value_of_a_score_is_the_statistic_asked_for(statistic: str, trained: Path, utterances: list[Utterance]) -> None:
    for prediction in MerPipeline.from_pretrained(trained, score_statistic=statistic)(utterances[:3], ["sentiment"]):
        assert prediction.value == getattr(prediction, statistic)


def test_wrong_choices_are_refused(trained: Path, pipeline: MerPipeline, utterances: list[Utterance]) -> None:
    with pytest.raises(UserError, match="score_statistic is 'best'"):
        MerPipeline.from_pretrained(trained, score_statistic="best")
    with pytest.raises(UserError, match="not trained on task 'polarity'; it knows emotion, sentiment"):
        pipeline(utterances, ["polarity"])
    wrong = dataclasses.replace(utterances[0], audio_features=np.zeros((3, 9), np.float32))
    with pytest.raises(UserError, match=r"\(3, 9\), the model was trained on 6"):
        pipeline([wrong])


def test_a_batch_size_and_a_device_that_cannot_be_are_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 0"):
        MerPipeline.from_pretrained(trained, batch_size=0)
    for device in ("foo", "cuda:99"):
        with pytest.raises(UserError, match=f"device '{device}' cannot be used"):
            MerPipeline.from_pretrained(trained, device=device)


def test_an_output_in_the_place_of_a_folder_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output .*out: cannot be written"):
        infer(InferConfig(checkpoint=str(trained), text="x", output=str(tmp_path / "file" / "out")))


def test_media_without_known_feature_settings_are_refused(pipeline: MerPipeline) -> None:
    with pytest.raises(UserError, match="whose extraction it does not know"):
        pipeline([Utterance(id="clip", audio="clip.wav", text="x")])


def test_predicting_leaves_a_training_model_in_training_mode(pipeline: MerPipeline, utterances: list[Utterance]) -> None:
    model = pipeline.predictor.model
    model.train()
    try:
        predictor = Predictor(model, pipeline.predictor.processor)
        first = predictor.predict(pipeline.dataset(utterances[:2]))
        assert model.training
        assert close(first, pipeline(utterances[:2]))
    finally:
        model.eval()


def test_fused_features_are_kept_on_request(trained: Path, utterances: list[Utterance]) -> None:
    found = MerPipeline.from_pretrained(trained, keep_features=True)(utterances[:2])
    assert len(found[0].diagnostics["features"]) == 16


# --- infer.py ---------------------------------------------------------------------------------------------------------


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def ask(trained: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    def run(**options: Any) -> list[dict[str, Any]]:
        capsys.readouterr()
        infer(InferConfig(checkpoint=str(trained), **options))
        return lines(capsys.readouterr().out)

    return run


def test_text_alone_is_answered_in_its_own_language(ask: Callable[..., list[dict[str, Any]]]) -> None:
    assert {line["language"] for line in ask(text="we meet on monday")} == {"en"}
    assert {line["language"] for line in ask(text="我们星期一见面")} == {"zh"}
    short, full = ask(text="x", tasks=["sentiment"]), ask(text="x", tasks=["sentiment"], full=True)
    assert "log_probabilities" not in short[0]
    assert len(full[0]["log_probabilities"]) == 61
    assert all(p >= 0.0005 for p in short[0]["probabilities"].values())


def test_features_answer_like_the_store_they_came_from(
    ask: Callable[..., list[dict[str, Any]]], pipeline: MerPipeline, utterances: list[Utterance], tmp_path: Path
) -> None:
    utterance = utterances[0]
    np.savez(tmp_path / "clip.npz", audio=utterance.audio_features, vision=utterance.vision_features)
    found = ask(features=str(tmp_path / "clip.npz"), text=utterance.text, full=True)
    assert [line["id"] for line in found] == ["clip", "clip"]
    for line, expected in zip(found, pipeline([utterance]), strict=True):
        assert np.allclose(line["log_probabilities"], expected.log_probabilities, atol=1e-4)
    assert len(ask(features=str(tmp_path / "clip.npz"), language="en")) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sound": np.zeros((2, 6))}, r"holds \['sound'\]; it may hold text, audio, vision"),
        ({"audio": np.zeros(6)}, r"audio has shape \(6,\)"),
        ({"audio": np.array([["a"]])}, "audio has shape"),
        ({"audio": np.ones((2, 6), complex)}, "kind complex128"),
        ({"audio": np.zeros((0, 6))}, r"audio has shape \(0, 6\), which is empty"),
        ({"audio": np.ones((2, 6)), "vision": np.full((2, 5), np.nan)}, "vision holds NaN or infinity"),
        ({"audio": np.full((2, 6), 1e300)}, "audio holds NaN or infinity"),
        ({"audio": np.array([[None]])}, r"not an \.npz of numeric arrays"),
    ],
)
def test_a_feature_file_of_another_form_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "clip.npz", **arrays)
    with pytest.raises(UserError, match=message):
        single_utterance(InferConfig(features=str(tmp_path / "clip.npz")))


@pytest.mark.parametrize("case", ["npy", "objects", "text", "empty", "cut off"])
def test_a_file_that_is_no_npz_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.npz"
    np.savez(path, audio=np.ones((50, 6)))
    whole = path.read_bytes()
    with path.open("wb") as stream:
        if case in ("npy", "objects"):
            np.save(stream, np.ones((2, 6)) if case == "npy" else np.array([None]))
        else:
            stream.write({"text": b"1 2 3\n", "empty": b"", "cut off": whole[:200]}[case])
    with pytest.raises(UserError, match=r"--features .*clip\.npz: (holds one array|not an \.npz)"):
        single_utterance(InferConfig(features=str(path)))


def test_features_that_are_not_finite_are_refused_by_the_pipeline(
    pipeline: MerPipeline, utterances: list[Utterance]
) -> None:
    for values in (np.full((3, 6), np.nan, np.float32), np.zeros((0, 6), np.float32)):
        with pytest.raises(UserError, match="'odd': audio_features"):
            pipeline([utterances[0], dataclasses.replace(utterances[1], id="odd", audio_features=values)])


@pytest.mark.parametrize("full", [False, True])
def test_an_answer_that_is_not_finite_becomes_a_line_and_never_invalid_json(
    full: bool, ask: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Predictor._fill_value

    def spoilt(self: Predictor, prediction: Prediction, task: Any, log_probs: Any, *rest: Any) -> None:
        fill(self, prediction, task, log_probs * np.nan if task.kind == "classification" else log_probs, *rest)

    monkeypatch.setattr(Predictor, "_fill_value", spoilt)
    bad, good = ask(text="the book", full=full)
    assert set(bad) == {"id", "error"}
    assert "task 'emotion': the answer holds NaN or infinity" in bad["error"]
    assert good["task"] == "sentiment"
    with pytest.raises(UserError, match=r"utterance 'text': task 'emotion'"):
        ask(text="the book", on_bad_input="stop")


def test_half_a_surrogate_pair_becomes_a_line_and_the_others_are_answered(
    ask: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = '{"id": "a", "text": "hi \\ud83d"}\n{"id": "b", "text": "the book \\ud83d\\ude00"}\n'
    path = tmp_path / "m.jsonl"
    path.write_text(given)
    for where, options in (("standard input:1", {"stdin": True}), (f"{path}:1", {"manifest": str(path)})):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        bad, good = ask(tasks=["emotion"], **options)
        assert (bad["id"], good["id"]) == (where, "b")
        assert "field 'text' is 'hi \\ud83d': a lone surrogate" in bad["error"]
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        with pytest.raises(UserError, match="a lone surrogate"):
            ask(on_bad_input="stop", **options)
    with pytest.raises(UserError, match="a lone surrogate"):
        ask(text="hi \ud83d")


def test_the_sound_of_a_clip_without_a_sound_track_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: MerPipeline
) -> None:
    av = pytest.importorskip("av")
    for name in ("silent", "spoken"):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            video = container.add_stream("mpeg4", rate=10)
            video.width = video.height = 32
            sound = container.add_stream("aac", rate=16_000) if name == "spoken" else None
            for _ in range(5):
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            container.mux(video.encode())
            if sound is not None:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate = 16_000
                container.mux(sound.encode(frame))
                container.mux(sound.encode())
    silent, spoken = str(tmp_path / "silent.mp4"), str(tmp_path / "spoken.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_text("no film")
    assert single_utterance(InferConfig(video=silent)).audio is None
    assert single_utterance(InferConfig(video=silent)).vision == silent
    assert single_utterance(InferConfig(video=silent, audio=spoken)).audio == spoken
    assert single_utterance(InferConfig(video=spoken)).audio == spoken
    assert single_utterance(InferConfig(video=str(broken))).audio == str(broken)  # reading it says what is wrong
    asked: list[Utterance] = []
    monkeypatch.setattr(
        MerPipeline, "__call__", lambda self, given: asked.extend(given) or [Prediction("x", "t", "en", "v")]
    )
    ask_demo(pipeline, silent, None, "x", "auto", 60.0)
    ask_demo(pipeline, spoken, None, "x", "auto", 60.0)
    assert [u.audio for u in asked] == [None, spoken]


def texts(folder: Path, count: int = 5) -> Path:
    return write_manifest([Utterance(id=f"u{i}", split="test", text=f"we meet on monday {i}") for i in range(count)], folder)


def test_standard_input_answers_line_by_line_and_reports_bad_ones(
    ask: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = '{"id": "a", "text": "the book"}\nnot json\n\n{"text": "这本书"}\n{"id": "c", "text": "x", "colour": 1}\n'
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    found = ask(stdin=True, tasks=["emotion"])
    assert [line["id"] for line in found] == ["a", "standard input:2", "line-4", "standard input:5"]
    assert "not JSON" in found[1]["error"]
    assert found[2]["language"] == "zh"
    assert "unknown fields ['colour']" in found[3]["error"]
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    with pytest.raises(UserError, match="standard input:2: not JSON"):
        ask(stdin=True, on_bad_input="stop")


@pytest.mark.parametrize("sizes", [{"batch_size": 2, "read_ahead": 1}, {"batch_size": 1, "read_ahead": 2}, {}])
def test_an_output_cut_off_anywhere_is_continued_to_the_same_lines(
    sizes: dict[str, int], trained: Path, tmp_path: Path
) -> None:
    manifest, output = texts(tmp_path / "m.jsonl"), tmp_path / "out.jsonl"
    config = InferConfig(checkpoint=str(trained), manifest=str(manifest), output=str(output), full=True, **sizes)
    assert infer(config) == 5
    whole = output.read_bytes()

    def keys(data: bytes) -> list[tuple[str, str]]:
        return [(line["id"], line["task"]) for line in lines(data.decode())]

    expected = keys(whole)
    assert len(expected) == 10
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (0, 10, ends[0], ends[1], ends[2] + 7, ends[4], ends[9]):
        output.write_bytes(whole[:cut])
        infer(config)
        assert keys(output.read_bytes()) == expected, cut
    assert infer(config) == 0


def test_lines_of_bad_input_are_not_repeated_when_a_run_is_continued(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    config = InferConfig(checkpoint=str(trained), stdin=True, output=str(output), tasks=["emotion"])
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.StringIO('{"id": "a", "text": "x"}\nbroken\n{"id": "b", "text": "y"}\n'))
        infer(config)
    assert [line["id"] for line in lines(output.read_text())] == ["a", "standard input:2", "b"]


@pytest.mark.parametrize("bad", [{"audio": "nowhere.wav"}, {"text": "the book has many pages " * 400}])
def test_where_a_bad_input_stops_the_command_what_stands_before_it_is_answered(
    bad: dict[str, str], trained: Path, tmp_path: Path
) -> None:
    def written(spoilt: dict[str, str]) -> str:
        given = [Utterance(id=f"u{i}", split="test", text=f"we meet on monday {i}") for i in range(7)]
        given[4] = dataclasses.replace(given[4], **spoilt)
        return str(write_manifest(given, tmp_path / "m.jsonl"))

    output = tmp_path / "out.jsonl"
    given: dict[str, Any] = {"checkpoint": str(trained), "output": str(output), "on_bad_input": "stop", "batch_size": 2}
    with pytest.raises(UserError, match="'u4'"):
        infer(InferConfig(manifest=written(bad), **given))
    assert [line["id"] for line in lines(output.read_text())] == [f"u{i}" for i in range(4) for _ in range(2)]
    assert infer(InferConfig(manifest=written({}), **given)) == 3
    assert [line["id"] for line in lines(output.read_text())] == [f"u{i}" for i in range(7) for _ in range(2)]


def test_a_file_that_is_no_output_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work\nand more")
    with pytest.raises(UserError, match=r"thesis\.txt:1: not a line of infer\.py"):
        finished_ids(path)
    assert path.read_text() == "years of work\nand more"
    assert finished_ids(tmp_path / "none") == set()


def test_an_utterance_that_cannot_be_answered_is_a_line_and_the_others_are_answered(trained: Path, tmp_path: Path) -> None:
    manifest = write_manifest(
        [
            Utterance(id="a", split="test", text="the table"),
            Utterance(id="endless", split="test", text="the book has many pages " * 400),
            Utterance(id="clip", split="test", text="x", audio="nowhere.wav"),
            Utterance(id="b", split="test", text="the train"),
        ],
        tmp_path / "m.jsonl",
    )
    output = tmp_path / "out.jsonl"
    config = InferConfig(checkpoint=str(trained), manifest=str(manifest), output=str(output), tasks=["emotion"])
    infer(config)
    found = {line["id"]: line for line in lines(output.read_text())}
    assert set(found) == {"a", "endless", "clip", "b"}
    assert "max_prompt_tokens" in found["endless"]["error"]
    assert "error" in found["clip"]
    assert "value" in found["a"]
    assert "value" in found["b"]
    with pytest.raises(UserError):
        infer(dataclasses.replace(config, output=None, on_bad_input="stop"))


def test_features_of_another_size_become_a_line_with_both_sizes(
    ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    np.savez(tmp_path / "clip.npz", audio=np.zeros((2, 9)))
    (found,) = ask(features=str(tmp_path / "clip.npz"))
    assert "(2, 9)" in found["error"]
    assert "6 features" in found["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give one input.*found none"),
        ({"text": "x", "stdin": True}, "found a clip, --stdin"),
        ({"features": "x.npz", "video": "x.mp4"}, "--features takes the place of --video and --audio"),
        ({"video": "nowhere.mp4"}, "--video nowhere.mp4: no such file"),
        ({"manifest": "nowhere.jsonl"}, "nowhere.jsonl: no such manifest"),
        ({"text": "x", "batch_size": 0}, "--batch_size 0: it must be at least 1"),
        ({"text": "x", "read_ahead": 0}, "--read_ahead 0: it must be at least 1"),
        ({"text": "x", "output": "."}, r"--output \.: is a folder"),
    ],
)
def test_a_wrong_command_line_fails_before_a_model_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        infer(InferConfig(checkpoint="no-checkpoint-is-here", **options))


def test_empty_standard_input_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(UserError, match="nothing to answer"):
        infer(InferConfig(checkpoint="nowhere", stdin=True))


def test_a_dialogue_is_never_torn_where_context_counts() -> None:
    dialogue = [dataclasses.replace(u, dialogue_id=u.dialogue_id) for u in make_utterances("test", 24) if u.language == "en"]
    assert [len(group) for group in batches(enumerate(dialogue), 4, by_dialogue=True)] == [6, 6]
    assert [len(group) for group in batches(enumerate(dialogue), 4, by_dialogue=False)] == [4, 4, 4]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_whole_dialogues_can_be_decoded(mode: str, ask: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    both = [dataclasses.replace(u, labels={}) for u in make_utterances("test", 24)]
    dialogue = sorted(both, key=lambda u: u.dialogue_id or "")
    found = ask(
        manifest=str(write_manifest(dialogue, tmp_path / "m.jsonl")), dialogue_decoder=mode, batch_size=4, read_ahead=1
    )
    assert len(found) == 48
    assert {line["value"] for line in found if line["task"] == "emotion"} <= set(get_task("emotion").label_names)


@pytest.mark.parametrize("decoder", ["offline", "online"])
def test_dialogues_that_run_into_one_another_are_refused_before_an_answer_depends_on_the_batch_size(
    decoder: str, ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    mixed = write_manifest([dataclasses.replace(u, labels={}) for u in make_utterances("test", 24)], tmp_path / "m.jsonl")
    for size in (1, 64):
        with pytest.raises(UserError, match="dialogue 'test-en-0': 'test-002' comes after utterances of another; let the"):
            ask(manifest=str(mixed), dialogue_decoder=decoder, batch_size=size, read_ahead=1)
    assert len(ask(manifest=str(mixed))) == 48


def test_prompts_with_earlier_turns_show_them_whatever_the_batch_size(trained: Path, tmp_path: Path) -> None:
    from llm_mer.distributed.process_group import ProcessGroup
    from llm_mer.prompting.templates import load_prompts

    pipeline = MerPipeline.from_pretrained(trained)
    pipeline.predictor.processor.prompts = load_prompts("context")
    dialogue = [u for u in make_utterances("test", 12) if u.language == "en"]
    found = []
    for size in (1, 16):
        output = tmp_path / f"{size}.jsonl"
        manifest = str(write_manifest(dialogue, tmp_path / "m.jsonl"))
        config = InferConfig(str(trained), manifest=manifest, output=str(output), batch_size=size, read_ahead=1, full=True)
        answer_all(config, pipeline, lambda: iter(dialogue), iter(dialogue), ProcessGroup())
        found.append([line["log_probabilities"] for line in lines(output.read_text(encoding="utf-8"))])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_turn_given_twice_is_refused_by_the_decoder(ask: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(spoken("d", 0, "A") + spoken("d", 1, "B") + spoken("d", 1, "A"), encoding="utf-8")
    given = str(tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"dialogue 'd' has turn 1 twice \('d1B', 'd1A'\); the dialogue decoder needs"):
        ask(manifest=given, dialogue_decoder="offline")
    assert len(ask(manifest=given)) == 6


def test_a_turn_that_comes_after_a_later_one_is_a_line_of_a_decoded_stream(
    ask: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = spoken("d", 5, "A") + spoken("d", 1, "B") + spoken("e", 1, "B") + spoken("d", 5, "B") + spoken("d", 6, "B")
    for decoder, late in (("online", ["d1B", "d5B"]), ("none", [])):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        found = ask(stdin=True, tasks=["emotion"], dialogue_decoder=decoder)
        assert [line["id"] for line in found if "error" in line] == late
        assert all("comes after turn 5; the online decoder" in line["error"] for line in found if "error" in line)


def test_a_decoder_with_nothing_to_decode_is_refused(ask: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    alone = write_manifest([Utterance("a", text="hello"), Utterance("b", text="the book")], tmp_path / "m.jsonl")
    with pytest.raises(UserError, match="no utterance has a dialogue_id, so there is nothing to decode"):
        ask(manifest=str(alone), dialogue_decoder="offline")
    with pytest.raises(UserError, match="leave it out for one clip"):
        ask(text="hello", dialogue_decoder="online")
    with pytest.raises(UserError, match=r"none of the tasks asked \(sentiment\) has classes to decode"):
        ask(manifest=str(alone), tasks=["sentiment"], dialogue_decoder="offline")


def spoken(name: str, turn: int | None, speaker: str | None, text: str = "the book") -> str:
    entry = {"id": f"{name}{turn}{speaker}", "text": text, "dialogue_id": name, "turn": turn, "speaker": speaker}
    return json.dumps(entry) + "\n"


def test_a_line_without_turn_or_speaker_is_reported_and_the_stream_goes_on(
    ask: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = spoken("d", 0, "A") + spoken("d", None, "B") + spoken("d", 2, None) + spoken("d", 3, "A")
    for decoder, bad in (("none", {"dNoneB": "turn"}), ("online", {"dNoneB": "turn", "d2None": "speaker"})):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        found = ask(stdin=True, tasks=["emotion"], dialogue_decoder=decoder)
        assert [line["id"] for line in found] == ["d0A", "dNoneB", "d2None", "d3A"]
        assert {line["id"] for line in found if "error" in line} == set(bad)
        assert all(bad[line["id"]] in line["error"] for line in found if "error" in line)
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        with pytest.raises(UserError, match="turn"):
            ask(stdin=True, on_bad_input="stop", dialogue_decoder=decoder)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_dialogue_of_a_manifest_that_lacks_a_speaker_or_a_turn_is_reported_and_the_others_are_decoded(
    mode: str, ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    rows = [("a", 0, "A"), ("a", 1, "B"), ("b", 0, "A"), ("b", 1, None), ("c", 0, None), ("d", 0, "A"), ("d", None, "B")]
    (tmp_path / "m.jsonl").write_text("".join(spoken(*row) for row in rows), encoding="utf-8")
    found = ask(manifest=str(tmp_path / "m.jsonl"), tasks=["emotion"], dialogue_decoder=mode)
    assert len(found) == 7
    assert {line["id"]: line["error"].split("'")[1] for line in found if "error" in line} == {
        "b1None": "b1None",
        "c0None": "c0None",
        "dNoneB": "d",
    }


def test_a_task_the_checkpoint_does_not_know_is_not_reported_line_by_line(
    ask: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(spoken("d", 0, "A")))
    with pytest.raises(UserError, match="not trained on task 'polarity'"):
        ask(stdin=True, tasks=["polarity"])


def test_a_stream_asks_about_its_new_line_only_and_keeps_no_more_however_long_it_is(
    pipeline: MerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    predict_batch = Predictor.predict_batch

    def counted(self: Predictor, dataset: MerDataset, batch: Batch) -> list[Prediction]:
        asked.append(len(batch.questions))
        return predict_batch(self, dataset, batch)

    monkeypatch.setattr(Predictor, "predict_batch", counted)
    live = Conversations(pipeline, ["emotion"], decode=True)
    sizes = []
    for turn in range(30):
        utterance = Utterance(id="same", text="the book", dialogue_id="d", turn=turn, speaker="AB"[turn % 2])
        (answer,) = live(utterance)
        assert (answer.id, answer.turn) == ("same", turn)
        (kept,) = live.kept.values()
        decoder = kept.decoders["emotion"]
        sizes.append((len(kept.earlier), len(decoder.cost), decoder.last.size, len(decoder._states), len(decoder._parents)))
    assert asked == [1] * 30
    assert len(set(sizes[10:])) == 1
    assert sizes[-1][0] == live.window


def test_a_stream_keeps_the_most_recent_dialogues(pipeline: MerPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_mer.inference.conversations.CONVERSATIONS_KEPT", 3)
    assert CONVERSATIONS_KEPT == 256
    live = Conversations(pipeline, ["emotion"], decode=True)
    for turn, name in enumerate("abcadaea"):
        live(Utterance(id=f"{turn}", text="the book", dialogue_id=name, turn=turn, speaker="A"))
        assert len(live.kept) <= 3
    assert [name for _, name in live.kept] == ["d", "e", "a"]
    assert [u.turn for u in live.kept["en", "a"].earlier] == [0, 3, 5, 7]


def test_a_conversation_line_by_line_is_answered_as_it_is_whole(
    arguments: Callable[..., list[str]], utterances: list[Utterance]
) -> None:
    from llm_mer.cli.train import finetune

    pipeline = MerPipeline.from_pretrained(finetune(arguments(adapter="gated_xlstm", max_steps=1, context_window=3)))
    dialogue = [u for u in utterances if u.dialogue_id == utterances[0].dialogue_id]
    assert len(dialogue) > 4
    live = Conversations(pipeline, None, decode=False)
    assert close([p for u in dialogue for p in live(u)], pipeline(dialogue))


@pytest.mark.parametrize("adapter", ["lpgnet", "gated_xlstm"])
def test_one_step_is_answered_where_training_had_sequences(
    adapter: str, arguments: Callable[..., list[str]], utterances: list[Utterance], tmp_path: Path, capsys: Any
) -> None:
    from llm_mer.cli.train import finetune

    checkpoint = finetune(arguments(adapter=adapter, max_steps=1))
    pipeline = MerPipeline.from_pretrained(checkpoint)
    assert pipeline.description.model["adapter_config"]["context_sizes"]["audio"] == 12
    short = dataclasses.replace(
        utterances[0],
        dialogue_id=None,
        audio_features=np.ones((1, 6), np.float32),
        vision_features=np.ones((1, 5), np.float32),
    )
    # In company of sequences its vectors have their deviations anyway.
    assert close(pipeline([short]), pipeline([short, *utterances])[:1])
    np.savez(tmp_path / "clip.npz", audio=short.audio_features, vision=short.vision_features)
    capsys.readouterr()
    infer(InferConfig(checkpoint=str(checkpoint), features=str(tmp_path / "clip.npz"), language="en"))
    (line,) = lines(capsys.readouterr().out)
    assert line["value"] in get_task("emotion").label_names
    with pytest.raises(UserError, match=rf"'{short.id}'.*\(1, 9\), the model was trained on 6"):
        pipeline([dataclasses.replace(short, audio_features=np.zeros((1, 9), np.float32))])


def test_sequences_are_answered_where_training_had_one_step(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    from llm_mer.cli.train import finetune
    from llm_mer.data.store import write_store

    found = make_utterances("train", 16) + make_utterances("valid", 4)
    for utterance in found[:16]:
        utterance.audio_features = utterance.audio_features[:1]
    argv = arguments(data=write_store(found, tmp_path / "store"), adapter="lpgnet", max_steps=1, eval_strategy="epoch")
    pipeline = MerPipeline.from_pretrained(finetune(argv))
    assert pipeline.description.model["adapter_config"]["context_sizes"]["audio"] == 6
    assert len(pipeline(found[16:])) == 4


def test_an_adapter_alone_answers_from_features(store: Path, tmp_path: Path, utterances: list[Utterance]) -> None:
    from llm_mer.cli.train import finetune

    argv = training_options(store, "none", tmp_path / "run", tasks=["emotion", "sentiment"], max_steps=2)
    pipeline = MerPipeline.from_pretrained(finetune(argv))
    found = pipeline(utterances)
    assert len(values_of(found)) == 20
    assert all(p.probabilities for p in found if p.task == "emotion")
    assert torch.isfinite(torch.tensor([float(p.value) for p in found if p.task == "sentiment"])).all()


def test_a_line_without_an_id_that_an_output_has_already_is_skipped_with_a_word(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out.jsonl"
    config = InferConfig(checkpoint=str(trained), stdin=True, output=str(output), tasks=["emotion"])
    for text in ("the book", "the table"):
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"text": text}) + "\n"))
        infer(config)
    assert len(lines(output.read_text())) == 1
    assert "line-1 is already answered" in caplog.text


def test_where_memory_is_exhausted_a_batch_is_answered_in_halves_and_that_is_said(
    trained: Path, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = MerPipeline.from_pretrained(trained, device="cpu", batch_size=8)
    utterances = list(UtteranceStore.open(store).split("test"))[:8]
    expected = pipeline(utterances)
    whole, sizes = Predictor._predict_whole, []

    def narrow(self: Predictor, dataset: Any, batch: Any) -> Any:
        sizes.append(len(batch.questions) // len(batch.tasks))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, dataset, batch)

    monkeypatch.setattr(Predictor, "_predict_whole", narrow)
    limit = 2
    found = pipeline(utterances)
    assert max(sizes) > limit
    assert [(p.id, p.task) for p in found] == [(p.id, p.task) for p in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-4)
    assert "memory is exhausted by 4 utterances at once; they are answered in halves" in caplog.text
    limit = 0
    with pytest.raises(UserError, match=r"utterance '.*' alone exhausts the memory \(CUDA out of memory\)"):
        pipeline(utterances)


def test_an_answer_says_the_precision_it_was_computed_in(trained: Path, utterances: list[Utterance]) -> None:
    pipeline = MerPipeline.from_pretrained(trained)
    dataset = pipeline.dataset(utterances[:2])
    assert {p.precision for p in pipeline.predictor.predict(dataset)} == {"float32"}
    with torch.autocast("cpu", torch.bfloat16):
        assert {p.precision for p in pipeline.predictor.predict(dataset)} == {"bfloat16"}
    pipeline.predictor.model.to(torch.bfloat16)
    assert {p.precision for p in pipeline.predictor.predict(dataset)} == {"bfloat16"}


def test_what_is_longer_than_the_adapter_reads_stands_in_the_answer_and_as_a_warning(trained: Path, tmp_path: Path) -> None:
    from llm_mer.data.store import write_store
    from llm_mer.evaluation.evaluate import EvaluateConfig, evaluate

    pipeline = MerPipeline.from_pretrained(trained, long_clips="cut")
    first, second = make_utterances("test", 2)
    assert first.audio_features is not None
    limit = pipeline.predictor.processor.max_audio_steps
    long = dataclasses.replace(first, audio_features=np.tile(first.audio_features, (limit, 1)))
    cut_off = dataclasses.replace(long, audio_features=long.audio_features[:limit])  # type: ignore[index]
    given = [long.audio_features.shape[0]]  # type: ignore[union-attr]
    told, whole, other = (pipeline([u], tasks=["emotion"])[0] for u in (long, cut_off, second))
    assert told.cut == {"audio": (limit, *given)}
    assert Prediction.from_dict(json.loads(json.dumps(told.to_dict()))).cut == told.cut
    assert told.log_probabilities == whole.log_probabilities
    assert (whole.cut, other.cut) == ({}, {})
    spoken = pipeline([dataclasses.replace(second, text="the book " * 200)], tasks=["emotion"])[0]
    assert spoken.cut["text"][0] == pipeline.predictor.processor.max_text_tokens < spoken.cut["text"][1]

    data = write_store([long, second], tmp_path / "long")
    evaluation, _ = evaluate(EvaluateConfig(str(trained), data=[str(data)], resamples=10, long_clips="cut"), progress=False)
    told_once = f"audio of 1 of 2 utterances is longer than the {limit} steps that the adapter reads, at most {given[0]}"
    assert [told_once in text for text in evaluation.warnings].count(True) == 1


def test_an_adapter_alone_generates_nothing_that_could_be_scored(store: Path, tmp_path: Path) -> None:
    from llm_mer.cli.train import finetune

    none = dict.fromkeys(("lora_r", "lora_dropout", "num_pseudo_tokens"))
    finetune(training_options(store, "none", tmp_path / "head", max_steps=1, **none))
    for options, name in (({"generate": True}, "generate"), ({"answer_end": False}, "answer_end: false")):
        with pytest.raises(UserError, match=f"{name}: the checkpoint is an adapter alone, without a language model"):
            MerPipeline.from_pretrained(tmp_path / "head", **options)  # type: ignore[arg-type]

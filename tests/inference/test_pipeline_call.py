"""The public call: one utterance by its fields, a list of dicts or utterances, a checkpoint by folder or by hub name."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mer import MerPipeline, UserError, Utterance, load_checkpoint, load_dataset
from llm_mer.checkpoints.hub import NEVER_READ, READ_PATTERNS, is_hub_name
from llm_mer.data.missing_values import check_sequence
from llm_mer.inference.clips import utterance_from_fields


@pytest.fixture(scope="module")
def pipeline(trained: Path) -> MerPipeline:
    return MerPipeline.from_pretrained(trained)


@pytest.fixture(scope="module")
def utterance(store: Path) -> Utterance:
    return load_dataset(str(store))["test"][3]


def fields_of(utterance: Utterance) -> dict[str, Any]:
    return {
        "text": utterance.text,
        "audio_features": utterance.audio_features,
        "vision_features": utterance.vision_features,
        "language": utterance.language,
    }


def same(one: list[Any], two: list[Any]) -> bool:
    return all(np.allclose(a.log_probabilities, b.log_probabilities, atol=1e-5) for a, b in zip(one, two, strict=True))


def test_fields_a_dict_and_an_utterance_are_answered_alike(pipeline: MerPipeline, utterance: Utterance) -> None:
    bare = Utterance(id="x", split="test", **fields_of(utterance))
    expected = pipeline([bare])
    assert [p.task for p in expected] == ["emotion", "sentiment"]
    by_fields = pipeline(**fields_of(utterance))
    by_dict = pipeline([fields_of(utterance), {**fields_of(utterance), "id": "mine"}, bare])
    assert same(by_fields, expected)
    assert same(by_dict, expected * 3)
    assert [p.id for p in by_fields] == ["text", "text"]
    assert [p.id for p in by_dict] == ["text-0", "text-0", "mine", "mine", "x", "x"]


@pytest.mark.parametrize("given", [3, Path("clip.mp4"), b"clip.mp4", "clip.mp4"], ids=repr)
def test_what_is_no_list_of_utterances_is_refused(pipeline: MerPipeline, given: Any) -> None:
    with pytest.raises(UserError, match="utterances: give a list; one utterance is given by its fields"):
        pipeline(given)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("emotion", r"tasks: 'emotion' is no list; give a list of names, e\.g\. \['emotion'\]"),
        (3, "tasks: 3 is no list"),
        ([], "tasks: names no task; leave it out for all"),
        ([3], "not trained on task 3; it knows emotion, sentiment"),
    ],
)
def test_tasks_that_are_no_list_of_names_are_refused(pipeline: MerPipeline, tasks: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline(text="hello", tasks=tasks)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_a_stream_whose_batches_would_never_fill_is_refused(pipeline: MerPipeline, batch_size: Any) -> None:
    with pytest.raises(UserError, match=r"batch_size is .*; it must be a whole number of at least 1"):
        next(pipeline.stream(iter([{"text": "hello"}]), batch_size=batch_size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bach_size": 3}, "unknown option 'bach_size'; choose from batch_size, score_statistic"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"generate": "no"}, "generate is 'no'; it must be True or False"),
        ({"calibration": "false"}, "calibration is 'false'; it must be True or False"),
        ({"device": "meta"}, "device 'meta' cannot be used: it holds no numbers"),
    ],
)
def test_an_option_of_another_kind_is_refused_before_anything_is_loaded(
    no_backbone: None, trained: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        MerPipeline.from_pretrained(trained, **options)


@pytest.mark.parametrize("checkpoint", [None, "", b"runs/mine"], ids=repr)
def test_a_checkpoint_that_is_no_name_is_refused(checkpoint: Any) -> None:
    with pytest.raises(UserError, match="is no folder and no name on the hub"):
        MerPipeline.from_pretrained(checkpoint)


def test_only_the_named_tasks_are_answered(pipeline: MerPipeline, utterance: Utterance) -> None:
    assert [p.task for p in pipeline(**fields_of(utterance), tasks=["sentiment"])] == ["sentiment"]


def test_a_task_named_twice_is_refused_so_that_no_answer_counts_twice(pipeline: MerPipeline, utterance: Utterance) -> None:
    with pytest.raises(UserError, match=r"tasks: \['emotion', 'emotion'\] names a task twice"):
        pipeline(**fields_of(utterance), tasks=["emotion", "emotion"])


@pytest.mark.parametrize(("text", "language"), [("I am fine, thank you", "en"), ("我一点都不知道", "zh")])
def test_the_language_is_that_of_the_transcript(pipeline: MerPipeline, text: str, language: str) -> None:
    assert {p.language for p in pipeline(text=text)} == {language}
    assert {p.language for p in pipeline(text="OK", language="zh")} == {"zh"}


@pytest.mark.parametrize("text", ["정말 슬퍼요", "とても悲しいです", "Ich bin heute nicht sehr glücklich", "…", None])
def test_a_language_that_cannot_be_told_has_to_be_named(
    pipeline: MerPipeline, utterance: Utterance, text: str | None
) -> None:
    features = {"audio_features": utterance.audio_features}
    with pytest.raises(UserError, match="language"):
        pipeline(text=text, **features)
    assert {p.language for p in pipeline(text=text, language="en", **features)} == {"en"}


@pytest.mark.parametrize(
    ("arguments", "fields", "words"),
    [
        ((), {}, "give either a list of utterances or the fields of one"),
        (([],), {"text": "a"}, "give either a list of utterances or the fields of one"),
        (({"text": "a"},), {}, "give a list"),
        (("clip.mp4",), {}, "give a list"),
        (([3],), {}, "item 0 is a int"),
        ((), {"vidio": "clip.mp4"}, "unknown fields ['vidio']; it may have id, video, audio"),
        ((), {"video": "none.mp4"}, "video none.mp4: no such file"),
        ((), {"text": 3}, "text: 3 is not a text"),
        ((), {"text": "a", "language": "fr"}, "language: 'fr' is not one of en, zh"),
    ],
)
def test_what_cannot_be_an_utterance_is_refused_by_name(
    pipeline: MerPipeline, arguments: tuple[Any, ...], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        pipeline(*arguments, **fields)
    assert words in str(caught.value)


def test_a_sound_file_gives_its_name_and_is_the_sound(tmp_path: Path) -> None:
    clip = tmp_path / "hello.wav"
    clip.write_bytes(b"")
    found = utterance_from_fields({"audio": clip, "text": "I know that"}, place=2)
    assert (found.id, found.audio, found.vision, found.language) == ("hello-2", str(clip), None, "en")


# --- by hub name ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stub_hub(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub whose one repository, someone/mer, is the trained checkpoint; the calls it got."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    snapshot = Path(shutil.copytree(trained, tmp_path / "snapshot"))
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        if repo_id != "someone/mer":
            raise LocalEntryNotFoundError("not in the cache\nand more")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_checkpoint_is_loaded_by_its_hub_name_and_revision(
    pipeline: MerPipeline, utterance: Utterance, stub_hub: list[dict[str, Any]]
) -> None:
    found = MerPipeline.from_pretrained("someone/mer", revision="v1")
    assert same(found([utterance]), pipeline([utterance]))
    assert load_checkpoint("someone/mer").description.model["adapter"] == "egmf"
    assert [(call["repo_id"], call["revision"]) for call in stub_hub] == [("someone/mer", "v1"), ("someone/mer", None)]
    assert stub_hub[0]["allow_patterns"] == list(READ_PATTERNS)
    assert stub_hub[0]["ignore_patterns"] == list(NEVER_READ)
    assert "token" not in stub_hub[0]


def test_a_hub_name_that_cannot_be_fetched_is_one_line(stub_hub: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"^someone/else: no such folder here, and .* not in the cache$"):
        MerPipeline.from_pretrained("someone/else")


def test_a_path_is_never_asked_of_the_hub(stub_hub: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for place in ("runs/none", "./a/b", "../a/b", "nothing", str(tmp_path / "none"), "a/b/c"):
        assert not is_hub_name(place)
        with pytest.raises(UserError, match=r"no llm_mer\.json"):
            MerPipeline.from_pretrained(place)
    assert stub_hub == []


def test_a_revision_of_a_folder_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="revision: 'v1' belongs to a hub name"):
        MerPipeline.from_pretrained(trained, revision="v1")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "gated; accept its terms there and set HF_TOKEN"),
        ("RepositoryNotFoundError", "no such repository on the hub"),
        ("RevisionNotFoundError", "no revision 'v9'"),
    ],
)
def test_the_hubs_refusals_are_told_apart(error: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import httpx2
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: Any, **__: Any) -> str:
        raise getattr(errors, error)("no", response=httpx2.Response(401, request=httpx2.Request("GET", "https://hub")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        load_checkpoint("someone/mer", revision="v9")


def test_the_features_of_an_utterance_are_checked_once_on_the_way_to_its_answer(
    pipeline: MerPipeline, utterance: Utterance, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def note(features: np.ndarray, size: int | None, where: str) -> None:
        checked.append(where)
        check_sequence(features, size, where)

    for module in ("llm_mer.model.processing_mer", "llm_mer.data.dataset"):
        monkeypatch.setattr(f"{module}.check_sequence", note)
    odd = Utterance(id="odd", **{**fields_of(utterance), "audio_features": np.full((3, 6), np.nan, np.float32)})
    pipeline([utterance])
    named = [f"utterance {utterance.id!r}: {m}_features" for m in ("audio", "vision")]
    assert checked == named
    # Whoever makes questions without having checked them has it done; damage made on purpose is checked too.
    dataset = pipeline.dataset([utterance], ["emotion"])
    assert not dataset.checked
    pipeline.predictor.predict(dataset)
    assert checked == named * 2
    with pytest.raises(UserError, match="utterance 'odd': audio_features holds NaN or infinity"):
        pipeline([utterance, odd])
    with pytest.raises(UserError, match="utterance 'odd': audio_features holds NaN or infinity"):
        pipeline.predictor.predict(pipeline.dataset([odd]))
    assert not dataclasses.replace(dataset, checked=True).corrupted(lambda u: u).checked


def test_a_data_set_is_loaded_by_path_too_and_what_is_no_place_is_refused(store: Path) -> None:
    assert [u.id for u in load_dataset(store)["test"]] == [u.id for u in load_dataset(str(store))["test"]]
    for place in (None, 3):
        with pytest.raises(UserError, match=r"data: .* is no folder; name a store"):
            load_dataset(place)  # type: ignore[arg-type]

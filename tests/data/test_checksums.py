"""Every bit of a store's data that is not as it was written is found when that part is first read, and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_utterances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_mer.data.store import DESCRIPTIVE_COLUMNS, STORE_FILE, UtteranceStore, write_store
from llm_mer.errors import UserError


def read_all(folder: Path) -> None:
    store = UtteranceStore.open(folder)
    for split in store.info.counts:
        table = store.split(split)
        for name in DESCRIPTIVE_COLUMNS:
            table.column(name)
        list(table)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(make_utterances("train", 150), tmp_path_factory.mktemp("small") / "store")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_in_a_store_is_found(small: Path, tmp_path: Path, place: float, bit: int) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "store", dirs_exist_ok=True))
    path = folder / "train.arrow"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.arrow: damaged") as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


def test_a_score_whose_minus_is_gone_is_found_in_the_column_and_in_the_row(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "store"))
    path = folder / "train.arrow"
    content = path.read_bytes()
    changed = content.replace(b'"sentiment": -', b'"sentiment":  ')
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(UserError, match="damaged: its column labels is not as written"):
        UtteranceStore.open(folder).split("train").column("labels")
    with pytest.raises(UserError, match=r"damaged: utterances 0 to 63 \(bytes \d+ to \d+\) are not as written"):
        list(UtteranceStore.open(folder).split("train"))


def test_a_batch_is_hashed_once_and_a_damaged_one_does_not_hide_the_others(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "store"))
    checksums = (UtteranceStore.open(folder).info.checksums or {})["train"]
    assert checksums.rows == [64, 64, 22]
    path = folder / "train.arrow"
    content = bytearray(path.read_bytes())
    content[checksums.starts[1] + (checksums.starts[2] - checksums.starts[1]) // 2] ^= 1
    path.write_bytes(content)
    table = UtteranceStore.open(folder).split("train")
    assert table[0].id == "train-000"
    assert table[-1].id == "train-149"
    with pytest.raises(UserError, match="utterances 64 to 127"):
        table[64]


def test_a_changed_description_of_a_store_is_found(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "store"))
    entry = json.loads((folder / STORE_FILE).read_text(encoding="utf-8"))
    entry["statistics"]["audio"]["mean"][0] += 0.5
    (folder / STORE_FILE).write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(UserError, match=r"store\.json: damaged or edited"):
        UtteranceStore.open(folder)


def test_a_store_without_checksums_is_read_and_said_to_be_unverified(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "store"))
    entry = json.loads((folder / STORE_FILE).read_text(encoding="utf-8"))
    del entry["checksums"], entry["sha256"]
    (folder / STORE_FILE).write_text(json.dumps(entry), encoding="utf-8")
    assert len(list(UtteranceStore.open(folder).split("train"))) == 150
    assert "has no checksums" in caplog.text


def test_verified_features_are_still_views_of_the_file(small: Path) -> None:
    features = UtteranceStore.open(small).split("train")[3].audio_features
    assert features is not None
    assert not features.flags.owndata
    assert not features.flags.writeable
    assert np.isfinite(features).all()

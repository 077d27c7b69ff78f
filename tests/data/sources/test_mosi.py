"""The bilingual MOSI folder."""

from shared_files import shared_data

from llm_mer.data.sources.mosi import read_mosi


def test_real_files() -> None:
    found = read_mosi(shared_data("mosi"), languages=["en"])
    assert len(found) == 2199
    assert len({u.dialogue_id for u in found}) == 93
    assert len(read_mosi(shared_data("mosi"))) == 2 * 2199

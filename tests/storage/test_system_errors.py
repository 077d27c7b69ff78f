"""What the system refuses is told with the place it is about and what would be right, whichever library reports it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llm_mer.errors import UserError
from llm_mer.storage.system_errors import describe_system_error, final_path, is_disk_full, naming_path

FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL),
        OSError(errno.EDQUOT, "quota"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("[('a', 'b', \"[Errno 28] No space left on device: 'a'\")]"),  # as shutil.copytree puts several together
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
    ids=["Python", "quota", "safetensors", "shutil", "torch"],
)
def test_every_librarys_full_disk_is_one_and_names_the_place(error: Exception, tmp_path: Path) -> None:
    assert is_disk_full(error)
    with pytest.raises(UserError, match=r"/out: .*; make room on its disk, and the same command"), naming_path("/out"):
        raise error


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "x"), RuntimeError("unexpected pos"), ValueError("28"), UserError("(os error 28)")]
)
def test_other_errors_are_no_full_disk(error: Exception) -> None:
    assert not is_disk_full(error)


def test_of_a_copy_the_file_that_is_written_is_named_and_not_the_one_that_is_read() -> None:
    told = describe_system_error(OSError(errno.ENOSPC, FULL, "/in/a", None, "/out/b"), "/out")
    assert told is not None
    assert told.startswith("/out/b: ")


@pytest.mark.parametrize(
    ("written", "final"),
    [
        ("/a/.b.json.123.0123abcd.tmp", "/a/b.json"),
        ("/a/.b.staging-0123456789ab/train.arrow", "/a/b/train.arrow"),
        ("/a/.b.staging-0123456789ab.lock", "/a/b"),
        ("/a/.hidden/b.tmp", "/a/.hidden/b.tmp"),
    ],
)
def test_a_place_is_called_by_the_name_it_will_have(written: str, final: str) -> None:
    assert final_path(written) == Path(final)
    assert str(describe_system_error(OSError(errno.EROFS, "x", written))).startswith(f"{final}: Read-only file system; ")


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "No such file", "x"), UserError("mine")])
def test_what_the_system_does_not_refuse_goes_on_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming_path("/out"):
        raise error
    assert caught.value is error

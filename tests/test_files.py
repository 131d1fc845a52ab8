"""Writing is whole or nothing; digests depend on the value and on nothing else."""

import errno
import hashlib
import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import files
from results.errors import UserError
from results.files import ROOT, digest, new_sibling, remove_torn, replacing, write_bytes, write_json, write_text

numbers = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fails_with(number, function="fsync"):
    """An os.fsync (or os.replace) that fails as the disk would."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return lambda monkeypatch: monkeypatch.setattr(files.os, function, fail)


def test_root_is_the_clone():
    assert (ROOT / "results" / "files.py").is_file()


def test_digest_is_sha256_of_canonical_json():
    assert digest({"b": (1, 2), "a": None}) == hashlib.sha256(b'{"a":null,"b":[1,2]}').hexdigest()


@given(values)
def test_digest_survives_json_and_the_order_of_keys(value):
    again = json.loads(json.dumps(value))
    assert digest(value) == digest(again)
    if isinstance(value, dict):
        assert digest(value) == digest(dict(reversed(value.items())))


@given(values, values)
def test_different_values_have_different_digests(one, other):
    def text(value):
        return json.dumps(value, sort_keys=True)

    assert (digest(one) == digest(other)) == (text(one) == text(other))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {"x": [float("-inf")]}])
def test_digest_of_what_is_not_finite(bad):
    with pytest.raises(ValueError, match="JSON compliant"):
        digest(bad)


def test_writing_makes_folders_and_leaves_only_the_file(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "é\n")
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"\0\1")
    write_json(tmp_path / "a" / "b" / "c.json", {"b": 1, "a": [2.5]})
    assert contents(tmp_path / "a" / "b") == {
        "c.txt": "é\n".encode(),
        "c.bin": b"\0\1",
        "c.json": b'{\n "a": [\n  2.5\n ],\n "b": 1\n}\n',
    }


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "ours", "")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_the_temporary_file_is_a_sibling_with_the_same_ending(tmp_path):
    with replacing(tmp_path / ("n" * 240 + ".safetensors")) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
        temporary.write_text("whole")
    assert contents(tmp_path) == {"n" * 240 + ".safetensors": b"whole"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    write_text(tmp_path / "x", "old")

    def write():
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert contents(tmp_path) == {"x": b"old"}


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
def test_a_disk_that_refuses_is_a_user_error_and_nothing_is_lost(tmp_path, monkeypatch, number, function):
    write_text(tmp_path / "x", "old")
    fails_with(number, function)(monkeypatch)
    with pytest.raises(UserError) as caught:
        write_text(tmp_path / "x", "new")
    assert os.strerror(number) in caught.value.happened
    assert str(tmp_path / "x") in caught.value.happened
    assert caught.value.looked == str(tmp_path)
    assert "elsewhere" in caught.value.fix
    monkeypatch.undo()
    assert contents(tmp_path) == {"x": b"old"}


def test_a_full_disk_while_writing(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")

    def write():
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"the other half")

    with pytest.raises(UserError, match="No space left"):
        write()
    assert contents(tmp_path) == {}


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deeper" / "x"):
        with pytest.raises(UserError, match=r"Not a directory|File exists") as caught:
            write_text(path, "")
        assert "folder is needed" in caught.value.fix


def test_a_folder_where_the_file_should_be(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        write_text(tmp_path / "x", "")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(UserError, match="Permission denied"):
        write_text(tmp_path / "locked" / "x", "")


def test_an_error_about_another_file_is_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "x"):
        (tmp_path / "not there").read_bytes()
    with pytest.raises(OSError, match="cannot identify image"), replacing(tmp_path / "x"):
        raise OSError("cannot identify image")
    assert contents(tmp_path) == {}


def test_what_killed_writes_left_is_removed(tmp_path):
    left = [new_sibling(tmp_path / name) for name in ("log.jsonl", "x.json", "state-3.pt")]
    kept = [tmp_path / name for name in (".hidden", ".git.0123", "log.jsonl", ".cache.tar")]
    for path in kept:
        path.write_text("")
    remove_torn(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is no file"):
        write_text(tmp_path / "pipe", "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from hvcompress.errors import OutputError, UsageError
from hvcompress.files import check_place, write_atomically


def test_a_new_file(tmp_path):
    path = tmp_path / "ünï çode and space"
    write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == [path.name]


def test_overwriting_is_asked_for(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists"):
        write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


def test_the_longest_name_works(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"x", overwrite=False)
    assert path.read_bytes() == b"x"


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("-a", b"x", overwrite=False)
    assert os.listdir() == ["-a"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_permissions_follow_the_umask_or_the_old_file(tmp_path):
    umask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"x", overwrite=False)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o640
    os.chmod(tmp_path / "new", 0o600)
    write_atomically(tmp_path / "new", b"y", overwrite=True)
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_symbolic_links_are_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "target")
    write_atomically(tmp_path / "link", b"1", overwrite=False)
    write_atomically(tmp_path / "link", b"2", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "target").read_bytes() == b"2"
    assert os.listdir(tmp_path / "folder") == ["target"]


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no /dev/null")
def test_devices_and_pipes_are_written_to_and_never_replaced(tmp_path):
    write_atomically("/dev/null", b"x" * 10, overwrite=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_atomically(tmp_path / "pipe", b"through", overwrite=False)
    reader.join()
    assert received == [b"through"] and os.listdir(tmp_path) == ["pipe"]


def test_missing_folder_folder_as_file_and_odd_names(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "none" / "a", tmp_path / "file" / "a", "a\0b", tmp_path / ("n" * 300)):
        with pytest.raises(OutputError, match="cannot write"):
            write_atomically(path, b"x", overwrite=False)
    (tmp_path / "folder").mkdir()
    for overwrite in (True, False):
        with pytest.raises((OutputError, UsageError)):
            write_atomically(tmp_path / "folder", b"x", overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="ermission"):
            write_atomically(tmp_path / "a", b"x", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_at_any_step_leaves_the_old_file_alone(tmp_path, monkeypatch, step, overwrite, problem):
    path = tmp_path / "a"
    if overwrite:
        path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise problem

    if step == "replace":
        monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, step, fail)
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        write_atomically(path, b"new", overwrite=overwrite)
    monkeypatch.undo()
    assert caught.type is KeyboardInterrupt or "No space left on device".lower() in str(caught.value).lower()
    assert os.listdir(tmp_path) == (["a"] if overwrite else [])
    assert not overwrite or path.read_bytes() == b"old"


def test_without_hard_links_there_is_another_way(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(tmp_path / "a", b"x", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"x" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_clobbered(tmp_path, monkeypatch, links):
    path, fsync, link = tmp_path / "a", os.fsync, os.link

    def meanwhile(descriptor: int) -> None:
        fsync(descriptor)
        path.write_bytes(b"theirs")

    def linked(*args, **options) -> None:
        if not links:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        link(*args, **options)

    monkeypatch.setattr(os, "fsync", meanwhile)
    monkeypatch.setattr(os, "link", linked)
    with pytest.raises(UsageError, match="exists"):
        write_atomically(path, b"ours", overwrite=False)
    assert path.read_bytes() == b"theirs" and os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_device_is_an_output_error():
    with pytest.raises(OutputError, match="space"):
        write_atomically(Path("/dev/full"), b"x", overwrite=True)


def test_a_folder_in_the_place_of_a_file_is_refused_beforehand(tmp_path):
    with pytest.raises(OutputError, match="is a directory"):
        check_place(str(tmp_path))

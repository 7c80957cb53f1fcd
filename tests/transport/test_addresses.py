"""Names of hosts as people write them: in a recipe's addresses, and in certificates."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from disks import Disk

from bitseam.errors import TransportError
from bitseam.transport import connect, join_address, make_certificates, split_address
from bitseam.transport.authority import add_client, revoke

pytest_plugins = ["disks"]


@pytest.mark.parametrize(
    ("address", "host", "joined"),
    [
        ("seam.example.org:50051", "seam.example.org", "seam.example.org:50051"),
        ("my_server:1", "my_server", "my_server:1"),
        ("localhost.:1", "localhost.", "localhost.:1"),
        ("192.0.2.7:1", "192.0.2.7", "192.0.2.7:1"),
        ("[::1]:56312", "::1", "[::1]:56312"),
        ("büro.example:1", "xn--bro-hoa.example", "xn--bro-hoa.example:1"),
    ],
)
def test_O9_addresses_that_can_be(address: str, host: str, joined: str) -> None:
    assert split_address(address)[0] == host
    assert join_address(*split_address(address)) == joined


@pytest.mark.parametrize(
    "address",
    [
        "seam..example.org:56301",
        f"{'a' * 64}.example.org:1",
        f"{'ä' * 60}.example.org:1",
        f"{'a.' * 127}a:1",
        ".example.org:1",
        "-a.example.org:1",
        "two words:1",
        " localhost:1",
        "localhost:1 ",
        "localhost:+1",
        "localhost:\N{ARABIC-INDIC DIGIT ONE}",
        "localhost:65536",
        "localhost:-1",
        "localhost:",
        "localhost",
        ":50051",
        "",
        "https://seam.example.org:50051",
        "https://seam.example.org",
        "::1:50051",
        "[::1]",
        "[::1:50051",
        "[seam.example.org]:1",
        "[:::1]:1",
        "999.1.1.1:1",
        "a/b:1",
        "user@host:1",
        "\N{ZERO WIDTH JOINER}:1",
        "a\0b:1",
        "\udcff:1",
    ],
)
def test_O9_addresses_that_cannot_be_are_named(address: str) -> None:
    with pytest.raises(TransportError, match=r"^network\.metrics .*: write host:port"):
        split_address(address, "network.metrics")


def test_O9_a_client_does_not_wait_for_port_0() -> None:
    with pytest.raises(TransportError, match="write the server's port"):
        connect("localhost:0", None)


def test_O10_names_of_other_scripts_and_wildcards(tmp_path: Path) -> None:
    hosts = ("büro.example", "*.example.org", "BÜRO.example", "127.0.0.1", "[::1]", "localhost")
    make_certificates(tmp_path / "g", hosts)
    server = x509.load_pem_x509_certificate((tmp_path / "g/server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    expected = ["xn--bro-hoa.example", "*.example.org", "xn--bro-hoa.example", "localhost"]
    assert names.get_values_for_type(x509.DNSName) == expected
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    "host",
    ["seam.example.org:50051", "", "*", "*.", "*.org", "*.192.0.2.7", "a.*.org", "https://a.org", "two words", "a..b"],
)
def test_O10_other_names_are_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(TransportError, match="write a name or an IP address, without a port"):
        make_certificates(tmp_path / "g", ("localhost", host))
    assert not (tmp_path / "g").exists()


def test_O10_a_file_in_the_folders_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("mine")
    with pytest.raises(TransportError, match="g: cannot be written"):
        make_certificates(tmp_path / "g")
    assert (tmp_path / "g").read_text() == "mine"


def test_O10_a_full_disk_leaves_nothing_that_blocks_the_next_try(disk: Disk) -> None:
    made = disk.folder / "made"
    make_certificates(made)
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    disk.fill()
    for act in (
        lambda: make_certificates(disk.folder / "new"),
        lambda: add_client(made, "more"),
        lambda: revoke(made, "client"),
    ):
        with pytest.raises(TransportError, match="cannot be written: No space left"):
            act()
    assert not (disk.folder / "new").exists()
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    disk.free()
    make_certificates(disk.folder / "new")
    add_client(made, "more")
    revoke(made, "client")


def test_O13_addresses_of_ipv6_have_brackets() -> None:
    assert join_address("::1", 56312) == "[::1]:56312"
    assert join_address("localhost", 56312) == "localhost:56312"

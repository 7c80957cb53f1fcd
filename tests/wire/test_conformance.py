"""The tables of docs/protocol.md say what the code does, in both directions: neither has a row that the other lacks."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import Tiny, make_recipe
from google.protobuf.descriptor import FieldDescriptor
from wire_examples import GOLDEN

from bitseam.sessions.terms import terms
from bitseam.streams import Stream, build_streams
from bitseam.text.prompts import Prompter
from bitseam.transport.grpc import _METHOD, _SERVICE
from bitseam.wire import VERSION, Limits
from bitseam.wire import messages_pb2 as pb
from bitseam.wire.protocol import READY, SPEAKER, TABLE, State

SCALARS = ("bool", "bytes", "double", "fixed32", "string", "uint32", "uint64")
PATH = Path(__file__).parents[2]
PAGE = (PATH / "docs" / "protocol.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    body = re.split(r"^#+ ", PAGE.partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    assert len(lines) > 2, heading
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def type_of(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return "map string to string"
    names = {getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name for name in SCALARS}
    kind = field.message_type or field.enum_type
    return ("repeated " if field.is_repeated else "") + (kind.name if kind else names[field.type])


@pytest.mark.parametrize("message", sorted(pb.DESCRIPTOR.message_types_by_name))
def test_fields(message: str) -> None:
    due = [[f.name, str(f.number), type_of(f)] for f in pb.DESCRIPTOR.message_types_by_name[message].fields]
    assert [row[:3] for row in table(message)] == due


def test_no_other_messages() -> None:
    told = set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE))
    assert told == set(pb.DESCRIPTOR.message_types_by_name)


def test_states() -> None:
    due = {
        (state.name, SPEAKER[kind], kind.__name__, following.name if isinstance(following, State) else READY.upper())
        for (state, kind), following in TABLE.items()
        if kind is not pb.Refuse
    }
    assert {tuple(row) for row in table("States")} == due
    refused = {state for state, kind in TABLE if kind is pb.Refuse}
    assert refused == set(State) - {State.CLOSED}


def test_faults() -> None:
    assert [(int(number), name) for number, name, *_ in table("Faults")] == [(v, k) for k, v in pb.Fault.items()]


def general(term: str) -> str:
    """A term with NAME and RATE for those of one stream."""
    return re.sub(r"^stream\.\w+\.(\w+)(\.\d+)?$", lambda m: f"stream.NAME.{m[1]}" + ".RATE" * bool(m[2]), term)


def test_terms(tiny: Tiny) -> None:
    told = {(name, where) for name, where, _ in table("Terms")}
    recipe = make_recipe(tiny, streams__text={})
    streams, prompter = build_streams(Stream, recipe.streams, recipe.seam.width), Prompter(recipe.text)
    training, asking = (terms(recipe, streams, prompter, weights) for weights in (None, "fresh"))
    found = {(general(name), "both") for name in training.keys() & asking.keys()}
    found |= {(general(name), "TRAIN") for name in training.keys() - asking.keys()}
    found |= {(general(name), "ASK") for name in asking.keys() - training.keys()}
    assert told == found


def test_streams(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, streams__text={})
    streams = build_streams(Stream, recipe.streams, recipe.seam.width)
    assert [row[:2] for row in table("Streams")] == [[name, stream.direction] for name, stream in streams.items()]


def test_limits() -> None:
    told = {name: float(value.replace(",", "")) for name, value, _ in table("Default limits")}
    assert told == {field.name: getattr(Limits(), field.name) for field in fields(Limits)}


def test_frames() -> None:
    assert {row[0]: row[1] for row in table("Frames as bytes")} == {
        kind.__name__: frame for kind, (_, frame) in GOLDEN.items()
    }


def test_names_and_version() -> None:
    assert f"/{_SERVICE}/{_METHOD}" in PAGE
    assert f"`Hello.version` is {VERSION}." in PAGE
    assert f"version {VERSION}\n" in PAGE.partition("\n\n")[0] + "\n"


def test_members_of_vectors() -> None:
    body = PAGE.partition("## Test vectors\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"^\| ([a-z, ]+) \|", body, re.MULTILINE)) - {"member"}
    named = {name for names in told for name in names.split(", ")} | set(re.findall(r"`(frames|pieces)`", body))
    files = [json.loads((PATH / "vectors" / f"{name}.json").read_text()) for name in ("frames", "session")]
    assert named == {member for file in files for rows in file.values() for row in rows for member in row}


def test_default_fields_of_limits_are_those_of_the_welcome() -> None:
    assert {row[0] for row in table("Limits")} < {row[0] for row in table("Default limits")}

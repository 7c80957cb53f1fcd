"""vectors/frames.json and vectors/session.json hold in both directions, the session against a real server too."""

from __future__ import annotations

import itertools
import queue
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from frame_cases import assembled, fields_of, refusal
from google.protobuf.json_format import ParseDict
from session_case import rows, server
from test_vectors import FILES, vectors
from wire_examples import due, listener_at, wrap

from bitseam.errors import BitseamError
from bitseam.sessions.server import ServerSession
from bitseam.transport import Channel, Listener
from bitseam.transport.flow import Assembly, Pieces
from bitseam.wire import Protocol
from bitseam.wire import messages_pb2 as pb

SESSION: list[dict[str, Any]] = FILES["session"]["frames"]
EXACT = {  # of what is computed: the rest hangs on the last bits of floats, or on how zlib compresses
    "Calibrate": lambda fields: [sorted(stream) for stream in fields["streams"]],
    "Forward": lambda fields: [fields["step"], fields.get("micro"), fields.get("last"), fields["streams"][0]["shape"]],
    "Backward": lambda fields: [fields["step"], fields.get("micro"), fields["answer_tokens"], len(fields["streams"])],
    "Ask": lambda fields: [fields["max_new_tokens"], fields["text"]["tokens"], fields["streams"][0]["shape"]],
    "Tokens": lambda fields: ["ids" in fields, fields.get("last")],
}


@vectors("frames", refused=False)
def test_a_message_has_this_frame_and_these_pieces(vector: dict[str, Any]) -> None:
    kind, frame = getattr(pb, vector["message"]), bytes.fromhex(vector["frame"])
    message = ParseDict(vector["fields"], kind())
    assert wrap(message) == frame
    assert fields_of(listener_at(due(kind), message).receive(frame)) == vector["fields"]
    for way in ("tls", "plaintext"):
        pieces = [bytes.fromhex(piece) for piece in vector[way]]
        assert list(Pieces(way == "plaintext").cut(frame)) == pieces
        assert assembled(way == "plaintext", pieces) == {"frames": [vector["frame"]]}


@vectors("frames", refused=True)
def test_a_frame_is_refused_by_name(vector: dict[str, Any]) -> None:
    assert refusal(getattr(pb, vector["message"]), bytes.fromhex(vector["frame"])) == vector["refused"] != ""


@pytest.mark.parametrize("row", FILES["frames"]["pieces"], ids=lambda row: row["name"])
def test_pieces_make_these_frames_or_are_refused(row: dict[str, Any]) -> None:
    (way,) = row.keys() & {"tls", "plaintext"}
    told = {key: row[key] for key in row.keys() & {"frames", "refused"}}
    assert assembled(way == "plaintext", [bytes.fromhex(piece) for piece in row[way]]) == told


def test_every_message_has_a_vector_and_every_piece_rule_a_refusal() -> None:
    accepted = {row["message"] for row in FILES["frames"]["vectors"] if "refused" not in row}
    assert accepted == {field.message_type.name for field in pb.Envelope.DESCRIPTOR.fields}
    refused = {row["refused"] for row in FILES["frames"]["pieces"] if "refused" in row}
    assert len(refused) == 5


def calls() -> list[list[dict[str, Any]]]:
    return [list(rows) for _, rows in itertools.groupby(SESSION, key=lambda row: row["call"])]


@pytest.mark.parametrize("call", calls(), ids=("first", "second"))
def test_a_fresh_reader_follows_the_recorded_session(call: list[dict[str, Any]]) -> None:
    readers = defaultdict(lambda: Assembly(plaintext=True))
    writers = defaultdict(lambda: Pieces(plaintext=True))
    sides = {"up": Protocol("server"), "down": Protocol("client")}
    for row in call:
        way, pieces = row["direction"], [bytes.fromhex(piece) for piece in row["pieces"]]
        (frame,) = [f for piece in pieces if (f := readers[way].add(piece, 2**20)) is not None]
        message = sides[way].receive(frame)
        assert type(message).__name__ == row["message"]
        assert fields_of(message) == row["fields"]
        speaker = sides["down" if way == "up" else "up"]
        assert speaker.send(ParseDict(row["fields"], type(message)())) == frame
        assert list(writers[way].cut(frame)) == pieces


def same(row: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Equal, as far as floats have nothing to do with it."""
    told = ("call", "direction", "message", "computed")
    assert [row[key] for key in told] == [recorded[key] for key in told]
    if not row["computed"]:
        assert row["pieces"] == recorded["pieces"]
        return
    exact = EXACT[row["message"]]
    assert exact(row["fields"]) == exact(recorded["fields"])
    if row["message"] == "Backward":
        assert row["fields"]["loss"] == pytest.approx(recorded["fields"]["loss"], rel=1e-3)


def test_the_command_records_this_session() -> None:
    again = rows()
    assert len(again) == len(SESSION)
    for row, recorded in zip(again, SESSION, strict=True):
        same(row, recorded)
        assert row.get("what") == recorded.get("what")


def test_a_server_answers_the_recorded_client_as_recorded() -> None:
    """Over gRPC: what the client's pieces were, byte for byte, sent by a client that knows nothing else."""
    with server() as (_, party):

        def handle(channel: Channel) -> None:
            with suppress(BitseamError):
                ServerSession(party, channel).run()

        listener = Listener("localhost:0", handle, None)
        listener.start()
        try:
            for call in calls():
                replay(f"localhost:{listener.port}", call)
        finally:
            listener.stop()


def replay(address: str, recorded: list[dict[str, Any]]) -> None:
    out: queue.Queue[bytes | None] = queue.Queue()
    reader = Assembly(plaintext=True)

    def said() -> Iterator[bytes]:
        while (piece := out.get()) is not None:
            yield piece

    with grpc.insecure_channel(address) as network:
        answers = network.stream_stream("/bitseam.v1.Seam/Session")(said(), timeout=60)
        for row in recorded:
            if row["direction"] == "up":
                for piece in row["pieces"]:
                    out.put(bytes.fromhex(piece))
                continue
            pieces = [next(answers)]
            while (frame := reader.add(pieces[-1], 2**20)) is None:
                pieces.append(next(answers))
            envelope = pb.Envelope.FromString(frame)
            fields = fields_of(getattr(envelope, envelope.WhichOneof("body")))
            told = {"message": row["message"], "fields": fields, "pieces": [piece.hex() for piece in pieces]}
            assert envelope.WhichOneof("body") == row["message"].lower()
            same(row | told, row)
        out.put(None)
        if recorded[-1]["message"] == "Goodbye":
            assert list(answers) == []
            assert answers.code() is grpc.StatusCode.OK
        else:
            answers.cancel()

"""The committed module is what the .proto compiles to."""

from __future__ import annotations

import ast
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_tools import protoc

from bitseam.wire import messages_pb2 as pb

SOURCE = Path(pb.__file__).parents[2]
PROTO, MODULE = "bitseam/wire/messages.proto", "bitseam/wire/messages_pb2.py"


def descriptor(module: Path) -> FileDescriptorProto:
    """What a generated module hands to AddSerializedFile."""
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    (literal,) = [ast.literal_eval(c.args[0]) for c in calls if ast.unparse(c.func).endswith(".AddSerializedFile")]
    return FileDescriptorProto.FromString(literal)


def test_messages_pb2_agrees_with_messages_proto(tmp_path: Path) -> None:
    assert protoc.main(["protoc", f"-I{SOURCE}", f"--python_out={tmp_path}", str(SOURCE / PROTO)]) == 0
    assert descriptor(SOURCE / MODULE) == descriptor(tmp_path / MODULE), "run `make proto`"
    assert pb.DESCRIPTOR.serialized_pb == descriptor(SOURCE / MODULE).SerializeToString(deterministic=True)


def test_the_service_is_what_is_served() -> None:
    """A generator makes a stub of it."""
    (method,) = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb).service[0].method
    assert (method.input_type, method.output_type) == (".bitseam.v1.Piece", ".bitseam.v1.Piece")
    assert method.client_streaming
    assert method.server_streaming

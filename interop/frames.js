// Messages as frames: docs/protocol.md, "Transport". A message here is { forward: {...} }: an Envelope's one member.
import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";
import { refuseUnless } from "./numbers.js";

export const PROTO = fileURLToPath(new URL("../src/bitseam/wire/messages.proto", import.meta.url));
const root = protobuf.loadSync(PROTO);
const Envelope = root.lookupType("bitseam.v1.Envelope");
export const Fault = root.lookupEnum("bitseam.v1.Fault");
export const Purpose = root.lookupEnum("bitseam.v1.Purpose").values;

export function writeFrame(message) {
  return Envelope.encode(Envelope.fromObject(message)).finish();
}

export function readFrame(bytes) {
  let envelope;
  try {
    envelope = Envelope.decode(bytes);
  } catch (error) {
    return refuseUnless(false, `a frame is no Envelope: ${error.message}`);
  }
  const { body } = Envelope.toObject(envelope, { oneofs: true });
  refuseUnless(body, "a frame holds no message");
  // A field that we do not know is dropped as it is read, and so are a second body and what is not as short as it can be.
  const again = Envelope.encode(envelope).finish();
  refuseUnless(Buffer.compare(again, bytes) === 0, `${body}: a field that the protocol does not name`);
  const plain = Envelope.toObject(envelope, { defaults: true, longs: Number, arrays: true });
  return { [body]: plain[body] };
}

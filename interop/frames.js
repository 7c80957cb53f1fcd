// Messages as frames, and frames as the pieces that gRPC carries: docs/protocol.md, "Transport". A message here is
// { forward: {...} }: the one member of an Envelope.
import { fileURLToPath } from "node:url";
import { crc32 } from "node:zlib";
import protobuf from "protobufjs";
import { refuseUnless } from "./numbers.js";

export const PROTO = fileURLToPath(new URL("../src/bitseam/wire/messages.proto", import.meta.url));
const root = protobuf.loadSync(PROTO);
const Envelope = root.lookupType("bitseam.v1.Envelope");
const Piece = root.lookupType("bitseam.v1.Piece");
export const Fault = root.lookupEnum("bitseam.v1.Fault").valuesById;
export const Purpose = root.lookupEnum("bitseam.v1.Purpose").values;

const PIECE_BYTES = 1 << 20;
const FRAME_BYTES = 1 << 29;

/** Decodes a message of known fields alone. */
function decode(type, bytes) {
  let message;
  try {
    message = type.decode(bytes);
  } catch (error) {
    refuseUnless(false, `no ${type.name}: ${error.message}`);
  }
  // A field that we do not know is dropped as it is read, and so is a message before another one.
  const known = type.encode(message).finish().length;
  refuseUnless(known === bytes.length, `${type.name}: a field that the protocol does not name`);
  return message;
}

export function writeFrame(message) {
  return Envelope.encode(Envelope.fromObject(message)).finish();
}

export function readFrame(bytes) {
  const envelope = decode(Envelope, bytes);
  const { body } = envelope;
  refuseUnless(body, "a frame holds no message");
  return { [body]: Envelope.toObject(envelope, { defaults: true, longs: Number, arrays: true })[body] };
}

/** A frame's message as protobuf prints JSON, but with names as JavaScript has them: for comparisons. */
export function jsonOfFrame(bytes) {
  const envelope = decode(Envelope, bytes);
  return Envelope.toObject(envelope, { bytes: String, longs: String, enums: String })[envelope.body];
}

/** Cuts the frames of one direction of a call into pieces, as bytes. plaintext: with checksums. */
export class PieceWriter {
  #crc = 0;

  constructor(plaintext = false) {
    this.plaintext = plaintext;
  }

  *cut(frame) {
    if (this.plaintext) this.#crc = crc32(frame, this.#crc);
    for (let at = 0; ; at += PIECE_BYTES) {
      const last = at + PIECE_BYTES >= frame.length;
      const data = frame.subarray(at, at + PIECE_BYTES);
      // What is zero or empty is left out, as proto3 writes it.
      const crc = last ? this.#crc : 0;
      yield Piece.encode({ ...(data.length && { data }), ...(last && { last }), ...(crc && { crc }) }).finish();
      if (last) return;
    }
  }
}

/** Puts the pieces of one direction of a call together. plaintext: checksums are due. */
export class PieceReader {
  #crc = 0;
  #parts = [];
  #size = 0;

  constructor(plaintext = false) {
    this.plaintext = plaintext;
  }

  /** The frame that ends with this piece; undefined where it goes on. */
  take(bytes) {
    const piece = decode(Piece, bytes);
    const { last, crc } = piece;
    const data = Buffer.from(piece.data); // an array where it is absent
    refuseUnless(data.length <= PIECE_BYTES, `a piece of ${data.length} bytes`);
    refuseUnless(last || data.length, "an empty piece that is not the last");
    this.#size += data.length;
    refuseUnless(this.#size <= FRAME_BYTES, `a frame of over ${FRAME_BYTES} bytes`);
    if (this.plaintext) this.#crc = crc32(data, this.#crc);
    refuseUnless(crc === (last ? this.#crc : 0), "the checksum of what was sent is another");
    this.#parts.push(data);
    if (!last) return undefined;
    this.#size = 0;
    return Buffer.concat(this.#parts.splice(0));
  }
}

// Holds this client against vectors/frames.json and vectors/session.json: docs/protocol.md, "Test vectors".
import assert from "node:assert/strict";
import { readAnswer } from "./answers.js";
import { codec } from "./codecs.js";
import { PieceReader, PieceWriter, jsonOfFrame, writeFrame } from "./frames.js";
import { ProtocolError } from "./numbers.js";
import { readText } from "./symbols.js";
import { elements } from "./tensors.js";

const bytesOf = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
const hexOf = (bytes) => Buffer.from(bytes).toString("hex");
const refused = (act) => assert.throws(act, ProtocolError);
const bodyOf = (message) => message[0].toLowerCase() + message.slice(1);

/** Names as in the .proto -> as in JavaScript, but for the names of terms. */
function camel(value, name) {
  if (Array.isArray(value)) return value.map((item) => camel(item));
  if (value === null || typeof value !== "object" || name === "terms") return value;
  const renamed = (key) => key.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [renamed(key), camel(item, key)]));
}

/** The message of a vector; terms in the order in which its bytes have them. */
function messageOf({ message, fields }) {
  const body = camel(fields);
  if (body.terms) body.terms = Object.fromEntries(Object.entries(body.terms).sort(([a], [b]) => (a < b ? -1 : 1)));
  return { [bodyOf(message)]: body };
}

const WAYS = [["tls", false], ["plaintext", true]];

function checkPieces({ frames, ...row }) {
  for (const [way, plaintext] of WAYS.filter(([name]) => row[name])) {
    const reader = new PieceReader(plaintext);
    const read = () => row[way].map((piece) => reader.take(bytesOf(piece))).filter((frame) => frame !== undefined);
    if (row.refused) refused(read);
    else assert.deepEqual(read().map(hexOf), frames);
  }
}

function checkFrame({ frame, fields, ...row }) {
  const message = messageOf({ fields, ...row });
  assert.deepEqual(jsonOfFrame(bytesOf(frame)), camel(fields));
  assert.equal(hexOf(writeFrame(message)), frame);
  for (const [way, plaintext] of WAYS) {
    assert.deepEqual([...new PieceWriter(plaintext).cut(bytesOf(frame))].map(hexOf), row[way]);
    checkPieces({ frames: [frame], [way]: row[way] });
  }
}

// What a client reads. What the vectors have a server refuse, this client does not send.
const ANSWERS = ["Welcome", "Ack", "Backward", "Tokens", "Refuse"];

/** frames.json -> how many of its vectors concern a client; throws at the first that differs. */
export function checkFrames({ vectors, pieces }) {
  const good = vectors.filter((vector) => !vector.refused);
  const bad = vectors.filter((vector) => vector.refused && ANSWERS.includes(vector.message));
  const forward = { step: 1, micro: 2, streams: [] }; // the one before the Backwards
  good.forEach(named(checkFrame));
  bad.forEach(named(({ frame, message }) => refused(() => readAnswer(bytesOf(frame), bodyOf(message), { forward }))));
  pieces.forEach(named(checkPieces));
  return { checked: good.length + bad.length + pieces.length, of: vectors.length + pieces.length };
}

/** session.json: every frame read and written again, and every payload and text in it read. */
export function checkSession({ frames }) {
  const ends = {};
  const known = {};
  frames.forEach(
    named((row) => {
      const { call, direction, message, fields, pieces } = row;
      const end = (ends[`${call} ${direction}`] ??= { reader: new PieceReader(true), writer: new PieceWriter(true) });
      const read = pieces.map((piece) => end.reader.take(bytesOf(piece))).filter(Boolean);
      assert.equal(read.length, 1);
      const json = jsonOfFrame(read[0]);
      assert.deepEqual(json, camel(fields));
      assert.deepEqual([...end.writer.cut(writeFrame(messageOf(row)))].map(hexOf), pieces);
      readPayloads(message, json, known);
    }),
  );
  return { checked: frames.length, of: frames.length };
}

/** known: what was agreed and told before; payloads and texts must be readable by it. */
function readPayloads(message, { terms, dictionary, text, streams }, known) {
  if (terms) Object.assign(known, { terms });
  if (dictionary) known.dictionary = Buffer.from(dictionary, "base64");
  const term = message === "Backward" ? "stream.image.gradient" : "stream.image.codec.0";
  for (const { shape, payload } of streams?.filter((coded) => coded.shape) ?? []) {
    const values = codec(JSON.parse(known.terms[term])).decode(Buffer.from(payload, "base64"), shape);
    assert.equal(values.length, elements(shape));
  }
  if (!text) return;
  const how = { vocabulary: Number(known.terms["text.vocabulary"]), dictionary: known.dictionary };
  const sequences = readText({ ...text, symbols: Buffer.from(text.symbols, "base64") }, how);
  assert.equal(sequences.some(({ answers }) => answers.length), message === "Forward");
}

const named = (check) => (vector, i) => {
  try {
    check(vector);
  } catch (error) {
    throw new Error(`"${vector.name ?? vector.what ?? vector.message}" (${i}): ${error.message}`, { cause: error });
  }
};

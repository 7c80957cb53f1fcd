// Holds this client against vectors/*.json: docs/payloads.md, "Test vectors".
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { CODEC_IDS, codec, codecText } from "./codecs.js";
import { laplacian } from "./entropy_stochastic.js";
import { ProtocolError, canonical } from "./numbers.js";
import { pack, unpack } from "./packing.js";
import { rawSymbols, readSymbols, readText, writeText } from "./symbols.js";
import { elements } from "./tensors.js";
import { readTokenizer } from "./tokenizer.js";
import { checkFrames, checkSession } from "./wire_vectors.js";

const bytesOf = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
const hexOf = (bytes) => Buffer.from(bytes).toString("hex");
const refused = (act) => assert.throws(act, ProtocolError);

/** Numbers of a vector: a list, the bytes of float32, or a formula of an element's place. */
function numbers(given, count) {
  if (Array.isArray(given)) return Float32Array.from(given);
  if (given.float32 !== undefined) return new Float32Array(bytesOf(given.float32).buffer);
  const { multiply, add, modulo, less, over } = given;
  return Float32Array.from({ length: count }, (_, i) => (((multiply * i + add) % modulo) - less) / over);
}

function checkCodec(vector) {
  const given = JSON.parse(vector.codec);
  const { shape, input, payload, decoded } = vector;
  const count = elements(shape);
  if (vector.refused) {
    const encode = () => codec(given).encode(numbers(input, count), shape);
    return refused(payload === undefined ? encode : () => codec(given).decode(bytesOf(payload), shape));
  }
  assert.equal(codecText(given), vector.codec);
  const values = codec(given).decode(bytesOf(payload), shape);
  if (decoded.sha256) assert.equal(createHash("sha256").update(values).digest("hex"), decoded.sha256);
  else assert.deepEqual(values, numbers(decoded, count));
  if (input && codec(given).encode) assert.equal(hexOf(codec(given).encode(numbers(input, count), shape)), payload);
}

function checkPacking({ levels, symbols, payload, count, ...vector }) {
  if (vector.refused) return refused(() => unpack(bytesOf(payload), count, levels));
  assert.equal(hexOf(pack(symbols, levels)), payload);
  assert.deepEqual([...unpack(bytesOf(payload), symbols.length, levels)], symbols);
}

// "levels": 4.0 is refused, but JSON.parse reads 4. Terms are compared as text, so the server sees the difference.
const UNSEEN = '{"clip":1,"id":"uniform","levels":4}';

function checkConfiguration({ given, text, ...vector }) {
  if (vector.refused && canonical(given) === UNSEEN) return;
  if (vector.refused) refused(() => codecText(given));
  else assert.equal(codecText(given), text);
}

function checkSymbols({ sequences, tokens, raw, batch, ...vector }) {
  const [symbols, dictionary] = [vector.symbols, vector.dictionary ?? ""].map(bytesOf);
  const how = { vocabulary: vector.vocabulary, codes: vector.codes, dictionary };
  if (vector.refused) return refused(() => readText({ sequences, tokens, symbols }, how));
  const expected = batch.map(({ image_at: imageAt, ...row }) => ({ ...row, imageAt }));
  const read = readText({ sequences, tokens, symbols }, how);
  assert.deepEqual(read, expected.map(({ image, ids, imageAt, answers }) => ({ image, ids, imageAt, answers })));
  assert.deepEqual(rawSymbols(read, vector.codes), raw);
  const again = writeText(read, how);
  assert.deepEqual([again.sequences, again.tokens], [sequences, tokens]);
  assert.deepEqual(readSymbols(again, how), raw);
}

function checkFingerprint({ tokenizer, config, facts, fingerprint }) {
  const read = readTokenizer(tokenizer, config);
  assert.equal(read.facts, facts);
  assert.equal(read.fingerprint, fingerprint);
}

const CHECKS = {
  packing: checkPacking,
  configurations: checkConfiguration,
  symbols: checkSymbols,
  fingerprints: checkFingerprint,
  ...Object.fromEntries(CODEC_IDS.map((id) => [id, checkCodec])),
};

/** Whether a vector is about something that this client does: it knows some codecs, and only reads some of those. */
function concerns(name, { codec: text, given, refused: bad, payload }) {
  if (name === "configurations") return bad || CODEC_IDS.includes(given.id);
  return !text || payload !== undefined || Boolean(codec(JSON.parse(text)).encode);
}

/** Yields [name of the check, what it came to] for each file of `folder`; throws at the first vector that differs. */
export function* checkVectors(folder) {
  const fileOf = (name) => JSON.parse(readFileSync(join(folder, `${name}.json`), "utf8"));
  yield ["vectors/frames.json", checkFrames(fileOf("frames"))];
  yield ["vectors/session.json", checkSession(fileOf("session"))];
  for (const [name, check] of Object.entries(CHECKS)) {
    const { vectors } = fileOf(name);
    let checked = 0;
    for (const vector of vectors) {
      if (!concerns(name, vector)) continue;
      try {
        check(vector);
      } catch (error) {
        throw new Error(`${name}.json, "${vector.name ?? JSON.stringify(vector).slice(0, 60)}": ${error.message}`);
      }
      checked++;
    }
    yield [`vectors/${name}.json`, { checked, of: vectors.length }];
  }
  const tables = fileOf("tables")["entropy-stochastic"];
  for (const row of tables) assert.deepEqual(laplacian(row.class), row.frequencies, `tables.json, class ${row.class}`);
  yield ["vectors/tables.json", { checked: tables.length, of: tables.length }];
}

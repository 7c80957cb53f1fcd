// Tensors as payloads: docs/payloads.md. A codec here has `encode(values, shape)`, where this client can write it, and
// `decode(bytes, shape)`; values are a Float32Array in C order.
import { cumulate } from "./ans.js";
import { decodeStochasticEntropy } from "./entropy_stochastic.js";
import { canonical, readFloats, refuseUnless, sizeOf, writeFloats } from "./numbers.js";
import { entropyUniform } from "./entropy_uniform.js";
import { pack, packedLength, unpack } from "./packing.js";
import { channelsOf, elements, levelIndices, levelValues } from "./tensors.js";

const floats = (format) => ({
  encode: (values) => writeFloats(values, format),
  decode: (bytes, shape) => readFloats(bytes, format, elements(shape)),
});

function uniform({ levels, clip }) {
  const values = levelValues(levels, clip);
  return {
    encode: (x) => pack(levelIndices(x, levels, clip), levels),
    decode: (bytes, shape) => Float32Array.from(unpack(bytes, elements(shape), levels), (k) => values[k]),
  };
}

/** Levels of a block's scale, drawn at random by the encoder; this client only reads them. */
function stochastic({ levels, block }) {
  const values = levelValues(levels, 1);
  return {
    decode(bytes, shape) {
      const count = elements(shape);
      if (!count) return readFloats(bytes, "bf16", 0);
      const size = Math.min(block === "token" ? channelsOf(shape) : block, count);
      const blocks = Math.ceil(count / size);
      const head = blocks * sizeOf("bf16");
      refuseUnless(bytes.length === head + packedLength(count, levels), "stochastic: a payload of another length");
      const scales = readFloats(bytes.subarray(0, head), "bf16", blocks);
      refuseUnless(scales.every((scale) => scale >= 0), "stochastic: a scale is negative");
      const indices = unpack(bytes.subarray(head), count, levels);
      return Float32Array.from(indices, (k, i) => values[k] * scales[Math.floor(i / size)]);
    },
  };
}

const integer = (least, most) => (x) => Number.isInteger(x) && x >= least && x <= most;
const number = (least, most) => (x) => typeof x === "number" && x >= least && x <= most;
const BLOCK = [(x) => x === "token" || integer(1, Infinity)(x), "token"];
const tables = (rows) => Array.isArray(rows) && rows.every((row) => cumulate(row));

// Of each codec: the rule for each member with its default, if it has one, and what makes the codec of its members.
const CODECS = {
  fp32: [{}, () => floats("fp32")],
  fp16: [{}, () => floats("fp16")],
  bf16: [{}, () => floats("bf16")],
  uniform: [{ levels: [integer(2, 65536)], clip: [number(1e-6, 1e6)] }, uniform],
  stochastic: [{ levels: [integer(2, 65536), 4], block: BLOCK }, stochastic],
  "one-bit": [
    { block: BLOCK, scale: [(x) => ["largest", "least-error"].includes(x), "largest"] },
    ({ block }) => stochastic({ levels: 2, block }),
  ],
  "entropy-uniform": [
    {
      levels: [integer(2, 256)],
      clip: [number(1e-6, 1e6)],
      groups: [integer(1, 4096), 16],
      contexts: [(x) => integer(1, 15)(x) && x % 2 === 1, 1],
      tables: [tables, []],
    },
    entropyUniform,
  ],
  "entropy-stochastic": [{ step: [number(0.05, 1000), 2] }, () => ({ decode: decodeStochasticEntropy })],
};

export const CODEC_IDS = Object.keys(CODECS);

/** JSON of a codec, with every member, as it stands in a term. */
export const codecText = (given) => canonical(complete(given));

export function codec(given) {
  return CODECS[given.id][1](complete(given));
}

function complete(given) {
  refuseUnless(Object.hasOwn(CODECS, given.id), `no codec of this client: ${given.id}`);
  const [rules] = CODECS[given.id];
  const members = { id: given.id };
  for (const [name, [allowed, otherwise]] of Object.entries(rules)) {
    members[name] = given[name] ?? otherwise;
    refuseUnless(members[name] !== undefined && allowed(members[name]), `${given.id}: ${name} is ${given[name]}`);
  }
  const foreign = Object.keys(given).find((name) => !Object.hasOwn(members, name));
  refuseUnless(foreign === undefined, `${given.id} has no member ${foreign}`);
  return members;
}

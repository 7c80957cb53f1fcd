// Whole multiples of one step at their entropy, read: docs/payloads.md, "entropy-stochastic".
import { SymbolReader, cumulate } from "./ans.js";
import { readFloats, refuseUnless } from "./numbers.js";
import { channelsOf, elements } from "./tensors.js";

const CLASSES = 16;
const TABLES = Array.from({ length: CLASSES }, (_, c) => (c ? cumulate(laplacian(c)) : null));

/** Frequencies of the symbols of a class from 1 to 15. */
export function laplacian(c) {
  const a = Math.SQRT2 / 2 ** (c - 10);
  const r = Math.exp(-a);
  const chance = (m) => ((1 - r) ** 2 * r ** (m - 1)) / (2 * a);
  const frequencies = [65536];
  for (let m = 1; m <= 127 && (m === 1 || chance(m) >= 2 ** -15); m++) {
    const frequency = Math.max(Math.floor(65536 * chance(m)), 1);
    frequencies.push(frequency, frequency);
    frequencies[0] -= 2 * frequency;
  }
  return frequencies;
}

/** Frequencies of the classes, by their shares: the logarithm of how many tokens each has, about. */
function classTable(shares) {
  const weights = shares.map((share) => (share ? 2 ** share : 0) + 0.5);
  const sum = weights.reduce((all, weight) => all + weight, 0);
  const frequencies = weights.map((weight) => Math.floor((weight / sum) * 65520) + 1);
  const left = 65536 - frequencies.reduce((all, frequency) => all + frequency, 0);
  frequencies[frequencies.indexOf(Math.max(...frequencies))] += left;
  return frequencies;
}

export function decodeStochasticEntropy(bytes, shape) {
  const count = elements(shape);
  const channels = channelsOf(shape);
  const out = new Float32Array(count);
  if (!count) {
    refuseUnless(bytes.length === 0, "entropy-stochastic: bytes of no elements");
    return out;
  }
  refuseUnless(bytes.length >= 2, "entropy-stochastic: a payload that ends in its step");
  const [step] = readFloats(bytes.subarray(0, 2), "bf16", 1);
  refuseUnless(step >= 0, "entropy-stochastic: a step that is negative");
  if (step === 0) {
    refuseUnless(bytes.length === 2, "entropy-stochastic: bytes behind a step of 0");
    return out;
  }
  refuseUnless(bytes.length >= 14, "entropy-stochastic: a payload that ends in its head");
  const shares = Array.from({ length: CLASSES }, (_, c) => (bytes[2 + (c >> 1)] >> (4 * (c & 1))) & 15);
  const end = 14 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(10, true);
  refuseUnless(end <= bytes.length, "entropy-stochastic: classes that are longer than the payload");

  const tokens = count / channels;
  const classes = new SymbolReader(bytes.subarray(14, end), tokens);
  const table = cumulate(classTable(shares));
  const byClass = Array.from({ length: CLASSES }, () => []);
  for (let token = 0; token < tokens; token++) byClass[classes.next(table)].push(token);
  classes.finish();

  const loud = byClass.slice(1).flat();
  const symbols = new SymbolReader(bytes.subarray(end), loud.length * channels);
  for (const [c, members] of byClass.entries()) {
    for (const token of c ? members : []) {
      for (let i = token * channels; i < (token + 1) * channels; i++) {
        const symbol = symbols.next(TABLES[c]);
        out[i] = (symbol % 2 ? (symbol + 1) / 2 : 0 - symbol / 2) * step; // 0 - 0, since -0 is another number
      }
    }
  }
  symbols.finish();
  return out;
}

// Indices from 0 to L - 1 as bytes: docs/payloads.md, "Packing".
import { refuseUnless } from "./numbers.js";

/** How many indices share a 64-bit word where L is no power of two: the most with L^S <= 2^64. */
function perWord(levels) {
  let count = 0;
  for (let power = BigInt(levels); power <= 1n << 64n; power *= BigInt(levels)) count++;
  return count;
}

/** Bytes of each word that `count` indices take, with the number of indices in it. */
function words(count, levels) {
  const most = perWord(levels);
  return Array.from({ length: Math.ceil(count / most) }, (_, i) => {
    const indices = Math.min(most, count - i * most);
    const limit = BigInt(levels) ** BigInt(indices);
    return { indices, limit, bytes: indices === most ? 8 : Math.ceil((limit - 1n).toString(2).length / 8) };
  });
}

export function packedLength(count, levels) {
  const bits = Math.log2(levels);
  if (Number.isInteger(bits)) return Math.ceil((count * bits) / 8);
  return words(count, levels).reduce((sum, word) => sum + word.bytes, 0);
}

export function pack(indices, levels) {
  const out = new Uint8Array(packedLength(indices.length, levels));
  const bits = Math.log2(levels);
  if (Number.isInteger(bits)) {
    indices.forEach((index, i) => {
      for (let bit = 0; bit < bits; bit++) out[(i * bits + bit) >> 3] |= ((index >> bit) & 1) << ((i * bits + bit) & 7);
    });
    return out;
  }
  let at = 0;
  let first = 0;
  for (const { indices: count, bytes } of words(indices.length, levels)) {
    let word = 0n;
    for (let i = count - 1; i >= 0; i--) word = word * BigInt(levels) + BigInt(indices[first + i]);
    for (let i = 0; i < bytes; i++) out[at++] = Number((word >> BigInt(8 * i)) & 255n);
    first += count;
  }
  return out;
}

export function unpack(bytes, count, levels) {
  const due = packedLength(count, levels);
  refuseUnless(bytes.length === due, `${count} indices of ${levels} levels take ${due} bytes, not ${bytes.length}`);
  const out = new Uint32Array(count);
  const bits = Math.log2(levels);
  if (Number.isInteger(bits)) {
    for (let n = 0; n < count * bits; n++) out[Math.floor(n / bits)] |= ((bytes[n >> 3] >> (n & 7)) & 1) << n % bits;
    const used = (count * bits) % 8;
    refuseUnless(used === 0 || bytes[due - 1] >> used === 0, "bits are set in the padding");
    return out;
  }
  let at = 0;
  let first = 0;
  for (const { indices, limit, bytes: size } of words(count, levels)) {
    let word = 0n;
    for (let i = size - 1; i >= 0; i--) word = word * 256n + BigInt(bytes[at + i]);
    refuseUnless(word < limit, `a word holds more than ${indices} indices of ${levels} levels`);
    for (let i = 0; i < indices; i++, word /= BigInt(levels)) out[first + i] = Number(word % BigInt(levels));
    at += size;
    first += indices;
  }
  return out;
}

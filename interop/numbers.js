// Numbers as bytes: the floating-point formats of docs/payloads.md, and JSON as RFC 8785 writes it.

/** What the other side sent, or what we were given, breaks a rule of the protocol. */
export class ProtocolError extends Error {}

export function refuseUnless(condition, reason) {
  if (!condition) throw new ProtocolError(reason);
}

const scratch = new DataView(new ArrayBuffer(4));

function bfloat16(bits) {
  scratch.setUint32(0, bits * 0x10000);
  return scratch.getFloat32(0);
}

/** The nearest bfloat16, ties to even, of a finite number that does not become infinite. */
function bfloat16Bits(value) {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  return Math.floor((bits + 0x7fff + ((bits >>> 16) & 1)) / 0x10000);
}

const FORMATS = {
  fp32: { size: 4, get: (view, at) => view.getFloat32(at, true), set: (view, at, x) => view.setFloat32(at, x, true) },
  fp16: { size: 2, get: (view, at) => view.getFloat16(at, true), set: (view, at, x) => view.setFloat16(at, x, true) },
  bf16: {
    size: 2,
    get: (view, at) => bfloat16(view.getUint16(at, true)),
    set: (view, at, x) => view.setUint16(at, bfloat16Bits(x), true),
  },
};

export const sizeOf = (format) => FORMATS[format].size;

/** Bytes -> Float32Array; all numbers must be finite, and no byte may be left over. */
export function readFloats(bytes, format, count) {
  const { size, get } = FORMATS[format];
  refuseUnless(bytes.length === count * size, `${bytes.length} bytes do not hold ${count} ${format}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const values = Float32Array.from({ length: count }, (_, i) => get(view, i * size));
  refuseUnless(values.every(Number.isFinite), `${format}: a number is not finite`);
  return values;
}

export function writeFloats(values, format) {
  const { size, get, set } = FORMATS[format];
  const bytes = new Uint8Array(values.length * size);
  const view = new DataView(bytes.buffer);
  values.forEach((x, i) => set(view, i * size, x));
  for (let i = 0; i < values.length; i++) {
    refuseUnless(Number.isFinite(get(view, i * size)), `${values[i]} cannot be written as ${format}`);
  }
  return bytes;
}

/** RFC 8785. JSON.stringify already writes numbers and strings so; what is left is the order of members. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const members = Object.keys(value).sort(); // by UTF-16 code units, as the RFC wants
  return `{${members.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}

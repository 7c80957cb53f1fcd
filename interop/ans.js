// Symbols with tables as bytes, by range asymmetric numeral systems: docs/payloads.md, "Streams of symbols".
import { refuseUnless } from "./numbers.js";

const LANE = 16384;
const LOW = 0xffffffffn;

/** Frequencies that sum to 65536 -> where each symbol begins, with 65536 behind the last. */
export function cumulate(frequencies) {
  const starts = [0];
  for (const frequency of frequencies) starts.push(starts.at(-1) + frequency);
  refuseUnless(frequencies.every((frequency) => frequency >= 1), "a symbol of no frequency");
  refuseUnless(starts.at(-1) === 65536, "the frequencies of a table do not sum to 65536");
  return starts;
}

/** [[symbol, table of `cumulate`], ...] -> bytes */
export function writeSymbols(pairs) {
  const lanes = [];
  for (let first = 0; first < pairs.length; first += LANE) lanes.push(writeLane(pairs.slice(first, first + LANE)));
  const lengths = Uint16Array.from(lanes.slice(0, -1), (lane) => lane.length);
  const words = Uint32Array.from(lanes.flat());
  return Buffer.concat([Buffer.from(lengths.buffer), Buffer.from(words.buffer)]);
}

function writeLane(pairs) {
  const words = [];
  let x = 0n;
  for (const [symbol, starts] of pairs.toReversed()) {
    const p = BigInt(starts[symbol + 1] - starts[symbol]) << 8n;
    const c = BigInt(starts[symbol]) << 8n;
    if (x >> 40n >= p) {
      words.push(Number(x & LOW));
      x >>= 32n;
    }
    x = ((x / p) << 24n) + c + (x % p);
  }
  if (x !== 0n) words.push(Number(x & LOW));
  if (x >> 32n !== 0n) words.push(Number(x >> 32n));
  return words;
}

/** Reads `count` symbols one after the other, each by a table that may depend on those before it. */
export class SymbolReader {
  constructor(bytes, count) {
    const lanes = Math.ceil(count / LANE);
    const head = 2 * Math.max(lanes - 1, 0);
    refuseUnless(bytes.length >= head && (bytes.length - head) % 4 === 0, "symbols: the bytes are not whole words");
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.ends = [];
    let end = head;
    for (let i = 0; i < lanes - 1; i++) this.ends.push((end += 4 * this.view.getUint16(2 * i, true)));
    refuseUnless(end <= bytes.length, "symbols: lanes of more words than there are");
    if (lanes) this.ends.push(bytes.length);
    this.start = head;
    this.read = 0;
    this.x = 0n;
    this.at = head;
  }

  #refill() {
    if (this.x > LOW || this.at === this.start) return;
    this.at -= 4;
    this.x = (this.x << 32n) | BigInt(this.view.getUint32(this.at, true));
  }

  #open(end) {
    refuseUnless(end === this.start || this.view.getUint32(end - 4, true) !== 0, "symbols: a lane's last word is 0");
    this.at = end;
    this.x = 0n;
    this.#refill();
    this.#refill();
  }

  #close() {
    refuseUnless(this.x === 0n && this.at === this.start, "symbols: a lane does not end where its symbols do");
  }

  next(starts) {
    if (this.read % LANE === 0) {
      if (this.read) {
        this.#close();
        this.start = this.ends[this.read / LANE - 1];
      }
      this.#open(this.ends[this.read / LANE]);
    }
    this.read++;
    const q = Number(this.x & 0xffffffn);
    let symbol = 0;
    while (starts[symbol + 1] * 256 <= q) symbol++;
    const p = BigInt(starts[symbol + 1] - starts[symbol]) << 8n;
    this.x = p * (this.x >> 24n) + BigInt(q - starts[symbol] * 256);
    this.#refill();
    return symbol;
  }

  finish() {
    this.#close();
  }
}

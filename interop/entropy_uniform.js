// Levels at their entropy: docs/payloads.md, "entropy-uniform".
import { SymbolReader, cumulate, writeSymbols } from "./ans.js";
import { refuseUnless } from "./numbers.js";
import { channelsOf, elements, levelIndices, levelValues } from "./tensors.js";

/** Equal frequencies, as they are until others were sent. */
function equal(levels) {
  const share = Math.floor(65536 / levels);
  return Array.from({ length: levels }, (_, i) => share + (i < 65536 % levels ? 1 : 0));
}

function frequenciesOf(counts) {
  const sum = counts.reduce((all, count) => all + count, 0);
  const frequencies = counts.map((count) => 1 + Math.floor((count / sum) * (65536 - counts.length)));
  const left = 65536 - frequencies.reduce((all, frequency) => all + frequency, 0);
  frequencies[counts.indexOf(Math.max(...counts))] += left;
  return frequencies;
}

export function entropyUniform({ levels, clip, groups, contexts, tables }) {
  const due = groups * contexts;
  refuseUnless(due <= 4096 && (tables.length === 0 || tables.length === due), `${due} tables are due`);
  refuseUnless(tables.every((row) => row.length === levels), `a table has not ${levels} frequencies`);
  const starts = tables.length ? tables.map(cumulate) : Array(due).fill(cumulate(equal(levels)));
  const values = levelValues(levels, clip);
  const plan = (shape) => order(shape, levels, groups, contexts);
  return {
    /** Tables for levels like these: frequencies in proportion, each 1 or more. */
    tablesOf(x, shape) {
      const indices = levelIndices(x, levels, clip);
      const counts = Array.from({ length: due }, () => Array(levels).fill(1));
      for (const batch of plan(shape)) {
        for (const [at, table] of batch(indices)) counts[table][indices[at]]++;
      }
      return counts.map(frequenciesOf);
    },
    encode(x, shape) {
      const indices = levelIndices(x, levels, clip);
      const pairs = [];
      for (const batch of plan(shape)) {
        for (const [at, table] of batch(indices)) pairs.push([indices[at], starts[table]]);
      }
      return writeSymbols(pairs);
    },
    decode(bytes, shape) {
      const count = elements(shape);
      const indices = new Uint32Array(count);
      const reader = new SymbolReader(bytes, count);
      for (const batch of plan(shape)) {
        for (const [at, table] of batch(indices)) indices[at] = reader.next(starts[table]);
      }
      reader.finish();
      return Float32Array.from(indices, (k) => values[k]);
    },
  };
}

/**
 * The order in which the levels of a tensor cross: functions of the indices known so far, each of which gives the next
 * elements as [place in C order, number of the table].
 */
function* order(shape, levels, groups, contexts) {
  const channels = channelsOf(shape);
  const count = elements(shape);
  const rows = channels ? count / channels : 0;
  const group = (channel) => Math.floor((channel * groups) / channels);
  const middle = (contexts - 1) / 2;
  if (contexts === 1 || shape.length !== 3) {
    for (let channel = 0; channel < channels; channel++) {
      const table = group(channel) * contexts + middle;
      yield () => Array.from({ length: rows }, (_, row) => [row * channels + channel, table]);
    }
    return;
  }
  const [images, tokens] = shape;
  const edge = Math.sqrt(tokens);
  const width = Number.isInteger(edge) ? edge : tokens;
  const place = (image, token, channel) => (image * tokens + token) * channels + channel;
  for (let sum = 0; sum <= width - 1 + tokens / width - 1; sum++) {
    yield (indices) => {
      const found = [];
      for (let image = 0; image < images; image++) {
        for (let row = 0; row * width < tokens; row++) {
          const column = sum - row;
          if (column < 0 || column >= width) continue;
          for (let channel = 0; channel < channels; channel++) {
            const token = row * width + column;
            const near = [];
            if (column > 0) near.push(indices[place(image, token - 1, channel)]);
            if (row > 0) near.push(indices[place(image, token - width, channel)]);
            const t = near.reduce((all, index) => all + (2 / near.length) * (2 * index - (levels - 1)), 0);
            const steps = Math.sign(t) * Math.floor((Math.abs(t) + 2) / 4);
            const context = Math.min(Math.max(steps, -middle), middle) + middle;
            found.push([place(image, token, channel), group(channel) * contexts + context]);
          }
        }
      }
      return found.sort((a, b) => a[1] - b[1]); // stable: by image, position and channel within a table
    };
  }
}

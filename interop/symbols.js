// Token ids and marks as Text.symbols: docs/payloads.md, "Symbols of text". A sequence is
// { image, ids, imageAt, answers }: the number of its image, token ids (null for those that cross as codes), how many
// tokens stand before the image, and the places of the answers' tokens.
import { deflateRawSync, inflateRawSync } from "node:zlib";
import { refuseUnless } from "./numbers.js";

const FIRST = 0;
const FURTHER = 1;
const IMAGE = 2;
const TOGGLE = 3;
const HIDDEN = 4;
const ID = 5;
const DICTIONARY = 32768;

const symbolType = (vocabulary) => (vocabulary + ID <= 65536 ? Uint16Array : Uint32Array);

/** The dictionary as it crossed in Calibrate -> what zlib takes: filled up with zeros in front. */
function preset(dictionary) {
  const whole = Buffer.alloc(DICTIONARY);
  if (dictionary?.length) {
    const told = inflate(dictionary, undefined, DICTIONARY);
    told.copy(whole, DICTIONARY - told.length);
  }
  return whole;
}

/** A raw deflate stream that ends with its last byte and makes `most` bytes or less. */
function inflate(bytes, dictionary, most) {
  try {
    const { buffer, engine } = inflateRawSync(bytes, { dictionary, maxOutputLength: Math.max(most, 1), info: true });
    refuseUnless(engine.bytesWritten === bytes.length, "text: bytes behind the deflate stream");
    return buffer;
  } catch (error) {
    if (!error.code) throw error; // our own refusal
    return refuseUnless(false, `text: ${error.message}`);
  }
}

/** The last symbols, as Calibrate.dictionary holds them. */
export function deflateDictionary(raw, vocabulary) {
  return deflateRawSync(bytesOf(raw, vocabulary).subarray(-DICTIONARY));
}

function bytesOf(raw, vocabulary) {
  return Buffer.from(symbolType(vocabulary).from(raw).buffer);
}

export function rawSymbols(sequences, codes = false) {
  return sequences.flatMap(({ image, ids, imageAt, answers }, i) => {
    const raw = [image === sequences[i - 1]?.image ? FURTHER : FIRST];
    let answering = false;
    ids.forEach((id, at) => {
      if (at === imageAt) raw.push(IMAGE);
      if (answers.includes(at) !== answering) raw.push(TOGGLE);
      answering = answers.includes(at);
      raw.push(codes && !answering ? HIDDEN : ID + id);
    });
    return imageAt === ids.length ? [...raw, IMAGE] : raw;
  });
}

/** Sequences -> the message Text, and the length of the longest, which does not cross but has a limit. */
export function writeText(sequences, { vocabulary, dictionary, codes = false }) {
  const raw = bytesOf(rawSymbols(sequences, codes), vocabulary);
  return {
    sequences: sequences.length,
    tokens: sequences.reduce((sum, { ids }) => sum + ids.length, 0),
    symbols: deflateRawSync(raw, { dictionary: preset(dictionary) }),
    longest: Math.max(...sequences.map(({ ids }) => ids.length)),
  };
}

export function readSymbols({ sequences, tokens, symbols }, { vocabulary, dictionary }) {
  const type = symbolType(vocabulary);
  const size = type.BYTES_PER_ELEMENT;
  const bytes = inflate(symbols, preset(dictionary), 2 * (sequences + tokens) * size);
  refuseUnless(bytes.length % size === 0, "text: half a symbol");
  return [...new type(Uint8Array.from(bytes).buffer)];
}

/** The message Text -> sequences. */
export function readText(text, { vocabulary, dictionary, codes = false }) {
  const sequences = [];
  let last;
  let image = -1;
  let answering = false;
  let toggled = false;
  const endSequence = () => {
    refuseUnless(!toggled, "text: answers begin or end behind the last token");
    refuseUnless(!last || last.imageAt !== null, "text: a sequence without an image");
  };
  for (const symbol of readSymbols(text, { vocabulary, dictionary })) {
    if (symbol <= FURTHER) {
      endSequence();
      refuseUnless(symbol === FIRST || last, "text: the first sequence is a further one about an image");
      image += symbol === FIRST ? 1 : 0;
      sequences.push((last = { image, ids: [], imageAt: null, answers: [] }));
      answering = false;
      continue;
    }
    refuseUnless(last, "text: a symbol before the first sequence");
    if (symbol === IMAGE) {
      refuseUnless(last.imageAt === null, "text: a sequence has two images");
      refuseUnless(!toggled, "text: answers begin or end before the image's mark");
      last.imageAt = last.ids.length;
    } else if (symbol === TOGGLE) {
      refuseUnless(!toggled, "text: answers begin and end at once");
      toggled = true;
    } else {
      answering = answering !== toggled;
      toggled = false;
      refuseUnless((symbol === HIDDEN) === (codes && !answering), "text: a token crosses in the wrong way");
      refuseUnless(symbol - ID < vocabulary, `text: id ${symbol - ID} of a vocabulary of ${vocabulary}`);
      if (answering) last.answers.push(last.ids.length);
      last.ids.push(symbol === HIDDEN ? null : symbol - ID);
    }
  }
  endSequence();
  refuseUnless(sequences.length === text.sequences, `text: ${sequences.length} sequences, ${text.sequences} told`);
  const tokens = sequences.reduce((sum, { ids }) => sum + ids.length, 0);
  refuseUnless(tokens === text.tokens, `text: ${tokens} tokens, ${text.tokens} told`);
  return sequences;
}

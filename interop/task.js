// What both sides have agreed on, from a settings file, and what is learned: two kinds of picture, yes or no.
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { codecText } from "./codecs.js";
import { picture } from "./model.js";
import { idsOfWords, readTokenizer } from "./tokenizer.js";

export const FEATURES = 12;
export const TOKENS = 4; // of a picture
const BATCH = 4; // pictures of a micro-batch

/** The settings file is JSON; its paths are relative to it, and `certificates` is null for plaintext. */
export function readTask(path) {
  const settings = JSON.parse(readFileSync(path, "utf8"));
  const folder = (name) => resolve(dirname(path), settings[name]);
  const file = (name) => readFileSync(join(folder("tokenizer"), name), "utf8");
  const tokenizer = readTokenizer(file("tokenizer.json"), file("tokenizer_config.json"));
  const certificates = settings.certificates && folder("certificates");
  return { ...settings, certificates, checkpoints: folder("checkpoints"), tokenizer };
}

/** weights: `RUN@STEP` of the half that asks; undefined where halves are to be trained. */
export function terms({ vision, language, width, channels, up, down, tokenizer, train }, weights) {
  const both = {
    "model.vision": vision,
    "model.language": language,
    "seam.width": String(width),
    "text.tokenizer": tokenizer.fingerprint,
    "text.vocabulary": String(tokenizer.vocabulary),
    streams: "image",
    "stream.image.direction": "up",
    "stream.image.channels": String(channels),
    "stream.image.codec.0": codecText(up),
    "stream.image.gradient": codecText(down),
  };
  if (weights) return { ...both, "model.weights": weights };
  const training = Object.entries(train).map(([name, value]) => [`train.${name}`, String(value)]);
  return { ...both, ...Object.fromEntries(training) };
}

export const pictureOf = (number) => picture(number, TOKENS, FEATURES);

/** The sequence about a picture, with its answer or, as a question, without: what <image> is this a cat ? yes */
export function sequence(tokenizer, image, answer) {
  const prompt = idsOfWords(tokenizer, "what is this a cat ?");
  const words = answer ? idsOfWords(tokenizer, `${answer} </s>`) : [];
  const answers = words.map((_, i) => prompt.length + i);
  return { image, ids: [...prompt, ...words], imageAt: 1, answers };
}

/** The micro-batches of each step: the same pictures again and again. */
export function microBatches({ tokenizer, train }) {
  return Array.from({ length: train.accumulate }, (_, micro) => {
    const numbers = Array.from({ length: BATCH }, (_, i) => micro * BATCH + i);
    return {
      pictures: numbers.map(pictureOf),
      sequences: numbers.map((number, i) => sequence(tokenizer, i, number % 2 ? "yes" : "no")),
    };
  });
}

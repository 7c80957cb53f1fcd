// A tokenizer as Bitseam knows it, and the words of the simplest kind of one: docs/payloads.md, "Tokenizer".
import { createHash } from "node:crypto";
import { canonical, refuseUnless } from "./numbers.js";

const sha256 = (text) => createHash("sha256").update(text).digest("hex");

/** Texts of tokenizer.json and tokenizer_config.json -> { fingerprint, facts, vocabulary (size), ids (word -> id) } */
export function readTokenizer(tokenizerText, configText) {
  const tokenizer = JSON.parse(tokenizerText);
  const config = JSON.parse(configText);
  const ids = new Map(Object.entries(tokenizer.model.vocab));
  const known = new Set(tokenizer.added_tokens.map(({ content }) => content));
  for (const { content, id } of tokenizer.added_tokens) ids.set(content, id);
  let next = Math.max(Object.keys(tokenizer.model.vocab).length, ...tokenizer.added_tokens.map(({ id }) => id + 1));
  const added = {};
  for (const content of specialTokens(config)) {
    if (known.has(content)) continue;
    if (!ids.has(content)) ids.set(content, next++);
    added[content] = ids.get(content);
  }
  const idOf = (token) => (token ? ids.get(contentOf(token)) : null);
  const facts = canonical({ added, begin: idOf(config.bos_token), end: idOf(config.eos_token) });
  const fingerprint = sha256(`${sha256(tokenizerText)}\n${facts}`).slice(0, 16);
  return { fingerprint, facts, ids, vocabulary: Math.max(...ids.values()) + 1 };
}

const contentOf = (token) => token.content ?? token;

/** Contents of the special tokens that tokenizer_config.json names. */
function specialTokens(config) {
  const named = Object.keys(config).filter((key) => key.endsWith("_token") && config[key] && !key.startsWith("add_"));
  const decoder = Object.values(config.added_tokens_decoder ?? {});
  return new Set([...decoder, ...named.map((key) => config[key])].map(contentOf));
}

/** Words with spaces between -> ids. */
export function idsOfWords(tokenizer, words) {
  return words.split(" ").map((word) => {
    refuseUnless(tokenizer.ids.has(word), `the tokenizer has no word ${word}`);
    return tokenizer.ids.get(word);
  });
}

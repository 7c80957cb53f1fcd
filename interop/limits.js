// What the Welcome allows in this session: docs/protocol.md, "Limits". What is over one is refused before it is sent.
import { refuseUnless } from "./numbers.js";
import { elements } from "./tensors.js";

// No server may widen these.
const DEFAULTS = {
  frameBytes: 2 ** 29,
  batch: 4096,
  tokens: 2 ** 20,
  sequenceTokens: 2 ** 20,
  imageTokens: 2 ** 20,
  positions: 2 ** 32 - 1,
  newTokens: 4096,
  elements: 2 ** 28,
  channels: 65536,
  tables: 2 ** 21,
  rotation: 2 ** 24,
};

const most = (sizes) => Math.max(0, ...sizes);

export function refuseOver(message, frame, limits) {
  const [body] = Object.values(message);
  const tensors = body.streams?.filter(({ shape }) => shape) ?? [];
  const news = message.calibrate ?? message.forward?.news;
  const statistics = news?.streams ?? [];
  const longest = body.text?.longest ?? 0;
  const imageTokens = most(tensors.map(({ stream, shape }) => (stream === 0 ? shape[1] : 0)));
  const newTokens = body.maxNewTokens ?? 0;
  const sizes = {
    frameBytes: frame.length,
    batch: body.text?.sequences ?? 0,
    tokens: body.text?.tokens ?? 0,
    sequenceTokens: longest,
    imageTokens,
    positions: longest + imageTokens + newTokens,
    newTokens,
    elements: most(tensors.map(({ shape }) => elements(shape))),
    channels: most(statistics.map(({ mean }) => (mean?.length ?? 0) / 4)),
    tables: most(statistics.flatMap(({ tables = [] }) => tables.map(({ frequencies }) => frequencies.length))),
    rotation: most(statistics.map(({ rotation }) => rotation?.length ?? 0)),
  };
  for (const [name, size] of Object.entries(sizes)) {
    const limit = Math.min(limits[name], DEFAULTS[name]);
    refuseUnless(size <= limit, `${name}: ${size}; the limit is ${limit}`);
  }
}

// What the Welcome allows in this session: docs/protocol.md, "Limits". What is over one is refused before it is sent.
import { refuseUnless } from "./numbers.js";
import { elements } from "./tensors.js";

export function refuseOver(message, frame, limits) {
  const [body] = Object.values(message);
  const tensors = body.streams?.filter(({ shape }) => shape) ?? [];
  const statistics = (message.calibrate?.streams ?? []).concat(message.forward?.news?.streams ?? []);
  const longest = body.text?.longest ?? 0;
  const imageTokens = Math.max(0, ...tensors.map(({ stream, shape }) => (stream === 0 ? shape[1] : 0)));
  const newTokens = body.maxNewTokens ?? 0;
  const sizes = {
    frameBytes: frame.length,
    batch: body.text?.sequences ?? 0,
    tokens: body.text?.tokens ?? 0,
    sequenceTokens: longest,
    imageTokens,
    positions: longest + imageTokens + newTokens,
    newTokens,
    elements: Math.max(0, ...tensors.map(({ shape }) => elements(shape))),
    channels: Math.max(0, ...statistics.map(({ mean }) => (mean?.length ?? 0) / 4)),
    tables: Math.max(0, ...statistics.flatMap(({ tables = [] }) => tables.map((table) => table.frequencies.length))),
    rotation: Math.max(0, ...statistics.map(({ rotation }) => rotation?.length ?? 0)),
  };
  for (const [name, size] of Object.entries(sizes)) {
    refuseUnless(size <= limits[name], `${name}: ${size}; the server's limit is ${limits[name]}`);
  }
}

// Shapes, and the levels that elements are rounded to: docs/payloads.md, "Levels".
import { refuseUnless } from "./numbers.js";

export const elements = (shape) => shape.reduce((product, n) => product * n, 1);
export const channelsOf = (shape) => shape.at(-1) ?? 1;

/** The float32 value of each of `levels` even levels on [-clip, clip]. */
export function levelValues(levels, clip) {
  return Float32Array.from({ length: levels }, (_, k) => (2 * k - (levels - 1)) * (clip / (levels - 1)));
}

/** The index of the nearest level, of the upper one where two are equally near. */
export function levelIndices(values, levels, clip) {
  const { fround } = Math;
  const scale = fround((levels - 1) / (2 * clip));
  return Uint32Array.from(values, (x) => {
    refuseUnless(Number.isFinite(x), "an element is not finite");
    const steps = Math.min(Math.max(fround(fround(x) * scale), -levels / 2), levels / 2 - 1);
    return Math.floor(fround(steps + levels / 2));
  });
}

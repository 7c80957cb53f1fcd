// A vision half of our own: a linear map of synthetic features, trained by hand-written momentum SGD.
import { codec } from "./codecs.js";

/** A generator of the same numbers on every machine (mulberry32), uniform on [0, 1). */
export function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** (tokens, features) of a picture of kind 0 or 1: noise around one of two opposite points. */
export function picture(number, tokens, features) {
  const draw = random(1000 + number);
  return Array.from({ length: tokens }, () =>
    Array.from({ length: features }, (_, i) => (number % 2 ? 1 : -1) * (i % 2 ? 1 : -1) + draw() - 0.5),
  );
}

export class Vision {
  /** up: JSON of the stream's codec, whose clip is in deviations of a channel. */
  constructor({ features, channels, up, rate, momentum = 0.9, seed = 7 }) {
    const draw = random(seed);
    this.features = features;
    this.channels = channels;
    this.up = up;
    this.codec = codec(up);
    this.rate = rate;
    this.momentum = momentum;
    this.weights = Float64Array.from({ length: features * channels }, () => (draw() - 0.5) / Math.sqrt(features));
    this.velocity = new Float64Array(features * channels);
    this.gradient = new Float64Array(features * channels);
    this.mean = new Float32Array(channels);
    this.std = new Float32Array(channels).fill(1);
    this.tables = [];
  }

  #project(row) {
    const out = new Float64Array(this.channels);
    row.forEach((x, i) => {
      for (let c = 0; c < this.channels; c++) out[c] += x * this.weights[i * this.channels + c];
    });
    return out;
  }

  /** Takes mean and deviation of each channel over these pictures, and tables where the codec has some; they stay. */
  calibrate(pictures) {
    const rows = pictures.flat().map((row) => this.#project(row));
    for (let c = 0; c < this.channels; c++) {
      const mean = rows.reduce((sum, row) => sum + row[c], 0) / rows.length;
      const variance = rows.reduce((sum, row) => sum + (row[c] - mean) ** 2, 0) / rows.length;
      this.mean[c] = mean;
      this.std[c] = Math.sqrt(variance);
    }
    if (this.codec.tablesOf) this.#use(this.codec.tablesOf(...this.#levels(pictures)));
  }

  #use(tables) {
    this.tables = tables;
    if (tables.length) this.codec = codec({ ...this.up, tables });
  }

  /** What the server must know to read the codes: the message Statistics. */
  statistics() {
    const [mean, std] = [this.mean, this.std].map((x) => Buffer.from(x.buffer));
    const frequencies = Buffer.from(Uint16Array.from(this.tables.flat()).buffer);
    return { stream: 0, mean, std, tables: frequencies.length ? [{ rate: 0, frequencies }] : [] };
  }

  /** Pictures -> each element in deviations of its channel, and the shape of all. */
  #levels(pictures) {
    const rows = pictures.flat().map((row) => this.#project(row).map((z, c) => (z - this.mean[c]) / this.std[c]));
    return [Float32Array.from(rows.flatMap((row) => [...row])), [pictures.length, pictures[0].length, this.channels]];
  }

  /** Pictures -> the message Coded, and what `backward` needs. */
  encode(pictures) {
    const [normal, shape] = this.#levels(pictures);
    const payload = this.codec.encode(normal, shape);
    return { coded: { stream: 0, shape, payload, rate: 0 }, rows: pictures.flat(), normal };
  }

  /** Adds to the step's gradient, by that by the levels: straight through, but not beyond the clip. */
  backward({ rows, normal }, byLevels) {
    rows.forEach((row, n) => {
      for (let c = 0; c < this.channels; c++) {
        const at = n * this.channels + c;
        if (Math.abs(normal[at]) > this.up.clip) continue;
        const g = byLevels[at] / this.std[c];
        row.forEach((x, i) => (this.gradient[i * this.channels + c] += x * g));
      }
    });
  }

  /** Moves the weights; answerTokens: what the summed loss is to be divided by. */
  step(answerTokens) {
    this.weights.forEach((_, i) => {
      this.velocity[i] = this.momentum * this.velocity[i] + this.gradient[i] / answerTokens;
      this.weights[i] -= this.rate * this.velocity[i];
    });
    this.gradient.fill(0);
  }

  state() {
    const { weights, velocity, mean, std, tables } = this;
    const arrays = Object.entries({ weights, velocity, mean, std }).map(([name, x]) => [name, [...x]]);
    return { ...Object.fromEntries(arrays), tables };
  }

  load({ tables, ...arrays }) {
    this.gradient.fill(0);
    for (const [name, values] of Object.entries(arrays)) this[name].set(values);
    this.#use(tables);
  }
}

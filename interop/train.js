// Ten steps: codes up, coded gradients down, and a checkpoint wherever both sides write one.
import { codec } from "./codecs.js";
import { deflateDictionary, rawSymbols, writeText } from "./symbols.js";
import { microBatches } from "./task.js";

export class Training {
  /** session: opened. Then comes `calibrate` in a new run, else `load`. */
  constructor(task, session, vision, checkpoints) {
    Object.assign(this, { task, session, vision, checkpoints });
    this.batches = microBatches(task);
    this.down = codec(task.down);
    this.step = 0;
  }

  /** The beginning of a new run: statistics and dictionary of all texts, and then step 0 is written. */
  async calibrate() {
    const { vocabulary } = this.task.tokenizer;
    this.vision.calibrate(this.batches.flatMap(({ pictures }) => pictures));
    this.dictionary = deflateDictionary(rawSymbols(this.batches.flatMap(({ sequences }) => sequences)), vocabulary);
    const calibrate = { streams: [this.vision.statistics()], dictionary: this.dictionary };
    await this.session.request({ calibrate }, "ack");
    await this.save();
  }

  /** Goes back to what was written at the step that the Welcome says both sides go on from. */
  load() {
    this.step = this.session.welcome.step;
    const { state, dictionary } = this.checkpoints.read(this.step);
    this.vision.load(state); // with no gradient of a step that was under way
    this.dictionary = dictionary;
  }

  /** The server writes its half first, and then answers. */
  async save() {
    const { step } = this;
    const ack = await this.session.request({ checkpoint: { step } }, "ack");
    const { dictionary, vision, session } = this;
    this.checkpoints.write(step, { run: session.welcome.run, state: vision.state(), dictionary });
    return ack.step;
  }

  /** One micro-batch: adds to the gradient, and gives the answer with the bytes of both payloads. */
  async #micro(step, micro) {
    const { pictures, sequences } = this.batches[micro];
    const made = this.vision.encode(pictures);
    const text = writeText(sequences, { vocabulary: this.task.tokenizer.vocabulary, dictionary: this.dictionary });
    const last = micro === this.batches.length - 1;
    const forward = { step, micro, last, text, streams: [made.coded] };
    const backward = await this.session.request({ forward }, "backward");
    const [gradient] = backward.streams;
    this.vision.backward(made, this.down.decode(gradient.payload, gradient.shape));
    return { ...backward, up: made.coded.payload.length / pictures.length, down: gradient.payload.length };
  }

  /**
   * One step, after which the weights have moved. around(step, micro, act) does what it likes around each micro-batch
   * that `act` sends. -> { step, loss, up, down, stopping }: the loss a mean over answer tokens, `up` bytes of codes an
   * image, `down` bytes of a gradient, and whether the server is being stopped, so that a checkpoint is due.
   */
  async next(around = (_step, _micro, act) => act()) {
    const step = this.step + 1;
    let [loss, tokens] = [0, 0];
    let answer;
    for (const micro of this.batches.keys()) {
      answer = await around(step, micro, () => this.#micro(step, micro));
      loss += answer.loss;
      tokens += answer.answerTokens;
    }
    this.vision.step(tokens);
    this.step = step;
    return { step, loss: loss / tokens, up: answer.up, down: answer.down, stopping: answer.stopping };
  }
}

// A session: the handshake, one request at a time, and the same session again where the connection broke.
import { setTimeout as pause } from "node:timers/promises";
import { Fault, Purpose, readFrame, writeFrame } from "./frames.js";
import { refuseOver } from "./limits.js";
import { LinkBroken } from "./link.js";
import { refuseUnless } from "./numbers.js";

const VERSION = 1;

/** The server refused, and says whose fault it is. */
export class Refused extends Error {
  constructor({ fault, reason, differences }) {
    super(reason);
    this.fault = Fault[fault];
    this.differences = differences;
  }
}

/** The server does not know the session any more: both sides go back to a checkpoint. */
export class SessionLost extends Error {}

export class Session {
  resumptions = 0;

  /** dial: () -> Link; held: () -> { run, steps } of our checkpoints; patience: seconds to look for a server. */
  constructor(dial, { purpose, terms, imageTokens, held = () => ({}), patience = 60 }) {
    this.dial = dial;
    this.held = held;
    this.hello = { version: VERSION, purpose: Purpose[purpose], terms, imageTokens };
    this.patience = patience;
  }

  /** The handshake. -> the Welcome; raises Refused, and LinkBroken where nobody answers. */
  async open() {
    this.link = this.dial();
    await this.link.send(writeFrame({ hello: { ...this.hello, ...this.held() } }));
    this.welcome = await this.#receive("welcome");
    this.hello.session = this.welcome.session;
    return this.welcome;
  }

  async #receive(kind) {
    const message = readFrame(await this.link.receive());
    if (message.refuse) {
      this.link.close();
      const refused = new Refused(message.refuse);
      throw refused.fault === "STOPPING" ? new LinkBroken(refused.message) : refused; // another may take its place
    }
    refuseUnless(message[kind], `${Object.keys(message)[0]} where ${kind} is due`);
    return message[kind];
  }

  #frameOf(message) {
    const frame = writeFrame(message);
    refuseOver(message, frame, this.welcome.limits);
    return frame;
  }

  /** Sends a request; gives the answer of this kind. Over a new connection the request is repeated, byte for byte. */
  async request(message, kind) {
    const frame = this.#frameOf(message);
    for (;;) {
      try {
        await this.link.send(frame);
        return await this.#receive(kind);
      } catch (error) {
        if (!(error instanceof LinkBroken)) throw error;
        await this.#resume();
      }
    }
  }

  async #resume() {
    const end = Date.now() + 1000 * this.patience;
    for (let wait = 50; ; wait = Math.min(2 * wait, 1000)) {
      this.link.close();
      await pause(wait);
      try {
        await this.open();
        break;
      } catch (error) {
        if (!(error instanceof LinkBroken) || Date.now() > end) throw error;
      }
    }
    this.resumptions++;
    const training = this.hello.purpose === Purpose.TRAIN;
    if (training && !this.welcome.resumed) throw new SessionLost("the server does not know the session");
  }

  /**
   * Yields the ids of each position of the answers, one a sequence, until all have ended. Over a new connection the
   * answer begins anew, and what has been given already is dropped.
   */
  async *ask(question) {
    const frame = this.#frameOf({ ask: question });
    for (let given = 0; ; ) {
      try {
        await this.link.send(frame);
        for (let position = 0; ; position++) {
          const { ids, last } = await this.#receive("tokens");
          if (ids.length && position === given) {
            given++;
            yield ids;
          }
          if (last) return;
        }
      } catch (error) {
        if (!(error instanceof LinkBroken)) throw error;
        await this.#resume();
      }
    }
  }

  async close(reason = "") {
    await this.link.send(writeFrame({ goodbye: { reason } }));
    await this.link.finish();
  }
}

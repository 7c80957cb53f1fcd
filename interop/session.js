// A session: the handshake, one request at a time, and the same session again where the connection broke.
import { setTimeout as pause } from "node:timers/promises";
import { readAnswer } from "./answers.js";
import { Fault, Purpose, writeFrame } from "./frames.js";
import { refuseOver } from "./limits.js";
import { LinkBroken } from "./link.js";

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
    const message = { hello: { ...this.hello, ...this.held() } };
    await this.link.send(writeFrame(message));
    this.welcome = await this.#receive("welcome", message);
    this.hello.session = this.welcome.session;
    return this.welcome;
  }

  async #receive(kind, request) {
    const answer = readAnswer(await this.link.receive(), kind, request);
    if (!answer.refuse) return answer[kind];
    this.link.close();
    const refused = new Refused(answer.refuse);
    throw refused.fault === "STOPPING" ? new LinkBroken(refused.message) : refused; // another may take its place
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
        return await this.#receive(kind, message);
      } catch (error) {
        if (!(error instanceof LinkBroken)) throw error;
        await this.#resume();
      }
    }
  }

  async #resume() {
    const end = Date.now() + 1000 * this.patience;
    for (let longest = 100; ; longest = Math.min(2 * longest, 3000)) {
      this.link.close();
      await pause(longest * Math.random()); // so that clients that lost a server together do not come back together
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
    const message = { ask: question };
    const frame = this.#frameOf(message);
    for (let given = 0; ; ) {
      try {
        await this.link.send(frame);
        for (let position = 0; ; position++) {
          const { ids, last } = await this.#receive("tokens", message);
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

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

  /** dial: () -> Link; patience: seconds that a session is tried to be resumed for. */
  constructor(dial, { purpose, terms, imageTokens, patience = 20 }) {
    this.dial = dial;
    this.hello = { version: VERSION, purpose: Purpose[purpose], terms, imageTokens };
    this.patience = patience;
  }

  /** held: { run, steps } of the checkpoints that the client has. -> the Welcome */
  async open(held = {}) {
    this.link = this.dial();
    this.welcome = await this.#greet({ ...this.hello, ...held });
    this.hello.session = this.welcome.session;
    return this.welcome;
  }

  async #greet(hello) {
    await this.link.send(writeFrame({ hello }));
    return this.#receive("welcome");
  }

  async #receive(kind) {
    const message = readFrame(await this.link.receive());
    if (message.refuse) {
      this.link.close();
      throw new Refused(message.refuse);
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
        await this.#resume(error);
      }
    }
  }

  async #resume(cause) {
    const end = Date.now() + 1000 * this.patience;
    for (let wait = 50; ; wait = Math.min(2 * wait, 2000)) {
      this.link.close();
      if (Date.now() > end) throw cause;
      await pause(wait);
      this.link = this.dial();
      try {
        this.welcome = await this.#greet(this.hello);
        break;
      } catch (error) {
        if (!(error instanceof LinkBroken)) throw error;
      }
    }
    if (!this.welcome.resumed) throw new SessionLost("the server does not know the session");
    this.resumptions++;
  }

  /** Yields the ids of each position of the answers, one a sequence, until all have ended. */
  async *ask(question) {
    await this.link.send(this.#frameOf({ ask: question }));
    for (;;) {
      const { ids, last } = await this.#receive("tokens");
      if (ids.length) yield ids; // the last message may have none
      if (last) return;
    }
  }

  async close(reason = "") {
    await this.link.send(writeFrame({ goodbye: { reason } }));
    await this.link.finish();
  }
}

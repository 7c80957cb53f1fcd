// Frames over one gRPC stream with mutual TLS.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import grpc from "@grpc/grpc-js";
import { readFrame } from "./frames.js";

/** The connection ended, and with it the stream; the session may go on over another one. */
export class LinkBroken extends Error {}

const same = (bytes) => bytes;
const Seam = grpc.makeGenericClientConstructor({
  session: {
    path: "/bitseam.v1.Seam/Session",
    requestStream: true,
    responseStream: true,
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same,
  },
});
const PIECE = 1 << 20;

export class Link {
  #arrived = [];
  #waiting = null;
  #ended = null;
  #pieces = [];

  /** address "host:port"; certificates: a folder with ca.pem, client.pem and client.key. */
  constructor(address, certificates) {
    const read = (name) => readFileSync(join(certificates, name));
    const credentials = grpc.credentials.createSsl(read("ca.pem"), read("client.key"), read("client.pem"));
    // The session redials itself, since a new stream begins with a Hello.
    this.client = new Seam(address, credentials, { "grpc.enable_retries": 0, "grpc.use_local_subchannel_pool": 1 });
    this.call = this.client.session();
    this.call.on("data", (piece) => this.#take(piece));
    this.call.on("error", (error) => this.#end(error.details || error.message));
    this.call.on("end", () => this.#end("the server ended the stream"));
  }

  #take(piece) {
    this.#pieces.push(piece);
    if (piece.length === PIECE) return;
    this.#arrived.push(Buffer.concat(this.#pieces.splice(0)));
    this.#wake();
  }

  #end(reason) {
    this.#ended ??= reason;
    this.#wake();
  }

  #wake() {
    this.#waiting?.();
    this.#waiting = null;
  }

  async send(frame) {
    for (let at = 0; at <= frame.length; at += PIECE) {
      if (this.#ended) throw new LinkBroken(this.#ended);
      const full = !this.call.write(frame.subarray(at, at + PIECE));
      if (full) await new Promise((resolve) => this.call.once("drain", resolve).once("error", resolve).once("end", resolve));
    }
  }

  /** The next message; what had arrived before the link broke is still given. */
  async receive() {
    while (!this.#arrived.length) {
      if (this.#ended) throw new LinkBroken(this.#ended);
      await new Promise((resolve) => (this.#waiting = resolve));
    }
    return readFrame(this.#arrived.shift());
  }

  /** Says that nothing follows, and waits until the server has ended the stream too. */
  async finish() {
    this.call.end();
    while (!this.#ended) await new Promise((resolve) => (this.#waiting = resolve));
    this.client.close();
  }

  close() {
    this.call.cancel();
    this.client.close();
  }
}

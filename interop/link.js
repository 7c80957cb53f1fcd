// Frames over one call of gRPC: a connection of a session.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { PROTO, PieceReader, PieceWriter } from "./frames.js";

/** The connection ended; the session may go on over another one. */
export class LinkBroken extends Error {}

/** The server does not let this certificate in. */
export class NotLetIn extends Error {}

function failureOf({ code, details, message }) {
  const Kind = code === grpc.status.UNAUTHENTICATED ? NotLetIn : LinkBroken;
  return new Kind(details || message);
}

// The stub that the .proto makes, but with pieces as bytes: the generated reader drops fields that it does not know.
const asBytes = (bytes) => bytes;
const { Session } = loadSync(PROTO)["bitseam.v1.Seam"];
const Seam = grpc.makeClientConstructor({
  session: { ...Session, requestSerialize: asBytes, responseDeserialize: asBytes },
});
const OPTIONS = { "grpc.enable_retries": 0, "grpc.use_local_subchannel_pool": 1 }; // a session dials again by itself

export class Link {
  #frames = [];
  #failure = null;
  #wake = () => {};
  #writer;
  #reader;

  /** address: "host:port"; certificates: a folder with ca.pem, client.pem and client.key, or null for plaintext. */
  constructor(address, certificates) {
    this.#writer = new PieceWriter(!certificates);
    this.#reader = new PieceReader(!certificates);
    const read = (name) => readFileSync(join(certificates, name));
    const credentials = certificates
      ? grpc.credentials.createSsl(read("ca.pem"), read("client.key"), read("client.pem"))
      : grpc.credentials.createInsecure();
    this.client = new Seam(address, credentials, OPTIONS);
    this.call = this.client.session();
    this.call.on("data", (piece) => this.#take(piece));
    this.call.on("drain", () => this.#wake());
    this.call.on("error", (error) => this.#end(failureOf(error)));
    this.call.on("end", () => this.#end(new LinkBroken("the server ended the call")));
  }

  #take(piece) {
    try {
      const frame = this.#reader.take(piece);
      if (frame) this.#frames.push(frame);
    } catch (error) {
      this.#end(error);
    }
    this.#wake();
  }

  #end(failure) {
    this.#failure ??= failure;
    this.#wake();
  }

  /** Until something has arrived, the call has ended or, of what is sent, there is room again. */
  #news() {
    return new Promise((resolve) => (this.#wake = resolve));
  }

  /** Raises LinkBroken. */
  async send(frame) {
    for (const piece of this.#writer.cut(frame)) {
      while (!this.#failure && this.call.writableNeedDrain) await this.#news();
      if (this.#failure) throw this.#failure;
      this.call.write(piece);
    }
  }

  /** The next frame; those that arrived before the link broke are still given. Raises LinkBroken. */
  async receive() {
    while (!this.#frames.length) {
      if (this.#failure) throw this.#failure;
      await this.#news();
    }
    return this.#frames.shift();
  }

  /** Says that nothing follows, and waits until the server has ended the call too. */
  async finish() {
    this.call.end();
    while (!this.#failure) await this.#news();
    this.client.close();
  }

  close() {
    this.call.cancel();
    this.client.close();
  }
}

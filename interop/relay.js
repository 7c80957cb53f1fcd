// A relay of TCP that a test cuts: what it forwards is TLS, which it cannot read.
import { once } from "node:events";
import net from "node:net";
import { setTimeout as pause } from "node:timers/promises";

export class Relay {
  #pairs = new Set();
  #losing = null;

  /** Listens on a free port of loopback and forwards to `address`, "host:port". */
  static async open(address) {
    const relay = new Relay();
    const [host, port] = address.split(":");
    relay.server = net.createServer((near) => relay.#join(near, net.connect(Number(port), host)));
    relay.server.listen(0, "localhost");
    await once(relay.server, "listening");
    relay.address = `localhost:${relay.server.address().port}`;
    return relay;
  }

  #join(near, far) {
    const pair = [near, far];
    this.#pairs.add(pair);
    for (const socket of pair) {
      socket.on("error", () => {});
      socket.on("close", () => {
        pair.forEach((other) => other.destroy());
        this.#pairs.delete(pair);
      });
    }
    near.on("data", (data) => far.write(data));
    far.on("data", (data) => {
      if (!this.#losing) near.write(data);
      else if ((this.#losing.left -= data.length) <= 0) this.#losing.enough();
    });
  }

  /** Ends all connections at once (TCP RST), as a network does that goes away. */
  cut() {
    for (const socket of [...this.#pairs].flat()) socket.resetAndDestroy();
  }

  /** From now on what the server says is lost; cuts a moment after that were as many bytes as an answer has. */
  async loseAnswer(bytes) {
    await new Promise((enough) => (this.#losing = { left: bytes, enough }));
    await pause(300); // some of the bytes were HTTP/2's own
    this.cut();
    this.#losing = null;
  }

  close() {
    this.cut();
    this.server.close();
  }
}

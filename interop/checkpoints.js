// The client's half of each step that both sides can go back to: the two newest, a JSON file each.
import { mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export class Checkpoints {
  constructor(folder) {
    this.folder = folder;
    mkdirSync(folder, { recursive: true });
  }

  #path(step) {
    return join(this.folder, `step-${step}.json`);
  }

  steps() {
    const found = readdirSync(this.folder).flatMap((name) => /^step-(\d+)\.json$/.exec(name)?.[1] ?? []);
    return found.map(Number).sort((a, b) => a - b);
  }

  read(step) {
    const { run, dictionary, state } = JSON.parse(readFileSync(this.#path(step), "utf8"));
    return { run: Buffer.from(run, "hex"), dictionary: Buffer.from(dictionary, "hex"), state };
  }

  /** What a Hello tells of them. */
  held() {
    const steps = this.steps();
    return steps.length ? { run: this.read(steps.at(-1)).run, steps } : {};
  }

  /** Whole or not at all. */
  write(step, { run, dictionary, state }) {
    const draft = join(this.folder, "draft");
    const [runHex, dictionaryHex] = [run, dictionary].map((bytes) => Buffer.from(bytes).toString("hex"));
    writeFileSync(draft, JSON.stringify({ run: runHex, dictionary: dictionaryHex, state }));
    renameSync(draft, this.#path(step));
    for (const old of this.steps().slice(0, -2)) rmSync(this.#path(old));
  }
}

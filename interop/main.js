// The commands of the client. Each prints JSON lines, one a check: { check, passed, ... }; the status is 1 where one failed.
//
//   node main.js vectors FOLDER                        vectors/*.json in both directions
//   node main.js refused SETTINGS                      a term that differs is refused by name
//   node main.js train SETTINGS [--crash-after STEP]   ten steps over a connection that is cut, from the newest checkpoint
//   node main.js ask SETTINGS                          an answer, streamed
import { parseArgs } from "node:util";
import { Checkpoints } from "./checkpoints.js";
import { Link } from "./link.js";
import { Vision } from "./model.js";
import { ProtocolError } from "./numbers.js";
import { Relay } from "./relay.js";
import { Refused, Session } from "./session.js";
import { writeText } from "./symbols.js";
import { FEATURES, TOKENS, pictureOf, readTask, sequence, terms } from "./task.js";
import { Training } from "./train.js";
import { checkVectors } from "./vectors.js";

function report(check, passed, facts = {}) {
  console.log(JSON.stringify({ check, passed, ...facts }));
  if (!passed) process.exitCode = 1;
}

function sessionOf(task, purpose, agreed, address = task.address) {
  return new Session(() => new Link(address, task.certificates), { purpose, terms: agreed, imageTokens: TOKENS });
}

const visionOf = ({ channels, up, rate }) => new Vision({ features: FEATURES, channels, up, rate });

function vectors(folder) {
  for (const [check, facts] of checkVectors(folder)) report(check, facts.checked > 0, facts);
}

async function refused(task) {
  const session = sessionOf(task, "TRAIN", { ...terms(task), "text.tokenizer": "0123456789abcdef" });
  const error = await session.open().catch((caught) => caught);
  const fields = error.differences?.map(({ field }) => field);
  const passed = error instanceof Refused && error.fault === "TERMS_DIFFER" && String(fields) === "text.tokenizer";
  report("a term that differs is refused", passed, { fault: error.fault, fields, reason: error.message });
}

async function train(task, crashAfter) {
  const relay = await Relay.open(task.address);
  const checkpoints = new Checkpoints(task.checkpoints);
  const session = sessionOf(task, "TRAIN", terms(task), relay.address);
  const held = checkpoints.held();
  const welcome = await session.open(held);
  const training = new Training(task, session, visionOf(task), checkpoints);
  if (held.run) {
    training.load();
    report("a checkpoint is claimed", !welcome.resumed && held.steps.includes(welcome.step), {
      begun: welcome.step,
      resumed: welcome.resumed,
      held: held.steps,
    });
  } else {
    await training.calibrate();
    report("calibration", checkpoints.steps().includes(0));
  }

  let answerBytes = 0;
  const cutting = async (step, micro, act) => {
    const before = session.resumptions;
    const between = !held.run && step === 3 && micro === 0;
    const unanswered = !held.run && step === 4 && micro === 1;
    if (between) relay.cut();
    const [answer] = await Promise.all([act(), unanswered && relay.loseAnswer(answerBytes)]);
    answerBytes = answer.down;
    if (between || unanswered) {
      const { resumed, step: told } = session.welcome;
      const passed = resumed && session.resumptions === before + 1 && answer.step === step && answer.micro === micro;
      const check = between ? "resumed after a cut between requests" : "resumed after an answer was lost";
      report(check, passed, { resumed, welcome_step: told, due: [step, micro] });
    }
    return answer;
  };

  while (training.step < task.train.steps) {
    const { step, loss, up, down } = await training.next(cutting);
    report(`step ${step}`, Number.isFinite(loss), { step, loss, up_bytes_an_image: up, down_bytes: down });
    if (step === crashAfter) process.exit();
    if (step % task.train.checkpoint_every) continue;
    report(`checkpoint of step ${step}`, (await training.save()) === step, { held: checkpoints.steps() });
  }
  await session.close();
  relay.close();
}

async function ask(task) {
  const vision = visionOf(task);
  const checkpoints = new Checkpoints(task.checkpoints);
  const step = checkpoints.steps().at(-1);
  const { run, state, dictionary } = checkpoints.read(step);
  vision.load(state);
  const session = sessionOf(task, "ASK", terms(task, `${run.toString("hex")}@${step}`));
  await session.open();
  const { tokenizer } = task;
  const { coded } = vision.encode([pictureOf(1)]);
  const text = writeText([sequence(tokenizer, 0)], { vocabulary: tokenizer.vocabulary, dictionary });
  const question = { text, streams: [coded], maxNewTokens: 8 };
  const over = { ...question, maxNewTokens: session.welcome.limits.newTokens + 1 };
  const error = await session.ask(over).next().catch((caught) => caught);
  report("what is over a limit is refused at home", error instanceof ProtocolError, { reason: error.message });
  const ids = [];
  for await (const [id] of session.ask(question)) ids.push(id);
  await session.close();
  const words = new Map([...tokenizer.ids].map(([word, id]) => [id, word]));
  report("an answer is streamed", ids.length > 1, {
    ids,
    answer: ids.map((id) => words.get(id)).join(" "),
    payload: Buffer.from(coded.payload).toString("hex"),
    shape: coded.shape,
  });
}

const { values, positionals } = parseArgs({ allowPositionals: true, options: { "crash-after": { type: "string" } } });
const [command, path] = positionals;
const commands = {
  vectors: () => vectors(path),
  refused: () => refused(readTask(path)),
  train: () => train(readTask(path), Number(values["crash-after"])),
  ask: () => ask(readTask(path)),
};
if (!Object.hasOwn(commands, command) || !path) {
  console.error("usage: node main.js vectors FOLDER | refused SETTINGS | train SETTINGS [--crash-after STEP] | ask SETTINGS");
  process.exit(2);
}
await commands[command]();

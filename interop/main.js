// The commands of the client. Each prints JSON lines, one a check, { check, passed, ... }; the status is 1 where one
// failed.
//
//   node main.js vectors FOLDER                        vectors/*.json in both directions
//   node main.js refused SETTINGS                      a term that differs is refused by name
//   node main.js train SETTINGS [--crash-after STEP]   ten steps, the connection cut, or on from a checkpoint;
//                               [--pause-in STEP]      prints { waiting } in the middle of a step, and reads a line
//   node main.js ask SETTINGS                          an answer, streamed
import { once } from "node:events";
import { parseArgs } from "node:util";
import { Checkpoints } from "./checkpoints.js";
import { Link } from "./link.js";
import { Vision } from "./model.js";
import { ProtocolError } from "./numbers.js";
import { Relay } from "./relay.js";
import { Refused, Session, SessionLost } from "./session.js";
import { writeText } from "./symbols.js";
import { FEATURES, TOKENS, pictureOf, readTask, sequence, terms } from "./task.js";
import { Training } from "./train.js";
import { checkVectors } from "./vectors.js";

function report(check, passed, facts = {}) {
  console.log(JSON.stringify({ check, passed, ...facts }));
  if (!passed) process.exitCode = 1;
}

function sessionOf(task, purpose, agreed, { address = task.address, held } = {}) {
  const dial = () => new Link(address, task.certificates);
  return new Session(dial, { purpose, terms: agreed, imageTokens: TOKENS, held });
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

async function train(task, { crashAfter, pauseIn }) {
  const relay = await Relay.open(task.address);
  const checkpoints = new Checkpoints(task.checkpoints);
  const session = sessionOf(task, "TRAIN", terms(task), { address: relay.address, held: () => checkpoints.held() });
  const anew = checkpoints.steps().length === 0;
  const training = new Training(task, session, visionOf(task), checkpoints);
  const goBack = (check) => {
    const { resumed, step } = session.welcome;
    report(check, !resumed && checkpoints.steps().includes(step), { from: step, held: checkpoints.steps() });
    training.load();
  };

  await session.open();
  if (anew) {
    await training.calibrate();
    report("calibration, and a checkpoint of step 0", checkpoints.steps().includes(0));
  } else goBack("a checkpoint is claimed");

  let answerBytes = 0;
  const cutting = async (step, micro, act) => {
    const before = session.resumptions;
    const between = anew && step === 3 && micro === 0;
    const unanswered = anew && step === 4 && micro === 1;
    if (between) relay.cut();
    const [answer] = await Promise.all([act(), unanswered && relay.loseAnswer(answerBytes)]);
    answerBytes = answer.down;
    if (between || unanswered) {
      const passed = session.resumptions === before + 1 && answer.step === step && answer.micro === micro;
      const what = between ? "a cut between requests" : "an answer was lost";
      report(`resumed after ${what}`, passed, { resumed: session.welcome.resumed, step, micro });
    }
    if (step === pauseIn && micro === 0) {
      console.log(JSON.stringify({ waiting: `half of step ${step}` }));
      await once(process.stdin, "data");
      process.stdin.destroy();
    }
    return answer;
  };

  while (training.step < task.train.steps) {
    try {
      const { step, loss, up, down, stopping } = await training.next(cutting);
      report(`step ${step}`, Number.isFinite(loss), { step, loss, up_bytes_an_image: up, down_bytes: down, stopping });
      if (step === crashAfter) process.exit();
      if (step % task.train.checkpoint_every && !stopping) continue;
      report(`checkpoint of step ${step}`, (await training.save()) === step, { held: checkpoints.steps() });
    } catch (error) {
      if (!(error instanceof SessionLost)) throw error;
      goBack("another server process has taken the place of ours");
    }
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
  const relay = await Relay.open(task.address);
  const agreed = terms(task, `${run.toString("hex")}@${step}`);
  const session = sessionOf(task, "ASK", agreed, { address: relay.address });
  await session.open();
  const { tokenizer } = task;
  const { coded } = vision.encode([pictureOf(1)]);
  const text = writeText([sequence(tokenizer, 0)], { vocabulary: tokenizer.vocabulary, dictionary });
  const question = { text, streams: [coded], maxNewTokens: 8 };
  const over = { ...question, maxNewTokens: session.welcome.limits.newTokens + 1 };
  const error = await session.ask(over).next().catch((caught) => caught);
  report("what is over a limit is refused at home", error instanceof ProtocolError, { reason: error.message });
  const answer = async () => {
    const ids = [];
    for await (const [id] of session.ask(question)) ids.push(id);
    return ids;
  };
  const ids = await answer();
  const [anew] = await Promise.all([answer(), relay.loseAnswer(1)]);
  report("an answer that was lost is asked for again", session.resumptions === 1 && String(anew) === String(ids));
  await session.close();
  relay.close();
  const words = new Map([...tokenizer.ids].map(([word, id]) => [id, word]));
  report("an answer is streamed", ids.length > 1, {
    ids,
    answer: ids.map((id) => words.get(id)).join(" "),
    payload: Buffer.from(coded.payload).toString("hex"),
    shape: coded.shape,
  });
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { "crash-after": { type: "string" }, "pause-in": { type: "string" } },
});
const [command, path] = positionals;
const disturbed = { crashAfter: Number(values["crash-after"]), pauseIn: Number(values["pause-in"]) };
const commands = {
  vectors: () => vectors(path),
  refused: () => refused(readTask(path)),
  train: () => train(readTask(path), disturbed),
  ask: () => ask(readTask(path)),
};
if (!Object.hasOwn(commands, command) || !path) {
  console.error("usage: node main.js vectors FOLDER\n       node main.js refused|train|ask SETTINGS");
  process.exit(2);
}
await commands[command]();

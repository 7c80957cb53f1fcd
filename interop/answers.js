// What the server may answer: docs/protocol.md, "Messages". A frame that is no such answer is refused.
import { readFrame } from "./frames.js";
import { refuseUnless } from "./numbers.js";

const ID_BYTES = 16;

const RULES = {
  welcome({ session, run, step, resumed, limits }) {
    refuseUnless(session.length === ID_BYTES, `Welcome: a session of ${session.length} bytes`);
    refuseUnless(run.length === ID_BYTES, `Welcome: a run of ${run.length} bytes`);
    refuseUnless(limits, "Welcome: no limits");
    refuseUnless(!resumed || step === 0, "Welcome: a step of a session that goes on");
  },
  backward({ step, micro, loss, streams }, { forward }) {
    refuseUnless(step === forward.step && micro === forward.micro, `Backward: of step ${step}, micro-batch ${micro}`);
    refuseUnless(Number.isFinite(loss), `Backward: a loss of ${loss}`);
    const due = forward.streams.map(({ stream, shape }) => [stream, ...shape]);
    const shapes = streams.map(({ stream, shape }) => [stream, ...shape]);
    refuseUnless(String(shapes) === String(due), `Backward: streams and shapes ${shapes.join("; ")}`);
  },
  tokens({ ids, last }, { ask }) {
    const { sequences } = ask.text;
    refuseUnless(ids.length === sequences || (last && !ids.length), `Tokens: ${ids.length} of ${sequences} sequences`);
  },
};

/** A frame -> the answer of this kind to a request, or { refuse } from a server that refuses. */
export function readAnswer(frame, kind, request) {
  const message = readFrame(frame);
  if (message.refuse) return message;
  refuseUnless(message[kind], `${Object.keys(message)[0]} where ${kind} is due`);
  RULES[kind]?.(message[kind], request);
  return message;
}

// Answers that are being written: each goes on when another chat is opened, and is kept as it grows.
//
// A running answer is {message, progress, controller, saved}. `progress` is what is said before there is text:
// {text, done, total}. Who reloads the page, or whose server restarts, finds the part that was written, and the rest
// is asked for: the model goes on from the last token.

import {addMessage, changeChat, openChat, pathTo, saveMessage, tellApart} from "./chats.js";
import {emit, on, tellTabs} from "./events.js";
import {serverId} from "./pictures.js";
import {Refused, Unreachable, ask} from "./server.js";
import {state} from "./state.js";

const SAVE_EVERY = 400; // milliseconds
const TRY_AGAIN = [1000, 2000, 4000, 8000]; // milliseconds after which the server is asked again
const SILENCE = 90_000; // milliseconds after which another tab that was writing is taken to be gone
const FRESH = 10 * 60_000; // an answer interrupted so long ago at most goes on by itself
const REMOVED = "[picture no longer available]";

/** The server has ended the answer without saying why. */
class EndedEarly extends Error {}

const running = new Map(); // by chat

export const runningIn = (chat) => running.get(chat) ?? null;
export const isAnswering = (chat) => running.has(chat) || Date.now() - (elsewhere.get(chat) ?? 0) < SILENCE;

// Chats that another tab is answering, with the time it last said so.
const elsewhere = new Map();
on("tab:writing", ({message, progress}) => {
  elsewhere.set(message.chat, Date.now());
  emit("answer", {message, progress});
});
on("tab:written", ({message}) => {
  elsewhere.delete(message.chat);
  emit("answer", {message, progress: null, ended: true});
});
on("tab:who-writes", ({chat}) => {
  const answer = running.get(chat);
  if (answer) tellTabs("writing", {message: answer.message, progress: answer.progress});
});
on("tab:stop", ({chat}) => stopAnswer(chat));
on("tab:deleted", ({id}) => stopAnswer(id));
on("deleted", ({id}) => stopAnswer(id));

/** Answers the question that a user's message asks, in a new branch below it. */
export async function answerTo(question, settings) {
  const message = await addMessage(question.chat, {parent: question.id, role: "assistant", state: "writing"});
  run(message, settings);
}

/** Goes on with an answer that was cut off, stopped or interrupted. */
export async function continueAnswer(message, settings) {
  await run(Object.assign(message, {state: "writing", error: null}), settings);
}

export function stopAnswer(chat) {
  const answer = running.get(chat);
  if (answer) answer.controller.abort();
  else if (elsewhere.has(chat)) tellTabs("stop", {chat});
}

/** Takes up an answer that a reload or a crash broke off, unless another tab is writing it. */
export async function takeUp(message, settings) {
  if (message.state !== "writing" || running.has(message.chat)) return;
  tellTabs("who-writes", {chat: message.chat});
  await new Promise((resolve) => setTimeout(resolve, 400));
  if (isAnswering(message.chat)) return;
  const now = (await openChat(message.chat))?.messages.get(message.id);
  if (now?.state !== "writing" || running.has(message.chat)) return;
  if (Date.now() - (now.saved ?? now.created) < FRESH) await continueAnswer(now, settings);
  else await end({message: now}, "interrupted");
}

async function run(message, settings) {
  if (running.has(message.chat)) return;
  const answer = {message, progress: {text: "Asking"}, controller: new AbortController(), saved: 0};
  running.set(message.chat, answer);
  emit("running", {chat: message.chat});
  await tell(answer);
  try {
    await untilAnswered(answer, settings);
  } catch (error) {
    if (answer.controller.signal.aborted) await end(answer, "stopped");
    else if (error instanceof EndedEarly) await end(answer, "interrupted");
    else await end(answer, "failed", error instanceof Refused ? error.message : `The page failed: ${error.message}`);
  } finally {
    forget(answer);
    emit("running", {chat: message.chat});
  }
}

/** The next answer in the same chat may have begun already. */
function forget(answer) {
  if (running.get(answer.message.chat) === answer) running.delete(answer.message.chat);
}

/** Asks until the server has answered; one that cannot be reached is asked again, for what is still to come. */
async function untilAnswered(answer, settings) {
  const {signal} = answer.controller;
  for (let failures = 0, uploadAgain = []; ;) {
    try {
      const before = answer.message.text;
      uploadAgain = await once(answer, settings, uploadAgain);
      if (!uploadAgain.length) return;
      if (answer.message.text !== before) failures = 0;
      if (failures++ > 3) throw new Refused("The server does not keep the pictures of this chat.");
    } catch (error) {
      if (!(error instanceof Unreachable) || signal.aborted) throw error;
      emit("unreachable");
      await tell(answer, {text: "The server cannot be reached; trying again"});
      await pause(TRY_AGAIN[Math.min(failures++, TRY_AGAIN.length - 1)], signal);
    }
  }
}

const pause = (duration, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, duration);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(signal.reason);
      },
      {once: true},
    );
  });

/** Asks once; returns the pictures that the server misses, by their ids here. */
async function once(answer, settings, uploadAgain) {
  const {
    message,
    controller: {signal},
  } = answer;
  const chat = await openChat(message.chat);
  if (!chat) throw signal.aborted ? signal.reason : new Refused("The chat is deleted.");
  const path = pathTo(chat, message.parent);
  const ids = new Map(); // the server's -> ours
  const messages = await toMessages(path, ids, uploadAgain);
  const written = message.text;
  if (written) messages.push({role: "assistant", content: [{type: "text", text: written}]});
  const question = {
    messages,
    system: settings.system,
    continue: Boolean(written),
    sampling: settings.sampling,
    pan_and_scan: Boolean(settings.pan_and_scan),
  };
  for await (const event of ask(question, state.info.answer_fn, signal)) {
    emit("reached");
    if (event.type === "queued") await tell(answer, {text: placeInLine(event)});
    else if (event.type === "started")
      await tell(answer, {text: state.info.ready ? "Starting" : "Waiting for the model"});
    else if (event.type === "reading") await tell(answer, event);
    else if (event.type === "answer") {
      message.text = written + event.text;
      await tell(answer, null);
    } else if (event.type === "missing") return event.pictures.map((id) => ids.get(id));
    else if (event.type === "error") throw new Refused(event.message);
    else if (event.type === "done") {
      message.text = written + event.text;
      message.facts = factsOf(event, written ? message.facts : null);
      await end(answer, event.finish === "stop" ? "done" : event.finish);
      return [];
    }
  }
  throw new EndedEarly();
}

const placeInLine = ({rank, size}) => `Waiting in line: ${rank + 1} of ${Math.max(size, rank + 1)}`;

/** What the model reads: questions that were not answered are joined, refused ones are left out. */
async function toMessages(path, ids, uploadAgain) {
  const turns = [];
  for (const message of path) {
    if (message.role === "assistant" && !message.text) {
      if (message.state === "failed" && turns.at(-1)?.role === "user") turns.pop();
      continue;
    }
    const content = [];
    for (const picture of message.pictures) {
      const id = await serverId(picture, uploadAgain.includes(picture));
      if (id) ids.set(id, picture);
      content.push(id ? {type: "picture", id} : {type: "text", text: REMOVED});
    }
    if (message.text) content.push({type: "text", text: message.text});
    if (turns.at(-1)?.role === message.role) turns.at(-1).content.push(...content);
    else turns.push({role: message.role, content});
  }
  return turns;
}

/** The statistics of an answer; those of the parts of a continued one are added up. */
function factsOf(event, before) {
  const {type: _, text: __, finish: ___, ...facts} = event;
  return before
    ? {...facts, new_tokens: before.new_tokens + facts.new_tokens, prompt_tokens: before.prompt_tokens}
    : facts;
}

async function tell(answer, progress = answer.progress) {
  answer.progress = progress;
  const {message} = answer;
  emit("answer", {message, progress});
  tellTabs("writing", {message, progress});
  if (Date.now() - answer.saved < SAVE_EVERY) return;
  answer.saved = message.saved = Date.now();
  if (!(await saveMessage(message))) answer.controller.abort(); // the chat has been deleted
}

async function end(answer, finish, error = null) {
  const {message} = answer;
  Object.assign(message, {state: finish, error, saved: Date.now()});
  const kept = await saveMessage(message);
  forget(answer);
  if (kept && message.facts) {
    const {prompt_tokens, new_tokens, picture_tokens} = message.facts;
    await changeChat(message.chat, (chat) => {
      chat.context = {tokens: prompt_tokens + new_tokens, pictures: picture_tokens};
    });
  }
  if (kept && finish === "done") await tellApart(message.chat, message.text);
  emit("answer", {message, progress: null, ended: true});
  tellTabs("written", {message});
}

// What is written shall not be lost when the page is left.
addEventListener("pagehide", () => {
  for (const {message} of running.values()) saveMessage(Object.assign(message, {saved: Date.now()}));
});

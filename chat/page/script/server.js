// What the page asks of its server; all of it is on the page's own address.

import {randomId} from "./dom.js";

/** The server cannot be reached, or has ended in mid-answer. */
export class Unreachable extends Error {}

/** The server refuses, in a sentence for the user. */
export class Refused extends Error {}

const GATEWAYS = [502, 504]; // a proxy whose server is away

async function reach(path, options) {
  try {
    const response = await fetch(path, {credentials: "same-origin", ...options});
    if (GATEWAYS.includes(response.status)) throw new Unreachable("The server cannot be reached.");
    return response;
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new Unreachable("The server cannot be reached.", {cause: error});
  }
}

async function sentence(response) {
  const text = await response.text();
  try {
    const {error, detail} = JSON.parse(text);
    if (typeof (error ?? detail) === "string") return error ?? detail;
  } catch {
    /* no JSON: then in our own words */
  }
  return `The server refused this (${response.status}).`;
}

export async function fetchInfo() {
  const response = await reach("info", {cache: "no-store"});
  if (!response.ok) throw new Unreachable(await sentence(response));
  return response.json();
}

/** Uploads a picture; returns {id, width, height}. */
export async function uploadPicture(blob, signal) {
  const type = blob.type || "application/octet-stream";
  const response = await reach("pictures", {method: "POST", body: blob, headers: {"Content-Type": type}, signal});
  if (!response.ok) throw new Refused(await sentence(response));
  return response.json();
}

/** The preview of an uploaded picture, as a blob that every browser draws. */
export async function fetchPreview(id) {
  const response = await reach(`pictures/${encodeURIComponent(id)}`);
  if (!response.ok) throw new Refused(await sentence(response));
  return response.blob();
}

/** Asks a question through gradio's queue; yields {type: "queued", rank, size} and the events of the server. */
export async function* ask(question, endpoint, signal) {
  const session = randomId();
  const body = JSON.stringify({data: [question], fn_index: endpoint, session_hash: session});
  const headers = {"Content-Type": "application/json"};
  const joined = await reach("gradio_api/queue/join", {method: "POST", headers, body, signal});
  if (!joined.ok) throw new Refused(await sentence(joined));
  const {event_id} = await joined.json();
  const cancel = () => {
    const body = JSON.stringify({session_hash: session, fn_index: endpoint, event_id});
    fetch("gradio_api/cancel", {method: "POST", headers, body, keepalive: true}).catch(() => {});
  };
  signal.addEventListener("abort", cancel);
  try {
    const stream = await reach(`gradio_api/queue/data?session_hash=${session}`, {signal});
    if (!stream.ok) throw new Unreachable(await sentence(stream));
    yield* follow(stream.body);
  } catch (error) {
    if (signal.aborted || error instanceof Unreachable || error instanceof Refused) throw error;
    throw new Unreachable("The connection to the server broke off.", {cause: error});
  } finally {
    signal.removeEventListener("abort", cancel);
  }
}

async function* follow(stream) {
  let output = null;
  for await (const message of messages(stream)) {
    if (message.msg === "estimation") yield {type: "queued", rank: message.rank ?? 0, size: message.queue_size};
    else if (message.msg === "process_starts") yield {type: "started"};
    else if (message.msg === "process_generating" && message.success) {
      const [value] = message.output.data;
      output = output === null ? value : value.reduce(patched, output);
      yield output;
    } else if (message.msg === "process_completed") {
      if (!message.success) throw new Refused(message.output?.error || "The server failed at this question.");
      return;
    } else if (message.msg === "unexpected_error") throw new Unreachable(message.message || "The server failed.");
  }
  throw new Unreachable("The connection to the server broke off.");
}

/** The JSON of a stream of server-sent events. */
async function* messages(stream) {
  const decoder = new TextDecoder();
  let rest = "";
  const reader = stream.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (rest + decoder.decode(part.value, {stream: true})).split(/\r?\n\r?\n/);
      rest = events.pop();
      for (const event of events) {
        const data = event
          .split(/\r?\n/)
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5));
        if (data.length) yield JSON.parse(data.join("\n"));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** A value with one of gradio's edits made: [action, path, new value]. */
function patched(value, [action, path, change]) {
  if (!path.length) return action === "append" ? value + change : change;
  const [key, ...rest] = path;
  const copy = Array.isArray(value) ? [...value] : {...value};
  if (rest.length) copy[key] = patched(copy[key], [action, rest, change]);
  else if (action === "append") copy[key] += change;
  else if (action === "delete" && Array.isArray(copy)) copy.splice(key, 1);
  else if (action === "delete") delete copy[key];
  else if (action === "add" && Array.isArray(copy)) copy.splice(key, 0, change);
  else copy[key] = change;
  return copy;
}

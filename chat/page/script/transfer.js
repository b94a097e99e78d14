// Chats to a file and back: JSON, with the pictures in it.

import {ROOT, listChats, openChat, putBack} from "./chats.js";
import {ofChat, result, transact} from "./database.js";
import {download, randomId} from "./dom.js";

const FORMAT = "gemma3-int4-chats",
  VERSION = 1;
const STATES = ["done", "length", "stopped", "interrupted", "failed"];

export async function exportChats(ids) {
  const chats = [];
  for (const id of ids ?? (await listChats()).map((chat) => chat.id)) {
    const {messages, ...chat} = await openChat(id);
    const pictures = await transact(["pictures"], "readonly", (stores) => ofChat(stores.pictures, id));
    chats.push({
      ...chat,
      messages: [...messages.values()].map((message) => ({
        ...message,
        state: message.state === "writing" ? "interrupted" : message.state,
      })),
      pictures: await Promise.all(
        pictures.map(async ({id, name, blob, width, height, thumb, view}) => ({
          id,
          name,
          width,
          height,
          blob: await toText(blob),
          thumb: await toText(thumb),
          view: await toText(view),
        })),
      ),
    });
  }
  const file = new Blob([JSON.stringify({format: FORMAT, version: VERSION, chats})], {type: "application/json"});
  const name = chats.length === 1 ? chats[0].title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") : "chats";
  download(`${name || "chat"}.json`, file);
}

/** Adds the chats of a file to those that are here; returns how many. Throws Error in a sentence. */
export async function importChats(file) {
  let data;
  try {
    data = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not a file of exported chats: it is not JSON.`);
  }
  if (data?.format !== FORMAT || !Array.isArray(data.chats))
    throw new Error(`${file.name} is not a file of exported chats.`);
  if (data.version !== VERSION)
    throw new Error(`${file.name} has version ${data.version} of the format; this page reads version ${VERSION}.`);
  const known = await transact(["chats"], "readonly", (stores) => result(stores.chats.getAllKeys()));
  const taken = new Set(known);
  for (const chat of data.chats) {
    const parts = await toParts(chat, taken);
    taken.add(parts.chats[0].id);
    await putBack(parts);
  }
  return data.chats.length;
}

/** A chat of a file as the database keeps it: only known fields, of known kinds, under ids of their own. */
async function toParts(from, known) {
  const ids = new Map([[ROOT, ROOT]]);
  const own = (id) => {
    if (!ids.has(id)) ids.set(id, randomId());
    return ids.get(id);
  };
  const text = (value) => (typeof value === "string" ? value : "");
  const list = (value) => (Array.isArray(value) ? value : []);
  const time = (value) => (Number.isFinite(value) && Math.abs(value) < 8e15 ? value : Date.now());
  const chat =
    typeof from.id === "string" && /^[0-9a-f]{24}$/.test(from.id) && !known.has(from.id) ? from.id : randomId();
  const all = list(from.pictures).map((picture) => ({
    id: own(picture.id),
    chat,
    name: text(picture.name),
    server: null,
    width: Number(picture.width) || 0,
    height: Number(picture.height) || 0,
    blob: toBlob(picture.blob),
    thumb: toBlob(picture.thumb),
    view: toBlob(picture.view),
  }));
  const pictures = all.filter((picture) => picture.blob);
  const kept = new Set(pictures.map((picture) => picture.id));
  const messages = list(from.messages).map((message) => ({
    id: own(message.id),
    chat,
    parent: own(message.parent),
    role: message.role === "user" ? "user" : "assistant",
    text: text(message.text),
    pictures: list(message.pictures)
      .map(own)
      .filter((id) => kept.has(id)),
    created: time(message.created),
    state: STATES.includes(message.state) ? message.state : "done",
    error: text(message.error) || null,
    facts: numbers(message.facts),
  }));
  const chosen = Object.fromEntries(
    Object.entries(from.chosen ?? {}).map(([parent, child]) => [own(parent), own(child)]),
  );
  const fields = {
    id: chat,
    title: text(from.title) || "Imported chat",
    named: Boolean(from.named),
    created: time(from.created),
    updated: time(from.updated),
    chosen,
    settings: settingsOf(from.settings),
    picture: kept.has(own(from.picture)) ? own(from.picture) : null,
    context: numbers(from.context),
  };
  return {chats: [fields], messages, pictures, drafts: []};
}

const numbers = (value) =>
  value && typeof value === "object"
    ? Object.fromEntries(Object.entries(value).filter(([, each]) => Number.isFinite(each)))
    : null;

function settingsOf(from) {
  const sampling = {
    ...numbers(from?.sampling),
    ...(typeof from?.sampling?.greedy === "boolean" && {greedy: from.sampling.greedy}),
  };
  return {
    system: typeof from?.system === "string" ? from.system : "",
    sampling,
    pan_and_scan: from?.pan_and_scan === true,
  };
}

const toText = (blob) =>
  blob &&
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

/** A picture's data address as a blob; of the types only that it is a picture is taken over. */
function toBlob(address) {
  const parts = /^data:(image\/[\w.+-]+|application\/octet-stream)?;base64,([A-Za-z0-9+/=]*)$/.exec(address ?? "");
  if (!parts) return null;
  const letters = atob(parts[2]);
  return new Blob([Uint8Array.from(letters, (letter) => letter.charCodeAt(0))], {type: parts[1] ?? ""});
}

// Chats and their messages. A chat is a tree: a message names its parent, and the chat says which child is shown.
//
// chat     {id, title, named, created, updated, chosen: {parent: child}, settings, picture, context}
// message  {id, chat, parent, role, text, pictures: [id], created, state, error, facts}
// state    "done", "writing", "length" (cut off at the limit), "stopped", "interrupted" or "failed"

import {ofChat, read, readAll, result, transact, write} from "./database.js";
import {randomId} from "./dom.js";
import {emit, tellTabs} from "./events.js";

export const ROOT = "root";
const TITLE_LENGTH = 60;
const CHAT_STORES = ["chats", "messages", "pictures", "drafts"];

function tell(id) {
  emit("chat", {id});
  tellTabs("chat", {id});
}

export const listChats = async () => (await readAll("chats")).sort((a, b) => b.updated - a.updated);

/** A chat with its messages as a map, or null. */
export const openChat = (id) =>
  transact(["chats", "messages"], "readonly", async ({chats, messages}) => {
    const chat = await result(chats.get(id));
    if (!chat) return null;
    const all = (await ofChat(messages, id)).sort((a, b) => a.created - b.created);
    return {...chat, messages: new Map(all.map((message) => [message.id, message]))};
  });

/** The children of a message: the branches there are at this place. */
export const childrenOf = (chat, parent) => [...chat.messages.values()].filter((message) => message.parent === parent);

/** The messages that are shown, from the first to the last. */
export function pathOf(chat) {
  const path = [];
  for (let parent = ROOT; ;) {
    const children = childrenOf(chat, parent);
    const next = children.find((child) => child.id === chat.chosen[parent]) ?? children.at(-1);
    if (!next) return path;
    path.push(next);
    parent = next.id;
  }
}

/** The messages from the first to the given one. */
export function pathTo(chat, id) {
  const path = [];
  for (let message = chat.messages.get(id); message; message = chat.messages.get(message.parent)) path.unshift(message);
  return path;
}

/** Adds a message, and its chat where it is the first; the message's branch is shown from now on. */
export async function addMessage(id, fields, settings) {
  const message = {id: randomId(), chat: id, pictures: [], text: "", state: "done", created: Date.now(), ...fields};
  await transact(["chats", "messages"], "readwrite", async ({chats, messages}) => {
    let chat = await result(chats.get(id));
    if (!chat && message.parent !== ROOT) throw new Error("the chat is deleted");
    const now = Date.now();
    chat ??= {id, title: "", named: false, created: now, chosen: {}, settings, picture: null, context: null};
    chat.title ||= titleOf(message, await result(chats.getAll()));
    chat.picture ??= message.pictures[0] ?? null;
    chat.chosen[message.parent] = message.id;
    chat.updated = now;
    await result(chats.put(chat));
    await result(messages.put(message));
  });
  tell(id);
  return message;
}

/** Saves a message that is there, unless its chat has been deleted; returns whether it was saved. */
export const saveMessage = (message) =>
  transact(["chats", "messages"], "readwrite", async ({chats, messages}) => {
    if (!(await result(chats.get(message.chat)))) return false;
    await result(messages.put(message));
    return true;
  });

/** Changes a chat as it is stored now; other tabs may have changed it too. */
export async function changeChat(id, change) {
  await transact(["chats"], "readwrite", async ({chats}) => {
    const chat = await result(chats.get(id));
    if (!chat) return;
    change(chat);
    await result(chats.put(chat));
  });
  tell(id);
}

export const showBranch = (message) =>
  changeChat(message.chat, (chat) => {
    chat.chosen[message.parent] = message.id;
  });

export const renameChat = (id, title) =>
  changeChat(id, (chat) => Object.assign(chat, {title: title.trim() || chat.title, named: true}));

/** Removes a chat with everything that belongs to it; returns what brings it back. */
export async function deleteChat(id) {
  const removed = await transact(CHAT_STORES, "readwrite", async ({chats, messages, pictures, drafts}) => {
    const parts = {
      chats: [await result(chats.get(id))],
      messages: await ofChat(messages, id),
      pictures: await ofChat(pictures, id),
      drafts: [await result(drafts.get(id))].filter(Boolean),
    };
    await Promise.all([
      result(chats.delete(id)),
      result(drafts.delete(id)),
      ...parts.messages.map((message) => result(messages.delete(message.id))),
      ...parts.pictures.map((picture) => result(pictures.delete(picture.id))),
    ]);
    return parts;
  });
  emit("deleted", {id});
  tellTabs("deleted", {id});
  tell(id);
  return removed;
}

/** Puts whole chats into the database: a deletion undone, or a file imported. */
export async function putBack(parts) {
  await transact(CHAT_STORES, "readwrite", async (stores) => {
    for (const name of CHAT_STORES) {
      for (const value of parts[name]) await result(stores[name].put(value));
    }
  });
  tell(parts.chats[0]?.id);
}

/** A title from the first question, different from every other chat's. */
function titleOf(message, chats) {
  const words = message.text.trim().replace(/\s+/g, " ");
  const title = shorten(words || (message.pictures.length > 1 ? "Pictures" : "A picture"), TITLE_LENGTH);
  return distinct(title, chats);
}

function distinct(title, chats) {
  const taken = new Set(chats.map((chat) => chat.title));
  let name = title;
  for (let count = 2; taken.has(name); count++) name = `${title} (${count})`;
  return name;
}

/** Where two chats begin with the same question, the later one's title tells how its answer begins. */
export async function tellApart(id, answer) {
  const {title, named} = (await read("chats", id)) ?? {named: true};
  const numbered = /^(.*) \(\d+\)$/.exec(title);
  const words = answer
    .replace(/[*_`#$>\\]+/g, "")
    .trim()
    .replace(/\s+/g, " ");
  if (named || !numbered || !words) return;
  const others = (await readAll("chats")).filter((chat) => chat.id !== id);
  if (!others.some((chat) => chat.title.startsWith(numbered[1]))) return;
  await changeChat(id, (chat) => {
    chat.title = distinct(`${numbered[1]} · ${shorten(words, 30)}`, others);
  });
}

const shorten = (text, length) => (text.length > length ? `${text.slice(0, length - 1).trimEnd()}…` : text);

/** Drafts of chats that have no message yet, the latest first. */
export const draftsOfNewChats = () =>
  transact(["chats", "drafts"], "readonly", async ({chats, drafts}) => {
    const [known, all] = [new Set(await result(chats.getAllKeys())), await result(drafts.getAll())];
    return all.filter((draft) => !known.has(draft.chat)).sort((a, b) => b.changed - a.changed);
  });

/** The chats in which a text stands, as a set of ids; titles count. */
export async function searchChats(text) {
  const wanted = text.toLocaleLowerCase();
  const holds = (value) => value.toLocaleLowerCase().includes(wanted);
  const [chats, messages] = [await readAll("chats"), await readAll("messages")];
  return new Set([
    ...chats.filter((chat) => holds(chat.title)).map((chat) => chat.id),
    ...messages.filter((message) => holds(message.text)).map((message) => message.chat),
  ]);
}

export const readDraft = async (chat) => (await read("drafts", chat)) ?? {chat, text: "", pictures: []};

/** Saves what is typed and attached; an empty draft is none. */
export const saveDraft = (draft) =>
  draft.text || draft.pictures.length
    ? write("drafts", {...draft, changed: Date.now()})
    : transact(["drafts"], "readwrite", ({drafts}) => result(drafts.delete(draft.chat)));

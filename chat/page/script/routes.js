// Addresses: #/chat/ID is a chat, #/ a new one.

import {draftsOfNewChats} from "./chats.js";
import {randomId} from "./dom.js";
import {on, tellTabs} from "./events.js";
import {state} from "./state.js";

const NEW = "new-chat"; // in this tab's session storage: the id that the new chat will have

export const chatAddress = (id) => `#/chat/${id}`;
export const goTo = (id) => {
  location.hash = chatAddress(id);
};

/** The id in the address, or null for a new chat. */
export const idInAddress = () => /^#\/chat\/([0-9a-f]{24})$/.exec(location.hash)?.[1] ?? null;

/** The id of this tab's new chat; its draft is kept under it. */
export function newId() {
  const id = sessionStorage.getItem(NEW) ?? randomId();
  sessionStorage.setItem(NEW, id);
  return id;
}

// A tab that was closed with a draft in its new chat leaves it to the next one, unless another tab has it.
const inOtherTabs = new Set();
on("tab:which-chat", () => tellTabs("this-chat", {chat: state.id}));
on("tab:this-chat", ({chat}) => inOtherTabs.add(chat));

export async function adoptDraft() {
  if (sessionStorage.getItem(NEW)) return;
  const drafts = await draftsOfNewChats();
  if (!drafts.length) return;
  tellTabs("which-chat");
  await new Promise((resolve) => setTimeout(resolve, 150));
  const left = drafts.find((draft) => !inOtherTabs.has(draft.chat));
  if (left) sessionStorage.setItem(NEW, left.chat);
}

/** Says that the new chat has become one, with an address of its own. */
export function nameNewChat(id) {
  if (sessionStorage.getItem(NEW) === id) sessionStorage.removeItem(NEW);
  if (idInAddress() !== id) history.pushState(null, "", chatAddress(id));
}

export function newChat() {
  if (location.hash === "#/") dispatchEvent(new Event("hashchange"));
  else location.hash = "#/";
}

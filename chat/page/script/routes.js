// Addresses: #/chat/ID is a chat, #/ a new one.

import {randomId} from "./dom.js";

const NEW = "new-chat";  // in this tab's session storage: the id that the new chat will have

export const chatAddress = (id) => `#/chat/${id}`;
export const goTo = (id) => { location.hash = chatAddress(id); };

/** The id in the address, or null for a new chat. */
export const idInAddress = () => /^#\/chat\/([0-9a-f]{24})$/.exec(location.hash)?.[1] ?? null;

/** The id of this tab's new chat; its draft is kept under it. */
export function newId() {
  const id = sessionStorage.getItem(NEW) ?? randomId();
  sessionStorage.setItem(NEW, id);
  return id;
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

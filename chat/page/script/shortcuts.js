// What the keyboard does, and the list of it.

import {isAnswering, stopAnswer} from "./answers.js";
import {openDialog} from "./dialogs.js";
import {byId, copyText, h} from "./dom.js";
import {emit, on} from "./events.js";
import {announce} from "./notices.js";
import {newChat} from "./routes.js";
import {openSettings} from "./settings.js";
import {state} from "./state.js";
import {editLast, lastAnswer, scrollToEnd} from "./thread.js";

const isMac = /Mac|iPhone|iPad/.test(navigator.platform);
const CONTROL = isMac ? "⌘" : "Ctrl";

// [keys as they are listed, what they do]
const LISTED = [
  ["Enter", "Send the message (with a screen keyboard: a new line)"],
  ["Shift+Enter", "A new line"],
  [`${CONTROL}+Enter`, "Send, from any keyboard"],
  ["↑ in an empty box", "Edit the last question"],
  ["Escape", "Stop the answer; close what is open"],
  [`${CONTROL}+Shift+O`, "New chat"],
  [`${CONTROL}+K`, "Search the chats"],
  [`${CONTROL}+B`, "Show or hide the list of chats"],
  [`${CONTROL}+Shift+E`, "To the end of the chat"],
  [`${CONTROL}+Shift+Y`, "Copy the last answer"],
  [`${CONTROL}+,`, "Settings"],
  [`${CONTROL}+/`, "This list"],
  ["+  −  0 in a picture", "Larger, smaller, fitted"],
];

const ACTIONS = {
  "shift+o": newChat,
  k: () => emit("search"),
  b: () => emit("toggle-sidebar"),
  "shift+e": scrollToEnd,
  "shift+y": async () => {
    const text = lastAnswer();
    if (!text) return;
    await copyText(text);
    announce("Copied");
  },
  ",": openSettings,
  "/": openShortcuts,
};

export function startShortcuts() {
  on("edit-last", editLast);
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && isAnswering(state.id) && !document.querySelector("[popover]:popover-open")) {
      stopAnswer(state.id);
      byId("message").focus({preventScroll: true});
      return;
    }
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const isShifted = event.shiftKey && /^[a-z]$/i.test(event.key); // a sign itself may need Shift
    const action = ACTIONS[`${isShifted ? "shift+" : ""}${event.key.toLowerCase()}`];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

export function openShortcuts() {
  const rows = LISTED.map(([keys, does]) =>
    h("tr", {}, h("th", {scope: "row"}, h("kbd", {}, keys)), h("td", {}, does)),
  );
  openDialog("Keyboard shortcuts", h("div", {}, h("table", {class: "shortcuts"}, h("tbody", {}, rows))));
}

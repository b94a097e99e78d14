// Short words to the user: a toast that is seen, a line that a screen reader hears.

import {byId, h} from "./dom.js";

/** Has a screen reader say something once. */
export function announce(text) {
  byId("announcer").textContent = "";
  setTimeout(() => {
    byId("announcer").textContent = text;
  }, 50);
}

/** Shows a line for some seconds, with an action such as an undo; returns what takes it away. */
export function toast(text, {action, onaction, seconds = 6} = {}) {
  const close = () => {
    clearTimeout(timer);
    box.remove();
  };
  const act = () => {
    close();
    onaction();
  };
  const box = h(
    "div",
    {class: "toast"},
    h("span", {}, text),
    action && h("button", {type: "button", class: "button small", onclick: act}, action),
  );
  const timer = setTimeout(close, seconds * 1000);
  byId("toasts").append(box);
  announce(text);
  return close;
}

/** The line above the chat about something that lasts; an empty text takes it away. */
export function banner(text) {
  byId("banner").textContent = text;
  byId("banner").hidden = !text;
}

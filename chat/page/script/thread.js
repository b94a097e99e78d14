// The open chat on the page, kept as the database has it.

import {isAnswering, runningIn, takeUp} from "./answers.js";
import {openChat, pathOf} from "./chats.js";
import {byId} from "./dom.js";
import {emit, on} from "./events.js";
import {drawMessage} from "./message.js";
import {announce} from "./notices.js";
import {startScrolling} from "./scrolling.js";
import {state} from "./state.js";

let views = new Map(); // by message, in the order of the chat
let scrolling = null;

export function startThread() {
  scrolling = startScrolling();
  for (const type of ["chat", "tab:chat"])
    on(type, ({id}) => {
      if (id === state.id) refresh();
    });
  on("editing", scrolling.hold);
  on("edited", scrolling.toEnd);
  on("running", ({chat}) => {
    if (chat === state.id) markAnswering();
  });
  on("answer", ({message, progress, ended}) => {
    if (message.chat !== state.id || !state.chat) return;
    state.chat.messages.set(message.id, message);
    const view = views.get(message.id);
    if (!view) return void refresh();
    view.update(message, progress);
    markAnswering();
    if (ended)
      announce(
        message.error ??
          `${message.state === "done" ? "" : "Incomplete answer. "}${view.element.querySelector(".answer").innerText}`,
      );
    else if (progress?.text && !message.text && !progress.total) announce(progress.text);
  });
}

/** Shows a chat, or the start where it has no message yet. */
export async function showChat(id) {
  state.id = id;
  views = new Map();
  byId("thread").replaceChildren();
  await refresh();
  if (state.id !== id) return;
  if (state.chat) scrolling.toEnd();
  else scrolling.toTop();
  const last = state.chat && pathOf(state.chat).at(-1);
  if (last) takeUp(last, state.settings);
}

export const scrollToEnd = () => scrolling.toEnd();

/** Draws what has changed since the chat was last drawn. */
async function refresh() {
  const {id} = state;
  const chat = await openChat(id);
  if (state.id !== id) return;
  const answer = runningIn(id);
  if (chat && answer) chat.messages.set(answer.message.id, answer.message);
  const had = views.size;
  state.chat = chat;
  const path = chat ? pathOf(chat) : [];
  const kept = new Map();
  for (const message of path) {
    const view = views.get(message.id) ?? drawMessage(message);
    view.update(message, answer?.message.id === message.id ? answer.progress : null);
    kept.set(message.id, view);
  }
  arrange([...kept.values()].map((view) => view.element));
  views = kept;
  markAnswering();
  if (had && path.at(-1)?.state === "writing" && path.length > had) scrolling.toEnd();
  emit("shown", {empty: !path.length});
}

/** Puts the elements in order and touches none that is in place: a half-made edit stands for its message. */
function arrange(elements) {
  const thread = byId("thread");
  for (const child of [...thread.children]) if (!elements.includes(child) && !child.matches(".editor")) child.remove();
  for (const editor of thread.querySelectorAll(".editor"))
    if (elements.every((element) => element.dataset.id !== editor.dataset.id)) editor.remove();
  let place = thread.firstElementChild;
  for (const element of elements) {
    if (place?.matches(".editor") && place.dataset.id === element.dataset.id) place = place.nextElementSibling;
    else if (place === element) place = place.nextElementSibling;
    else thread.insertBefore(element, place);
  }
}

function markAnswering() {
  const answering = isAnswering(state.id);
  byId("app").classList.toggle("answering", answering);
  for (const button of document.querySelectorAll(".when-idle")) button.hidden = answering;
  emit("answering", {answering});
}

/** Opens the editor of the last question that is shown. */
export const editLast = () => [...views.values()].findLast((view) => view.edit)?.edit();

/** The text of the last answer that is shown. */
export const lastAnswer = () =>
  state.chat ? pathOf(state.chat).findLast((message) => message.role === "assistant")?.text : null;

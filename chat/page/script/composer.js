// The message box: text and pictures of the next question, kept as a draft with each change.

import {answerTo, isAnswering, stopAnswer} from "./answers.js";
import {ROOT, addMessage, pathOf, readDraft, saveDraft} from "./chats.js";
import {byId, bytes, h, hasKeyboard, iconButton, number} from "./dom.js";
import {emit, on} from "./events.js";
import {announce, toast} from "./notices.js";
import {keepPicture, removePicture, thumbUrl, upload} from "./pictures.js";
import {Refused} from "./server.js";
import {chatSettings} from "./settings.js";
import {state} from "./state.js";
import {scrollToEnd} from "./thread.js";
import {openViewer} from "./viewer.js";

export const EMPTY = "The message is empty. Please type a question.";

let draft = {chat: "", text: "", pictures: []};
const uploading = new Set(); // pictures
let sendNext = false; // once the answer that is being written is complete
const parts = {};

export function startComposer() {
  parts.area = h("textarea", {
    id: "message",
    rows: "1",
    dir: "auto",
    "aria-label": "Your message",
    enterkeyhint: "enter",
    readonly: true, // until there is a chat that the text belongs to
  });
  parts.chips = h("div", {id: "attachments", class: "pictures"});
  parts.file = h("input", {
    type: "file",
    id: "file",
    multiple: true,
    hidden: true,
    accept: "image/*,.heic,.heif,.avif,.tif,.tiff,.svg",
  });
  parts.attach = iconButton("attach", "Add pictures", () => parts.file.click(), {id: "attach"});
  parts.send = iconButton("send", "Send", submit, {id: "send", class: "icon-button round"});
  parts.stop = iconButton("stop", "Stop", () => stopAnswer(state.id), {
    id: "stop",
    class: "icon-button round",
    hidden: true,
  });
  parts.hint = h("div", {id: "hint", class: "hint"});
  byId("dock").prepend(
    h("div", {id: "composer"}, parts.chips, parts.area, parts.attach, parts.hint, parts.stop, parts.send, parts.file),
  );
  parts.area.addEventListener("input", () => {
    keep({text: parts.area.value});
    fit();
  });
  parts.area.addEventListener("keydown", onKey);
  parts.file.addEventListener("change", () => {
    attach([...parts.file.files]);
    parts.file.value = "";
  });
  document.addEventListener("paste", onPaste);
  takeDrops();
  on("answering", showAnswering);
  on("info", showInfo);
}

function showInfo() {
  const {sees} = state.info;
  parts.attach.hidden = !sees;
  if (!sees) parts.file.remove();
  parts.area.placeholder = sees ? "Ask, with or without a picture" : "Type a question";
}

/** Shows the draft of a chat; the one before is kept already. */
export async function showDraft(chat) {
  draft = await readDraft(chat);
  sendNext = false;
  parts.area.value = draft.text;
  parts.area.readOnly = false;
  fit();
  drawChips();
  say("");
  focusBox();
}

/** A screen keyboard is not brought up unasked. */
const focusBox = () => {
  if (hasKeyboard()) parts.area.focus({preventScroll: true});
};

function keep(change) {
  Object.assign(draft, change);
  saveDraft({...draft});
  emit("draft", {text: draft.text, pictures: draft.pictures.length});
}

function fit() {
  parts.area.style.height = "auto";
  parts.area.style.height = `${parts.area.scrollHeight}px`;
}

const say = (text) => {
  parts.hint.textContent = text;
};

function onKey(event) {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey && (hasKeyboard() || event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !parts.area.value && !isAnswering(state.id)) {
    event.preventDefault();
    emit("edit-last");
  }
}

/** Sends the question; one that is typed during an answer waits for its end. */
async function submit() {
  if (!draft.text.trim() && !draft.pictures.length) {
    say(EMPTY);
    return announce(EMPTY);
  }
  const most = state.info.limits.text_characters;
  if (draft.text.length > most)
    return say(`The message has ${number(draft.text.length)} characters; at most ${number(most)} are taken.`);
  if (isAnswering(state.id) || uploading.size) {
    sendNext = true;
    return say(uploading.size ? "Sent once the picture is uploaded" : "Sent once the answer is complete");
  }
  const {chat, text, pictures} = draft;
  draft = {chat, text: "", pictures: []};
  parts.area.value = "";
  fit();
  drawChips();
  say("");
  sendNext = false;
  await ask(chat, text, pictures);
  await saveDraft(draft);
  emit("draft", {text: "", pictures: 0});
}

/** Adds a question to the end of a chat, and its answer. */
async function ask(chat, text, pictures) {
  const parent = (state.chat && pathOf(state.chat).at(-1)?.id) ?? ROOT;
  const question = await addMessage(chat, {parent, role: "user", text, pictures}, chatSettings());
  emit("asked", {chat});
  await answerTo(question, state.settings);
  scrollToEnd();
  focusBox();
}

/** Asks one of the server's examples. */
export async function askExample({text, pictures}) {
  const {id} = state;
  const kept = [];
  for (const {url, name} of pictures) {
    const response = await fetch(url);
    const file = new File([await response.blob()], name, {type: response.headers.get("content-type")});
    kept.push((await keepPicture(id, file)).id);
  }
  await ask(id, text, kept);
}

function showAnswering({answering}) {
  const wasFocused = document.activeElement === parts.stop;
  parts.stop.hidden = !answering;
  parts.send.hidden = answering;
  if (!answering && wasFocused) focusBox();
  if (!answering && sendNext && !uploading.size) submit();
}

// Pictures: by the button, pasted or dropped anywhere.

async function attach(files) {
  const {sees, limits} = state.info;
  if (!sees) return toast("This model reads text only, no pictures.");
  const {chat} = draft;
  for (const file of files) {
    const inChat =
      (state.chat ? pathOf(state.chat).flatMap((message) => message.pictures).length : 0) + draft.pictures.length;
    if (inChat >= limits.pictures) return toast(`A chat has at most ${limits.pictures} pictures.`);
    if (file.size > limits.picture_bytes) {
      toast(`${file.name} has ${bytes(file.size)}; a picture may have ${bytes(limits.picture_bytes)}.`);
      continue;
    }
    await attachOne(chat, file);
  }
}

/** Shows a file as soon as it is kept; it is uploaded meanwhile. */
async function attachOne(chat, file) {
  try {
    const picture = await keepPicture(chat, file);
    if (draft.chat !== chat) return void removePicture(picture.id);
    keep({pictures: [...draft.pictures, picture.id]});
    uploading.add(picture.id);
    drawChips();
    uploadOne(picture);
  } catch (error) {
    toast(`${file.name}: ${error.message}`);
  }
}

async function uploadOne(picture) {
  try {
    await upload(picture);
  } catch (error) {
    if (error instanceof Refused) {
      toast(`${picture.name}: ${error.message}`);
      removePicture(picture.id);
      keep({pictures: draft.pictures.filter((other) => other !== picture.id)});
    } // else the server cannot be reached: the picture is kept here, and uploaded when it is asked about
  }
  uploading.delete(picture.id);
  drawChips();
  if (sendNext && !uploading.size && !isAnswering(state.id)) submit();
}

function drawChips() {
  parts.chips.replaceChildren(
    ...draft.pictures.map((id) => {
      const image = h("img", {alt: "", class: "thumb"});
      thumbUrl(id).then((url) => {
        if (url) image.src = url;
      });
      const open = h(
        "button",
        {type: "button", class: "picture", "aria-label": "Open the picture", onclick: () => openViewer(id)},
        image,
      );
      const remove = () => {
        removePicture(id);
        keep({pictures: draft.pictures.filter((other) => other !== id)});
        drawChips();
        parts.area.focus();
      };
      const close = iconButton("close", "Remove the picture", remove, {class: "icon-button chip-close"});
      return h("span", {class: uploading.has(id) ? "chip uploading" : "chip"}, open, close);
    }),
  );
}

function onPaste(event) {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) {
    event.preventDefault();
    return attach(files);
  }
  const text = event.clipboardData?.getData("text/plain");
  if (!text || event.target.closest?.("input, textarea, dialog")) return;
  event.preventDefault();
  parts.area.focus();
  document.execCommand("insertText", false, text);
}

/** A file dropped anywhere is taken, and never shown by the browser in place of the page. */
function takeDrops() {
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, change);
    byId("app").classList.toggle("dropping", depth > 0);
  };
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (hasFiles(event)) mark(depth + 1);
  });
  addEventListener("dragleave", (event) => {
    if (hasFiles(event)) mark(depth - 1);
  });
  addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    mark(0);
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    attach([...event.dataTransfer.files]);
  });
}

// What the server says of itself: the start page, the line below the message box, the context bar, the banner.

import {pathOf} from "./chats.js";
import {askExample} from "./composer.js";
import {openDialog} from "./dialogs.js";
import {byId, bytes, h, number} from "./dom.js";
import {emit, on} from "./events.js";
import {announce, banner, toast} from "./notices.js";
import {fetchInfo} from "./server.js";
import {state} from "./state.js";

const POLL = 1000; // milliseconds, while the model loads or the server is away
const LETTERS_PER_TOKEN = 3.5; // a rough count of a draft
const KEPT = [
  "Chats, drafts, pictures and settings are in this browser, until you delete them here or clear the site's data.",
  "The server keeps uploaded pictures for a day at most, and in its memory what the model computed of chats.",
];
const parts = {};
let draft = {text: "", pictures: 0};
let timer = null;

export function startStatus() {
  parts.facts = h("p", {id: "status"});
  parts.fill = h("span", {class: "meter-fill"});
  parts.meter = h(
    "div",
    {id: "context", role: "meter", "aria-label": "Context used", "aria-valuemin": "0"},
    parts.fill,
  );
  parts.count = h("span", {id: "context-text"});
  byId("dock").append(
    h("div", {class: "dock-foot"}, parts.facts, h("div", {class: "context"}, parts.meter, parts.count)),
  );
  on("draft", (now) => {
    draft = now;
    showContext();
  });
  on("shown", ({empty}) => {
    byId("start").hidden = !empty;
    showContext();
  });
  on("answer", ({ended}) => {
    if (ended) refreshInfo();
  });
  on("unreachable", () => lost());
  on("reached", () => {
    if (!byId("banner").hidden) refreshInfo();
  });
  addEventListener("offline", () => lost());
  addEventListener("online", () => refreshInfo());
}

/** Asks the server for its facts; until it is there and its model is loaded, again and again. */
export async function refreshInfo() {
  clearTimeout(timer);
  try {
    state.info = await fetchInfo();
    banner("");
    showInfo();
  } catch {
    lost();
  }
  clearTimeout(timer);
  if ((!state.info?.ready && !state.info?.failure) || !byId("banner").hidden) timer = setTimeout(refreshInfo, POLL);
}

function lost() {
  const waiting = "The server cannot be reached. Chats and drafts are kept here; the page goes on when it is back.";
  if (byId("banner").textContent !== waiting) banner(waiting);
  clearTimeout(timer);
  timer = setTimeout(refreshInfo, POLL);
}

function showInfo() {
  const {info} = state;
  const text = info.failure
    ? `Could not be loaded: ${info.failure}`
    : info.ready
      ? [info.facts, info.sees ? "" : "reads text only, no pictures", memoryFacts(info.memory)]
          .filter(Boolean)
          .join(" · ")
      : `${(info.progress ?? "loading").replace(/^./, (letter) => letter.toUpperCase())} …`;
  if (parts.facts.textContent !== text) parts.facts.textContent = text;
  parts.facts.title = text;
  parts.facts.classList.toggle("failed", Boolean(info.failure));
  if (parts.facts.classList.contains("busy") && (info.ready || info.failure)) announce(text);
  parts.facts.classList.toggle("busy", !info.ready);
  showStart(info, text);
  showContext();
  emit("info");
}

const memoryFacts = (memory) =>
  memory?.limit ? `remembers chats: ${bytes(memory.bytes)} of at most ${bytes(memory.limit)}` : "remembers no chats";

/** What runs here, and what is kept where. */
export function openAbout() {
  const {info} = state;
  openDialog(
    "About",
    h(
      "div",
      {class: "settings"},
      h("p", {}, h("strong", {}, info.name), info.about && ` · ${info.about}`),
      h("p", {}, parts.facts.textContent),
      h("p", {}, `Context: ${number(info.context)} tokens. A chat takes up to ${info.limits.pictures} pictures.`),
      ...KEPT.map((text) => h("p", {}, text)),
    ),
  );
}

function showStart(info, status) {
  const start = byId("start");
  if (start.dataset.drawn !== "") {
    start.dataset.drawn = "";
    parts.startStatus = h("p", {class: "start-status"});
    start.append(
      h("h1", {dir: "auto"}, info.name),
      info.about ? h("p", {class: "about", dir: "auto"}, info.about) : "",
      parts.startStatus,
      info.examples.length
        ? h("div", {class: "examples", role: "group", "aria-label": "Examples"}, info.examples.map(drawExample))
        : "",
    );
  }
  parts.startStatus.textContent = info.ready ? "" : status;
  parts.startStatus.classList.toggle("failed", Boolean(info.failure));
}

function drawExample(example) {
  const pictures = example.pictures.map(({url}) => h("img", {src: url, alt: "", class: "thumb", loading: "lazy"}));
  const choose = async () => {
    const all = [...byId("start").getElementsByClassName("example")];
    for (const button of all) button.disabled = true;
    try {
      await askExample(example);
    } catch (error) {
      toast(`The example could not be asked: ${error.message}`);
    } finally {
      for (const button of all) button.disabled = false;
    }
  };
  return h("button", {type: "button", class: "example", onclick: choose}, pictures, h("span", {}, example.text));
}

/** How much of the context the chat fills, pictures counted, and about how much the draft will add. */
function showContext() {
  const {info, chat} = state;
  if (!info) return;
  const perPicture = info.picture_tokens ?? 256;
  const path = chat && !chat.context ? pathOf(chat) : []; // not answered yet: it is counted as a draft is
  const letters = path.reduce((sum, message) => sum + message.text.length, draft.text.length);
  const newPictures = (path.flatMap((message) => message.pictures).length + draft.pictures) * perPicture;
  const added = Math.ceil(letters / LETTERS_PER_TOKEN) + newPictures;
  const used = (chat?.context?.tokens ?? 0) + added;
  const share = Math.min(1, used / info.context);
  const inPictures = (chat?.context?.pictures ?? 0) + newPictures;
  const ofPictures = inPictures ? `, ${number(inPictures)} in pictures` : "";
  const text = `${added ? "about " : ""}${number(used)} of ${number(info.context)} tokens${ofPictures}`;
  parts.count.textContent = text;
  for (const [name, value] of [
    ["aria-valuemax", info.context],
    ["aria-valuenow", Math.min(used, info.context)],
    ["aria-valuetext", text],
  ])
    parts.meter.setAttribute(name, value);
  parts.fill.style.width = `${100 * share}%`;
  parts.meter.classList.toggle("full", share > 0.9);
}

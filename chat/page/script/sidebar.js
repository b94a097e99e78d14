// The list of chats: find, open, rename, delete, export, import.

import {isAnswering} from "./answers.js";
import {deleteChat, listChats, putBack, renameChat, searchChats} from "./chats.js";
import {openMenu} from "./dialogs.js";
import {button, byId, h, icon, iconButton, isNarrow} from "./dom.js";
import {on} from "./events.js";
import {toast} from "./notices.js";
import {forgetUrls, thumbUrl} from "./pictures.js";
import {chatAddress, goTo, newChat} from "./routes.js";
import {openSettings} from "./settings.js";
import {openShortcuts} from "./shortcuts.js";
import {state} from "./state.js";
import {exportChats, importChats} from "./transfer.js";

const DAY = 24 * 3600 * 1000;
const UNDO_SECONDS = 12;
const parts = {};
let renaming = null; // the chat whose title is being typed

export function startSidebar() {
  const sidebar = byId("sidebar");
  parts.search = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search",
    "aria-label": "Search the chats",
    oninput: drawList,
  });
  parts.list = h("nav", {id: "chat-list", "aria-label": "Chats in this browser"});
  parts.file = h("input", {type: "file", id: "import-file", hidden: true, accept: ".json,application/json"});
  parts.file.addEventListener("change", takeFile);
  sidebar.append(
    h(
      "div",
      {class: "sidebar-head"},
      button(
        "new",
        "New chat",
        () => {
          newChat();
          closeIfNarrow();
        },
        {id: "new-chat"},
      ),
      iconButton("close", "Close the list of chats", () => toggleSidebar(false)),
    ),
    h("div", {class: "search"}, icon("search"), parts.search),
    parts.list,
    h(
      "div",
      {class: "sidebar-foot"},
      iconButton("upload", "Import chats", () => parts.file.click()),
      iconButton("download", "Export all chats", async () => exportChats(null)),
      iconButton("keyboard", "Keyboard shortcuts", openShortcuts),
      iconButton("settings", "Settings", openSettings),
    ),
    parts.file,
  );
  byId("shade").addEventListener("click", () => toggleSidebar(false));
  sidebar.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isNarrow()) toggleSidebar(false);
  });
  for (const type of ["chat", "tab:chat", "running", "tab:written", "route"]) on(type, () => drawList());
  toggleSidebar(!isNarrow() && localStorage.getItem("sidebar") !== "closed", false);
  matchMedia("(max-width: 800px)").addEventListener("change", ({matches}) => toggleSidebar(!matches, false));
}

export const isSidebarOpen = () => !byId("sidebar").inert;

/** Opens or closes the list; closed, nothing in it can be reached. */
export function toggleSidebar(open = !isSidebarOpen(), remember = true) {
  const focused = byId("sidebar").contains(document.activeElement);
  byId("app").classList.toggle("with-sidebar", open);
  byId("sidebar").inert = !open;
  byId("shade").hidden = !open || !isNarrow();
  byId("main").inert = open && isNarrow();
  document.querySelector("#toggle-sidebar")?.setAttribute("aria-expanded", open);
  if (remember && !isNarrow()) localStorage.setItem("sidebar", open ? "open" : "closed");
  if (!open && focused) document.querySelector("#toggle-sidebar")?.focus();
  if (open && isNarrow()) byId("new-chat").focus();
}

export function focusSearch() {
  toggleSidebar(true);
  parts.search.focus();
  parts.search.select();
}

const closeIfNarrow = () => {
  if (isNarrow()) toggleSidebar(false);
};

let drawing = 0;
async function drawList() {
  if (renaming) return;
  const turn = ++drawing;
  const wanted = parts.search.value.trim();
  const [chats, found] = await Promise.all([listChats(), wanted ? searchChats(wanted) : null]);
  if (turn !== drawing || renaming) return;
  const focused = parts.list.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
  const groups = new Map();
  for (const chat of chats) {
    if (found && !found.has(chat.id)) continue;
    const name = groupOf(chat.updated);
    groups.set(name, [...(groups.get(name) ?? []), chat]);
  }
  parts.list.replaceChildren(
    ...[...groups].flatMap(([name, all]) => [h("h2", {}, name), h("ul", {}, all.map(drawItem))]),
  );
  if (!groups.size)
    parts.list.append(
      h("p", {class: "help"}, wanted ? "No chat has this in it." : "Chats are kept here, in this browser."),
    );
  if (focused) parts.list.querySelector(`li[data-id="${focused}"] a`)?.focus();
}

function groupOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 7 * DAY) return "The last seven days";
  return new Date(time).toLocaleDateString("en-US", {month: "long", year: "numeric"});
}

function dateOf(time) {
  const isToday = time >= new Date().setHours(0, 0, 0, 0);
  const kind = isToday ? {hour: "2-digit", minute: "2-digit"} : {day: "numeric", month: "short"};
  return new Date(time).toLocaleString([], kind);
}

function drawItem(chat) {
  const mark = h("span", {class: "item-mark"}, icon("chat"));
  if (isAnswering(chat.id)) mark.replaceChildren(h("span", {class: "writing"}));
  else if (chat.picture)
    thumbUrl(chat.picture).then((url) => {
      if (url) mark.replaceChildren(h("img", {src: url, alt: ""}));
    });
  const link = h(
    "a",
    {
      href: chatAddress(chat.id),
      title: chat.title,
      "aria-current": chat.id === state.id && "page",
      onclick: closeIfNarrow,
    },
    mark,
    h(
      "span",
      {class: "item-words"},
      h("span", {class: "item-title", dir: "auto"}, chat.title),
      h("time", {datetime: new Date(chat.updated).toISOString()}, dateOf(chat.updated)),
    ),
  );
  const more = iconButton("more", `More about ${chat.title}`, () => openMenu(more, chatActions(chat, item)), {
    class: "icon-button item-more",
    "aria-haspopup": "menu",
  });
  const item = h("li", {dataset: {id: chat.id}}, link, more);
  return item;
}

/** What can be done with a chat, for a menu. */
export const chatActions = (chat, item = null) => [
  ["edit", "Rename", () => rename(chat, item ?? parts.list.querySelector(`li[data-id="${chat.id}"]`))],
  ["download", "Export", () => exportChats([chat.id])],
  ["trash", "Delete", () => remove(chat)],
];

function rename(chat, item) {
  if (!item) return;
  toggleSidebar(true);
  const field = h("input", {class: "rename", "aria-label": "Title", dir: "auto", maxlength: "120"});
  field.value = chat.title;
  renaming = chat.id;
  const close = async (save) => {
    if (!renaming) return;
    renaming = null;
    if (save) await renameChat(chat.id, field.value);
    await drawList();
    parts.list.querySelector(`li[data-id="${chat.id}"] a`)?.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) close(true);
    if (event.key === "Escape") {
      event.stopPropagation();
      close(false);
    }
  });
  field.addEventListener("blur", () => close(true));
  item.replaceChildren(field);
  field.select();
}

/** Deletes at once; for some seconds what was deleted is held in this tab's memory, for an undo. */
async function remove(chat) {
  const wasOpen = chat.id === state.id;
  const parts = await deleteChat(chat.id);
  if (wasOpen) newChat();
  forgetUrls(parts.pictures.map((picture) => picture.id));
  toast(`“${chat.title}” is deleted.`, {
    action: "Undo",
    seconds: UNDO_SECONDS,
    onaction: async () => {
      for (const message of parts.messages) if (message.state === "writing") message.state = "stopped";
      await putBack(parts);
      if (wasOpen) goTo(chat.id);
    },
  });
}

async function takeFile() {
  const [file] = parts.file.files;
  parts.file.value = "";
  if (!file) return;
  try {
    const count = await importChats(file);
    toast(count === 1 ? "One chat is imported." : `${count} chats are imported.`);
  } catch (error) {
    toast(error.message);
  }
}

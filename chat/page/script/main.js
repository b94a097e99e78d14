// Starts the page, and opens the chat that the address names.

import {openChat} from "./chats.js";
import {showDraft, startComposer} from "./composer.js";
import {openMenu} from "./dialogs.js";
import {byId, h, iconButton} from "./dom.js";
import {emit, on} from "./events.js";
import {banner, toast} from "./notices.js";
import {adoptDraft, idInAddress, nameNewChat, newChat, newId} from "./routes.js";
import {applyTheme, loadSettings, openSettings, useSettingsOf} from "./settings.js";
import {openShortcuts, startShortcuts} from "./shortcuts.js";
import {chatActions, focusSearch, startSidebar, toggleSidebar} from "./sidebar.js";
import {state} from "./state.js";
import {openAbout, refreshInfo, startStatus} from "./status.js";
import {showChat, startThread} from "./thread.js";

applyTheme();
drawHeader();
startSidebar();
startThread();
startComposer();
startStatus();
startShortcuts();
on("asked", ({chat}) => {
  nameNewChat(chat);
  navigator.storage?.persist?.(); // asks the browser not to clear the chats when the disk gets full
});
on("search", focusSearch);
on("toggle-sidebar", () => toggleSidebar());
on("shown", showTitle);
on("tab:deleted", ({id}) => {
  if (id === state.id) newChat();
});

try {
  while (!state.info) {
    await refreshInfo();
    if (!state.info) await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  await loadSettings();
  await adoptDraft();
  await open();
  let opened = null; // by popstate, which comes before the hashchange of the same step
  addEventListener("popstate", () => {
    opened = (idInAddress() ?? newId()) === state.id ? null : location.href;
    if (opened) open();
  });
  addEventListener("hashchange", ({newURL}) => {
    if (!newURL || newURL !== opened) open();
    opened = null;
  });
} catch (error) {
  banner(`This browser does not let the page keep chats (${error.message}). A private window may be the reason.`);
}

/** Opens what the address names. */
async function open() {
  const wanted = idInAddress();
  const chat = wanted && (await openChat(wanted));
  if (wanted && !chat) {
    toast("This chat is not in this browser.");
    history.replaceState(null, "", "#/");
  }
  const id = chat ? wanted : newId();
  state.id = id;
  useSettingsOf(chat);
  await showChat(id);
  await showDraft(id);
  emit("route");
}

function drawHeader() {
  const more = iconButton(
    "more",
    "More about this chat",
    () =>
      openMenu(more, [
        ...(state.chat ? chatActions(state.chat) : []),
        ["print", "Print", () => print()],
        ["keyboard", "Keyboard shortcuts", openShortcuts],
        ["spark", "About", openAbout],
      ]),
    {"aria-haspopup": "menu"},
  );
  byId("header").append(
    iconButton("menu", "Chats", () => toggleSidebar(), {
      id: "toggle-sidebar",
      "aria-expanded": "false",
      "aria-controls": "sidebar",
    }),
    h("div", {class: "title"}, h("h1", {id: "title", dir: "auto"})),
    iconButton("new", "New chat", newChat, {id: "new-chat-small"}),
    iconButton("settings", "Settings", openSettings),
    more,
  );
}

function showTitle() {
  const title = state.chat?.title ?? "";
  byId("title").textContent = title || state.info.name;
  byId("title").hidden = !title; // the start has a heading of its own
  document.title = title ? `${title} · ${state.info.name}` : state.info.name;
}

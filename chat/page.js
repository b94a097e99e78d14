// The saved chats, the latest first. Other tabs save theirs too: a change is made to the list as it is stored then.

const CHATS_KEPT = 50;  // local storage holds about 5 MB
const CHAT_SIZE = 1_000_000;  // characters of a chat that is kept; more is longer than any context
const STORE = "gemma3-int4-saved-chats";
const storedChats = () => JSON.parse(localStorage.getItem(STORE) ?? "[]");
let shownChats = [];

function listChats() {
  shownChats = storedChats();
  return {__type__: "update", samples: shownChats.map((chat) => [chat.title])};
}

function putChat(id, chat) {
  const chats = [chat ?? [], storedChats().filter((other) => other.id !== id)].flat().slice(0, CHATS_KEPT);
  let room = chats.length;
  do {
    try {
      localStorage.setItem(STORE, JSON.stringify(chats.slice(0, room)));
      break;
    } catch (full) {}  // then without the oldest
  } while (--room > 0);
  return listChats();
}

function saveChat(history, id) {
  const asked = history.filter((message) => message.role === "user").flatMap((message) => message.content);
  const text = asked.find((item) => item.text?.trim())?.text.trim().replace(/\s+/g, " ");
  const title = text ?? (asked.some((item) => item.file) ? "A picture" : "");
  const chat = {id, title: title.length > 40 ? title.slice(0, 39) + "…" : title, messages: JSON.stringify(history)};
  return title && chat.messages.length <= CHAT_SIZE ? putChat(id, chat) : listChats();
}

function leaveChat(history, id, index) {
  document.querySelector("#chat [aria-label=Cancel]")?.click();  // a half-made edit
  const wanted = shownChats[index];
  const list = saveChat(history, id);
  const opened = shownChats.find((chat) => chat.id === wanted?.id) ?? wanted;  // another tab may have gone on with it
  return [opened ? JSON.stringify(opened) : "", list];
}

// gradio calls these with the inputs and then the outputs of an event, so each takes just what it needs.
const newChat = (history, id) => leaveChat(history, id);
const openChat = (history, id, index) => leaveChat(history, id, index);

function forgetChat(history, id) {
  leaveChat([], id);
  return ["", putChat(id)];
}

// A picture dropped beside the message box, which takes its own, would else replace the page.

addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  const input = document.querySelector("#message input[type=file]");
  if (event.defaultPrevented || !event.dataTransfer.files.length) return;
  event.preventDefault();
  if (!input) return;  // a model that reads text only
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change"));
});

const focusMessage = () => { if (matchMedia("(pointer: fine)").matches) document.querySelector("#message textarea")?.focus() };
const isWide = () => window.innerWidth >= 1200;

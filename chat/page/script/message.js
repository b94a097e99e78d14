// One message of the chat as it is shown: the user's as it was typed, an answer as markdown.

import {answerTo, continueAnswer} from "./answers.js";
import {addMessage, childrenOf, showBranch} from "./chats.js";
import {byId, copyText, h, hasKeyboard, icon, iconButton, number} from "./dom.js";
import {emit} from "./events.js";
import {drawMarkdown} from "./markdown.js";
import {announce} from "./notices.js";
import {thumbUrl} from "./pictures.js";
import {state} from "./state.js";
import {openViewer} from "./viewer.js";

/** Draws a message; `update(message, progress)` of what is returned draws what has changed of it. */
export function drawMessage(message) {
  return message.role === "user" ? drawQuestion(message) : drawAnswer(message);
}

function drawQuestion(message) {
  const text = h("div", {class: "question-text", dir: "auto"}, message.text);
  const tools = h("div", {class: "tools"});
  const body = h("div", {class: "question-body"}, drawPictures(message.pictures), message.text && text);
  const element = h(
    "article",
    {class: "message question", "aria-label": "You", dataset: {id: message.id}},
    body,
    tools,
  );
  const edit = () => body.isConnected && openEditor(element, message);
  const update = () => {
    tools.replaceChildren(
      ...branches(message),
      message.text ? copyButton(() => message.text) : "",
      iconButton("edit", "Edit", edit, {class: "icon-button when-idle"}),
    );
  };
  return {element, update, edit};
}

/** Thumbnails that open the viewer. */
export function drawPictures(ids) {
  if (!ids.length) return null;
  return h(
    "div",
    {class: "pictures"},
    ids.map((id) => {
      const image = h("img", {alt: "", class: "thumb"});
      const open = h(
        "button",
        {type: "button", class: "picture", "aria-label": "Open the picture", onclick: () => openViewer(id)},
        image,
      );
      thumbUrl(id).then((url) => {
        if (url) image.src = url;
        else open.replaceChildren(icon("attach"));
      });
      return open;
    }),
  );
}

function drawAnswer(message) {
  const text = h("div", {class: "answer"});
  const doing = h("div", {class: "doing"});
  const notice = h("div", {class: "notice-place"});
  const tools = h("div", {class: "tools"});
  const element = h(
    "article",
    {class: "message reply", "aria-label": "Answer", dataset: {id: message.id}},
    text,
    doing,
    notice,
    tools,
  );
  let drawn = {};
  const update = (now, progress) => {
    const mayRetry = now.text || now.state === "done"; // else the notice has its own way on
    const isWriting = now.state === "writing";
    element.setAttribute("aria-busy", isWriting);
    if (drawn.text !== now.text || drawn.isWriting !== isWriting) drawMarkdown(text, now.text, !isWriting);
    drawn = {text: now.text, isWriting};
    doing.replaceChildren(...(isWriting ? [drawProgress(progress, now.text)] : []));
    notice.replaceChildren(...noticeOf(now));
    tools.hidden = isWriting;
    if (isWriting) return;
    tools.replaceChildren(
      ...branches(now),
      ...(now.text ? [copyButton(() => now.text)] : []),
      ...(mayRetry && state.chat?.messages.has(now.parent) ? [retryButton(now)] : []),
      h("span", {class: "facts"}, factsOf(now)),
    );
  };
  return {element, update};
}

function retryButton(message) {
  const again = () => answerTo(state.chat.messages.get(message.parent), state.settings);
  return iconButton("retry", "Retry: answer once more", again, {class: "icon-button when-idle"});
}

function drawProgress(progress, text) {
  if (!progress) return h("span", {class: "writing", "aria-hidden": "true"});
  const line = h("span", {}, `${progress.text[0].toUpperCase()}${progress.text.slice(1)} …`);
  if (!progress.total)
    return h("div", {class: text ? "progress after" : "progress"}, h("span", {class: "writing"}), line);
  const bar = h("progress", {max: progress.total, value: progress.done, "aria-label": progress.text});
  return h("div", {class: "progress"}, h("span", {class: "writing"}), line, bar);
}

const ENDS = {
  length: "Cut off at the longest answer that the settings allow.",
  stopped: "Stopped.",
  interrupted: "Interrupted before it was complete.",
};

/** What is said below an answer that is not complete, and the way on. */
function noticeOf(message) {
  const goOn = () => continueAnswer(message, state.settings);
  const again = () => answerTo(state.chat.messages.get(message.parent), state.settings);
  const action =
    message.text && message.state !== "failed"
      ? h(
          "button",
          {type: "button", class: "button small when-idle", onclick: goOn},
          icon("continue"),
          h("span", {}, "Continue"),
        )
      : h(
          "button",
          {type: "button", class: "button small when-idle", onclick: again},
          icon("retry"),
          h("span", {}, "Try again"),
        );
  if (message.state === "failed")
    return [h("div", {class: "notice failed"}, icon("warning"), h("span", {}, message.error), action)];
  if (ENDS[message.state]) return [h("div", {class: "notice"}, h("span", {}, ENDS[message.state]), action)];
  return [];
}

/** The arrows between the branches at a message's place. */
function branches(message) {
  const all = state.chat ? childrenOf(state.chat, message.parent).filter((other) => other.role === message.role) : [];
  const place = all.findIndex((other) => other.id === message.id);
  if (all.length < 2) return [];
  const what = message.role === "user" ? "question" : "answer";
  const arrow = (name, label, to) =>
    iconButton(name, label, () => all[to] && showBranch(all[to]), {class: "icon-button when-idle", disabled: !all[to]});
  return [
    h(
      "span",
      {class: "branches"},
      arrow("left", `Previous ${what}`, place - 1),
      h("span", {}, `${place + 1}/${all.length}`),
      arrow("right", `Next ${what}`, place + 1),
    ),
  ];
}

function copyButton(text) {
  const copy = iconButton("copy", "Copy", async () => {
    await copyText(text());
    copy.replaceChildren(icon("done"));
    announce("Copied");
    setTimeout(() => copy.replaceChildren(icon("copy")), 1500);
  });
  return copy;
}

function factsOf({facts}) {
  if (!facts) return "";
  const {new_tokens, tokens_per_second, first_token_seconds, prompt_tokens, remembered_tokens} = facts;
  return [
    `${number(new_tokens)} ${new_tokens === 1 ? "token" : "tokens"}`,
    tokens_per_second && `${tokens_per_second.toFixed(1)} tokens/s`,
    first_token_seconds !== null && `first after ${first_token_seconds.toFixed(2)} s`,
    `${number(prompt_tokens)} in the prompt${remembered_tokens ? `, ${number(remembered_tokens)} remembered` : ""}`,
  ]
    .filter(Boolean)
    .join(" · ");
}

/** A text box in place of the question; what is sent from it becomes a branch beside it. */
function openEditor(element, message) {
  let pictures = [...message.pictures];
  const area = h("textarea", {"aria-label": "Your question", dir: "auto", rows: "1"});
  area.value = message.text;
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  const chips = h("div", {class: "pictures"});
  const drawChips = () =>
    chips.replaceChildren(
      ...pictures.map((id) => {
        const image = h("img", {alt: "", class: "thumb"});
        thumbUrl(id).then((url) => {
          if (url) image.src = url;
        });
        const leave = () => {
          pictures = pictures.filter((other) => other !== id);
          drawChips();
        };
        return h(
          "span",
          {class: "chip"},
          image,
          iconButton("close", "Leave the picture out", leave, {class: "icon-button chip-close"}),
        );
      }),
    );
  const close = () => {
    editor.replaceWith(element);
    element.querySelector(".tools button:last-child")?.focus();
  };
  const send = async () => {
    if (!area.value.trim() && !pictures.length) return announce("The message is empty.");
    editor.replaceWith(element);
    const text = area.value;
    const asked = await addMessage(message.chat, {parent: message.parent, role: "user", text, pictures});
    await answerTo(asked, state.settings);
    emit("edited");
    byId("message").focus({preventScroll: true});
  };
  const editor = h(
    "div",
    {class: "message question editor"},
    chips,
    area,
    h(
      "div",
      {class: "editor-buttons"},
      h("button", {type: "button", class: "button", onclick: close}, "Cancel"),
      h("button", {type: "button", class: "button primary", onclick: send}, "Send"),
    ),
  );
  area.addEventListener("input", fit);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && hasKeyboard()) {
      event.preventDefault();
      send();
    }
    if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      close();
    }
  });
  drawChips();
  emit("editing");
  element.replaceWith(editor);
  fit();
  area.focus({preventScroll: true});
  editor.scrollIntoView({block: "nearest"});
}

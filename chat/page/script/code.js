// Code in answers: its language, a button that copies it, and colors for languages that are known.

import {copyText, h, icon} from "./dom.js";
import {sanitizeCode} from "./sanitize.js";

const KNOWN = {
  bash: ["sh", "shell", "console", "zsh"],
  c: ["h"],
  cpp: ["c++", "cc", "hpp"],
  css: [],
  diff: ["patch"],
  go: ["golang"],
  java: [],
  javascript: ["js", "mjs", "jsx"],
  json: ["jsonc"],
  markdown: ["md"],
  python: ["py", "python3"],
  rust: ["rs"],
  sql: [],
  typescript: ["ts", "tsx"],
  xml: ["html", "svg"],
  yaml: ["yml"],
};
const MOST = 50_000; // letters; more is shown plain

let core = null;
const loading = new Map();

/** The highlighter, with a language it knows, or null. */
async function highlighter(name) {
  const language = Object.keys(KNOWN).find((known) => known === name || KNOWN[known].includes(name));
  if (!language) return null;
  core ??= import("../vendor/highlight/core.js").then((module) => module.default);
  const highlight = await core;
  if (!loading.has(language)) {
    const grammar = import(`../vendor/highlight/${language}.js`);
    loading.set(
      language,
      grammar.then((module) => highlight.registerLanguage(language, module.default)),
    );
  }
  await loading.get(language);
  return {highlight, language};
}

/** Frames the code of an answer; `complete` says that it is not still being written. */
export function drawCode(code, complete) {
  const pre = code.parentElement;
  const name = /(?:^| )language-(\S+)/.exec(code.className)?.[1].toLowerCase() ?? "";
  const label = h("span", {class: "code-name"}, name || "text");
  const copy = h("button", {type: "button", class: "button small"}, icon("copy"), h("span", {}, "Copy"));
  copy.setAttribute("aria-label", "Copy code");
  copy.addEventListener("click", async () => {
    await copyText(code.textContent.replace(/\n$/, ""));
    copy.replaceChildren(icon("done"), h("span", {}, "Copied"));
    setTimeout(() => copy.replaceChildren(icon("copy"), h("span", {}, "Copy")), 1500);
  });
  const frame = h("div", {class: "code", dir: "ltr"}, h("div", {class: "code-head"}, label, copy));
  pre.replaceWith(frame);
  for (const [key, value] of [
    ["tabindex", "0"],
    ["role", "group"],
    ["aria-label", `${name || "text"}: code`],
  ])
    pre.setAttribute(key, value);
  frame.append(pre);
  if (complete) color(code, name);
}

async function color(code, name) {
  const found = code.textContent.length <= MOST && (await highlighter(name));
  if (!found) return;
  const colored = found.highlight.highlight(code.textContent, {language: found.language, ignoreIllegals: true});
  code.replaceChildren(sanitizeCode(colored.value));
}

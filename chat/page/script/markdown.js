// An answer's markdown -> elements. HTML in it stays text; what comes out of the parser passes an allow-list besides.
//
// Blocks that have not changed keep their elements: a text that streams in is not drawn anew with each token.

import MarkdownIt from "../vendor/markdown-it.js";
import {drawCode} from "./code.js";
import {h} from "./dom.js";
import {drawMaths, mathsRules} from "./maths.js";
import {sanitizeAnswer} from "./sanitize.js";

const AUTO = [
  "paragraph_open",
  "heading_open",
  "bullet_list_open",
  "ordered_list_open",
  "list_item_open",
  "blockquote_open",
  "th_open",
  "td_open",
]; // each has its own direction, by its first letter

const markdown = new MarkdownIt({html: false, linkify: true, breaks: true});
markdown.linkify.set({fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false});
markdown.validateLink = (address) => /^(https?:\/\/|mailto:)/i.test(address);
markdown.use(mathsRules);
markdown.core.ruler.push("page", (parsed) => parsed.tokens.forEach(prepare));
// A picture is not fetched: it becomes a link that says where it would come from.
markdown.renderer.rules.image = (tokens, place) => {
  const {escapeHtml} = markdown.utils;
  const name = `Picture: ${tokens[place].content || "without a name"}`;
  return `<a href="${escapeHtml(tokens[place].attrGet("src"))}">${escapeHtml(name)}</a>`;
};

function prepare(token, place, tokens) {
  if (AUTO.includes(token.type)) token.attrSet("dir", "auto");
  const side = /text-align:(\w+)/.exec(token.attrGet("style") ?? "");
  if (side) {
    token.attrs = token.attrs.filter(([name]) => name !== "style");
    if (side[1] !== "left") token.attrJoin("class", side[1]);
  }
  const box =
    token.type === "inline" && tokens[place - 2]?.type === "list_item_open" && /^\[([ xX])\]\s/.exec(token.content);
  if (box && token.children[0]?.type === "text") {
    tokens[place - 2].attrJoin("class", "task");
    token.children[0].content = `${box[1] === " " ? "☐" : "☑"} ${token.children[0].content.slice(4)}`;
  }
}

const drawn = new WeakMap(); // element -> [{html, whole}] of its blocks

/** Draws a text into an element; `complete` says that no more will come. */
export function drawMarkdown(element, text, complete = true) {
  const before = drawn.get(element) ?? [];
  const blocks = toBlocks(text).map((html, place, all) => ({html, whole: complete || place < all.length - 1}));
  blocks.forEach(({html, whole}, place) => {
    const same = before[place]?.html === html;
    if (same && (before[place].whole === whole || !html.includes("<pre"))) return;
    const block = decorate(sanitizeAnswer(html), whole);
    if (element.children[place]) element.children[place].replaceWith(block);
    else element.append(block);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
  drawn.set(element, blocks);
}

/** The HTML of each block at the top level. */
function toBlocks(text) {
  const environment = {};
  const tokens = markdown.parse(text, environment);
  const blocks = [];
  for (let start = 0, end = 0, depth = 0; end < tokens.length; end++) {
    depth += tokens[end].nesting;
    if (depth > 0) continue;
    blocks.push(markdown.renderer.render(tokens.slice(start, end + 1), markdown.options, environment));
    start = end + 1;
  }
  return blocks.filter((html) => html.trim());
}

/** Makes of a sanitized block what the page shows: links that tell, code with a copy button, maths. */
function decorate(fragment, complete) {
  const block = fragment.children.length === 1 ? fragment.firstElementChild : h("div", {}, fragment);
  const holder = h("div", {}, block);
  for (const link of holder.querySelectorAll("a")) drawLink(link);
  for (const table of holder.querySelectorAll("table")) {
    const frame = h("div", {class: "table", role: "group", "aria-label": "Table", tabindex: "0"});
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of holder.querySelectorAll("pre > code")) drawCode(code, complete);
  for (const place of holder.querySelectorAll(".maths")) drawMaths(place);
  return holder.firstElementChild;
}

/** A link says which host it leads to, unless its own text begins with that very host. */
function drawLink(link) {
  let address;
  try {
    address = new URL(link.getAttribute("href"));
  } catch {
    link.replaceWith(...link.childNodes);
    return;
  }
  Object.assign(link, {target: "_blank", rel: "noopener noreferrer nofollow", title: address.href});
  const host = address.protocol === "mailto:" ? address.pathname : address.host;
  const shown = link.textContent.trim().replace(/^https?:\/\//i, "");
  if (shown === host || shown.startsWith(`${host}/`)) return;
  link.after(" ", h("span", {class: "host"}, h("bdi", {}, `(${host})`)));
}

// Maths between $, $$, \( \) and \[ \], drawn as MathML, which browsers draw themselves.

import {h} from "./dom.js";

let katex = null; // loaded with the first formula
const load = async () => {
  katex ??= import("../vendor/katex.js").then(() => globalThis.katex);
  return katex;
};

/** Teaches the parser formulas; it makes `<code class="maths">` of them, with the TeX as text. */
export function mathsRules(markdown) {
  markdown.inline.ruler.before("escape", "maths", inlineRule);
  markdown.block.ruler.before("fence", "maths", blockRule, {alt: ["paragraph", "blockquote", "list"]});
  const draw = (block) => (tokens, place) => {
    const tex = markdown.utils.escapeHtml(tokens[place].content);
    return block
      ? `<div class="maths block"><code>${tex}</code></div>`
      : `<span class="maths"><code>${tex}</code></span>`;
  };
  markdown.renderer.rules.maths_inline = draw(false);
  markdown.renderer.rules.maths_block = draw(true);
}

const INLINE = [
  [/\$\$((?:[^$\\]|\\.)+?)\$\$/y],
  // As in Pandoc: no space inside the dollars, and no digit after them, so that prices stay prices.
  [/\$(?!\s)((?:[^$\\\n]|\\.)+?)(?<!\s)\$(?!\d)/y],
  [/\\\((.+?)\\\)/sy],
  [/\\\[(.+?)\\\]/sy],
];

function inlineRule(parsed, silent) {
  const letter = parsed.src[parsed.pos];
  if (letter !== "$" && letter !== "\\") return false;
  for (const [pattern] of INLINE) {
    pattern.lastIndex = parsed.pos;
    const found = pattern.exec(parsed.src);
    if (!found || pattern.lastIndex > parsed.posMax) continue;
    if (!silent) parsed.push("maths_inline", "", 0).content = found[1].trim();
    parsed.pos = pattern.lastIndex;
    return true;
  }
  return false;
}

function blockRule(parsed, start, end, silent) {
  const line = (number) => parsed.src.slice(parsed.bMarks[number] + parsed.tShift[number], parsed.eMarks[number]);
  const opening = ["$$", "\\["].find((mark) => line(start).startsWith(mark));
  if (!opening || parsed.sCount[start] - parsed.blkIndent >= 4) return false;
  const closing = opening === "$$" ? "$$" : "\\]";
  const lines = [line(start).slice(2)];
  let last = start;
  while (!lines.at(-1).trimEnd().endsWith(closing)) {
    if (++last >= end || parsed.sCount[last] < parsed.blkIndent) return false;
    lines.push(line(last));
  }
  const tex = lines.join("\n").trimEnd().slice(0, -2).trim();
  if (!tex || tex.includes(closing)) return false;
  if (silent) return true;
  const token = parsed.push("maths_block", "", 0);
  Object.assign(token, {content: tex, map: [start, last + 1], block: true});
  parsed.line = last + 1;
  return true;
}

const OPTIONS = {output: "mathml", throwOnError: true, trust: false, strict: "ignore", maxSize: 20, maxExpand: 300};

/** Replaces the TeX in an element by its formula; what is no formula stays as it was typed. */
export async function drawMaths(element) {
  const tex = element.textContent;
  const isBlock = element.classList.contains("block");
  try {
    const formula = h("span");
    (await load()).render(tex, formula, {...OPTIONS, displayMode: isBlock});
    element.replaceChildren(formula.querySelector("math"));
    if (isBlock)
      for (const [name, value] of [
        ["tabindex", "0"],
        ["role", "group"],
        ["aria-label", "Formula"],
      ])
        element.setAttribute(name, value);
  } catch {
    /* the TeX stays */
  }
}

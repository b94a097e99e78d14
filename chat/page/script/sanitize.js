// The allow-lists that everything made of an answer's text passes before it is in the page.

import "../vendor/purify.js";

const CLASSES = /^(language-[\w+#.-]+|hljs-\w+|maths|block|task|right|center)$/;
const COMMON = {ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false, RETURN_DOM_FRAGMENT: true};
const ANSWER = {
  ...COMMON,
  ALLOWED_TAGS: [
    "p",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "blockquote",
    "pre",
    "code",
    "em",
    "strong",
    "s",
    "a",
    "br",
    "hr",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "span",
    "div",
    "#text",
  ],
  ALLOWED_ATTR: ["href", "class", "dir", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["class", "dir", "start"], // no addresses
};
const CODE = {...COMMON, ALLOWED_TAGS: ["span", "#text"], ALLOWED_ATTR: ["class"]};

const purifier = globalThis.DOMPurify;

purifier.addHook("uponSanitizeAttribute", (_, attribute) => {
  if (attribute.attrName !== "class") return;
  attribute.attrValue = attribute.attrValue
    .split(/\s+/)
    .filter((name) => CLASSES.test(name))
    .join(" ");
  attribute.keepAttr = Boolean(attribute.attrValue);
});

/** A fragment of what an answer may have: no style, form, input, id, frame, picture or script. */
export const sanitizeAnswer = (html) => purifier.sanitize(html, ANSWER);

/** A fragment of colored code: spans with classes, and text. */
export const sanitizeCode = (html) => purifier.sanitize(html, CODE);

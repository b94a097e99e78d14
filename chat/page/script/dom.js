// Elements built from plain values; nothing here takes HTML.

/** An element with properties (class, dataset, on..., attributes) and children; null and false are left out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `page/icons.svg#${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A button of an icon alone, which its label names. */
export function iconButton(name, label, onclick, properties = {}) {
  return h(
    "button",
    {type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...properties},
    icon(name),
  );
}

export function button(name, label, onclick, properties = {}) {
  return h(
    "button",
    {type: "button", class: "button", onclick, ...properties},
    name && icon(name),
    h("span", {}, label),
  );
}

export const byId = (id) => document.getElementById(id);

export const randomId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const number = (value) => value.toLocaleString("en-US");

export function bytes(count) {
  for (const [unit, size] of [
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ]) {
    if (count >= size) return `${(count / size).toFixed(count < 10 * size ? 1 : 0)} ${unit}`;
  }
  return `${count} bytes`;
}

/** Whether the keyboard is a real one; with a screen keyboard, Enter makes a line. */
export const hasKeyboard = () => matchMedia("(pointer: fine)").matches;
export const isNarrow = () => matchMedia("(max-width: 800px)").matches;

/** Puts a text into the clipboard; pages without HTTPS have no clipboard API, there a selection is copied. */
export async function copyText(text) {
  if (navigator.clipboard && isSecureContext) return navigator.clipboard.writeText(text);
  const before = document.activeElement;
  const area = h("textarea", {class: "hidden-text", "aria-hidden": "true"});
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  before?.focus();
}

/** Offers a file to save. */
export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  h("a", {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

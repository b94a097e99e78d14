// Dialogs and menus, on the browser's own `dialog` and `popover`.

import {h, icon, iconButton} from "./dom.js";

/** Opens a modal dialog; it is gone from the page once closed. */
export function openDialog(title, content, properties = {}) {
  const heading = h("h2", {id: "dialog-title"}, title);
  if (!content.querySelector("button, input, select, textarea")) content.tabIndex = 0; // so that keys scroll it
  const dialog = h("dialog", {"aria-labelledby": "dialog-title", ...properties});
  dialog.append(
    h(
      "div",
      {class: "dialog-head"},
      heading,
      iconButton("close", "Close", () => dialog.close()),
    ),
    content,
  );
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  }); // the backdrop
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Opens a menu at a button; `items` are [icon, label, action]. */
export function openMenu(anchor, items) {
  const menu = h("div", {class: "menu", role: "menu", popover: "auto"});
  for (const [name, label, action] of items.filter(Boolean)) {
    const onclick = () => {
      menu.hidePopover();
      action();
    };
    menu.append(h("button", {type: "button", role: "menuitem", onclick}, icon(name), label));
  }
  menu.addEventListener("keydown", (event) => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...menu.children];
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
  });
  menu.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    if (menu.contains(document.activeElement) || document.activeElement === document.body) anchor.focus();
    menu.remove();
  });
  anchor.closest("aside, main").append(menu);
  menu.showPopover();
  const {left, right, bottom, top} = anchor.getBoundingClientRect();
  const {width, height} = menu.getBoundingClientRect();
  const [x, y] = [left + width > innerWidth - 8 ? right - width : left, bottom + 4];
  menu.style.left = `${Math.max(8, Math.min(x, innerWidth - width - 8))}px`;
  menu.style.top = `${y + height > innerHeight - 8 ? Math.max(8, top - height - 4) : y}px`;
  menu.firstElementChild.focus();
}

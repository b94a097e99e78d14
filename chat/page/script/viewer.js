// A picture at full size, in a dialog: fitted first, then as large as one likes.

import {openDialog} from "./dialogs.js";
import {download, h, iconButton, number} from "./dom.js";
import {readPicture, viewUrl} from "./pictures.js";

const MOST = 8,
  LEAST = 0.05;

export async function openViewer(id) {
  const [picture, url] = [await readPicture(id), await viewUrl(id)];
  if (!url) return;
  const image = h("img", {src: url, alt: picture.name, draggable: "false"});
  const frame = h(
    "div",
    {class: "viewer-frame", tabindex: "0", role: "group", "aria-label": "Picture; arrow keys move it"},
    image,
  );
  const scaleText = h("span", {class: "viewer-scale", role: "status"});
  const size = picture.width ? `${number(picture.width)} × ${number(picture.height)} pixels` : "";
  let scale = 1;

  const fitted = () => Math.min(1, frame.clientWidth / image.naturalWidth, frame.clientHeight / image.naturalHeight);
  const zoom = (wanted, x = frame.clientWidth / 2, y = frame.clientHeight / 2) => {
    const before = scale;
    scale = Math.min(MOST, Math.max(LEAST, wanted));
    const [left, top] = [(frame.scrollLeft + x) / before, (frame.scrollTop + y) / before];
    image.style.width = `${image.naturalWidth * scale}px`;
    frame.scrollTo(left * scale - x, top * scale - y);
    scaleText.textContent = `${Math.round(scale * 100)} %`;
  };
  const toggle = () => zoom(Math.abs(scale - fitted()) < 0.01 ? Math.max(1, 2 * fitted()) : fitted());

  const tools = h(
    "div",
    {class: "viewer-tools"},
    iconButton("minus", "Zoom out", () => zoom(scale / 1.4)),
    scaleText,
    iconButton("plus", "Zoom in", () => zoom(scale * 1.4)),
    h("button", {type: "button", class: "button small", onclick: () => zoom(fitted())}, "Fit"),
    h("button", {type: "button", class: "button small", onclick: () => zoom(1)}, "100 %"),
    iconButton("download", "Save the picture", () => download(picture.name, picture.blob)),
    h("span", {class: "viewer-size"}, size),
  );
  const dialog = openDialog(picture.name, h("div", {class: "viewer"}, frame, tools), {class: "viewer-dialog"});
  await image.decode().catch(() => {});
  zoom(fitted());

  image.addEventListener("dblclick", toggle);
  frame.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const {left, top} = frame.getBoundingClientRect();
      zoom(scale * (event.deltaY < 0 ? 1.15 : 1 / 1.15), event.clientX - left, event.clientY - top);
    },
    {passive: false},
  );
  frame.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && event.buttons === 1) frame.scrollBy(-event.movementX, -event.movementY);
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") zoom(scale * 1.4);
    else if (event.key === "-") zoom(scale / 1.4);
    else if (event.key === "0") zoom(fitted());
  });
  frame.focus();
}

// Pictures of chats: kept in this browser, uploaded to the server, shown small and large.
//
// picture  {id, chat, name, blob, server: the server's id or null, width, height, thumb: blob, view: blob or null}

import {read, result, transact, write} from "./database.js";
import {randomId} from "./dom.js";
import {Refused, fetchPreview, uploadPicture} from "./server.js";

const THUMB = 256; // pixels of the longer side
const SVG_SIDE = 1568; // likewise, of a drawing that becomes pixels
const urls = new Map(); // object URLs, of what was shown since the page was opened

/** Keeps a file for a chat, with a thumbnail where the browser can draw it. Throws Refused for a damaged drawing. */
export async function keepPicture(chat, file) {
  const blob = isSvg(file) ? await drawSvg(file) : new Blob([await file.arrayBuffer()], {type: file.type});
  const picture = {id: randomId(), chat, name: file.name || "picture", blob, server: null, thumb: null, view: null};
  await drawThumb(picture, blob);
  await write("pictures", picture);
  return picture;
}

/** Uploads a kept picture where that is still to be done; returns the server's id. */
export async function serverId(id, again = false) {
  const picture = await read("pictures", id);
  if (!picture) return null;
  if (again || !picture.server) await upload(picture);
  return picture.server;
}

/** Uploads a kept picture; throws Refused where the server says that it is none it can read. */
export async function upload(picture) {
  const {id, width, height} = await uploadPicture(picture.blob);
  Object.assign(picture, {server: id, width, height});
  if (!picture.thumb) {
    picture.view = await fetchPreview(id);
    await drawThumb(picture, picture.view);
    URL.revokeObjectURL(urls.get(`${picture.id} thumb`));
    urls.delete(`${picture.id} thumb`);
  }
  // Only where it is still there: it may have been removed while it was uploaded.
  await transact(["pictures"], "readwrite", async ({pictures}) => {
    if (await result(pictures.get(picture.id))) await result(pictures.put(picture));
  });
}

const isSvg = (file) => /svg/.test(file.type) || /\.svgz?$/i.test(file.name);

/** A drawing as pixels. As an image, it can neither run anything nor fetch anything. */
async function drawSvg(file) {
  const url = URL.createObjectURL(new Blob([await file.arrayBuffer()], {type: "image/svg+xml"}));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const [width, height] = [image.naturalWidth || SVG_SIDE, image.naturalHeight || SVG_SIDE];
    const scale = SVG_SIDE / Math.max(width, height);
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  } catch {
    throw new Refused("This drawing is damaged, or no SVG.");
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Fills in `thumb`, unless the browser cannot draw the picture. */
async function drawThumb(picture, blob) {
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = Math.min(1, THUMB / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    Object.assign(picture, {width: bitmap.width, height: bitmap.height});
    picture.thumb = await new Promise((resolve) => canvas.toBlob(resolve, "image/webp", 0.85));
    bitmap.close();
  } catch {
    /* HEIC, TIFF and what else this browser does not draw */
  }
}

async function urlOf(id, kind, choose) {
  const key = `${id} ${kind}`;
  if (!urls.has(key)) {
    const picture = await read("pictures", id);
    const blob = picture && choose(picture);
    if (!blob) return null;
    if (!urls.has(key)) urls.set(key, URL.createObjectURL(blob));
  }
  return urls.get(key);
}

export const thumbUrl = (id) => urlOf(id, "thumb", (picture) => picture.thumb);
export const viewUrl = (id) => urlOf(id, "view", (picture) => picture.view ?? picture.blob);
export const readPicture = (id) => read("pictures", id);

export const removePicture = (id) => transact(["pictures"], "readwrite", ({pictures}) => result(pictures.delete(id)));

/** Forgets the addresses of a chat's pictures, so that a deleted picture is nowhere. */
export function forgetUrls(ids) {
  for (const id of ids) {
    for (const key of [`${id} thumb`, `${id} view`]) {
      URL.revokeObjectURL(urls.get(key));
      urls.delete(key);
    }
  }
}

// What the parts of the page tell each other, and what the page's tabs tell each other.

const listeners = new Map();
const channel = new BroadcastChannel("gemma3-int4-chat");
channel.onmessage = ({data}) => emit(`tab:${data.type}`, data);

export function on(type, listener) {
  listeners.set(type, [...(listeners.get(type) ?? []), listener]);
}

export function emit(type, detail) {
  for (const listener of listeners.get(type) ?? []) listener(detail);
}

/** Tells the other tabs; they hear it as `tab:TYPE`. */
export const tellTabs = (type, detail = {}) => channel.postMessage({...detail, type});

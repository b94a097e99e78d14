// What the whole page knows: the server's facts, the settings, and which chat is open.

export const state = {
  info: null, // as GET /info gives it
  settings: null, // for the open chat and new ones: {system, sampling, pan_and_scan, theme}
  id: "", // of the open chat
  chat: null, // as openChat gives it; null while it has no message
};

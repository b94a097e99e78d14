// The settings: for the open chat, and what a new chat begins with.

import {changeChat} from "./chats.js";
import {read, write} from "./database.js";
import {openDialog} from "./dialogs.js";
import {h, number} from "./dom.js";
import {emit} from "./events.js";
import {state} from "./state.js";

let base = null; // for new chats

/** The model's own defaults. */
const defaults = () => ({system: "", sampling: {...state.info.defaults}, pan_and_scan: false});

/** What is sent with a question and kept with its chat. */
export const chatSettings = () => structuredClone(state.settings);

export async function loadSettings() {
  base = complete((await read("settings", "base"))?.value);
  state.settings = base;
}

/** Those of a chat, else those for new chats. */
export function useSettingsOf(chat) {
  state.settings = chat?.settings ? complete(chat.settings) : structuredClone(base);
}

/** Stored settings within what this model takes. */
function complete(stored) {
  const {sampling, ...rest} = {...defaults(), ...stored};
  const settings = {...rest, sampling: {...state.info.defaults, ...sampling}};
  settings.sampling.max_new_tokens = Math.min(settings.sampling.max_new_tokens, state.info.max_new_tokens_limit);
  return settings;
}

async function save() {
  const value = chatSettings();
  base = structuredClone(value);
  await write("settings", {name: "base", value});
  if (state.chat)
    await changeChat(state.chat.id, (chat) => {
      chat.settings = value;
    });
  emit("settings");
}

// [name, label, lowest, highest, step, help]; the highest of the first is the model's
const SLIDERS = [
  ["max_new_tokens", "Max new tokens", 1, null, 1, "An answer is cut off at this length; it can be continued."],
  ["temperature", "Temperature", 0.05, 2, 0.05, "Lower is steadier, higher is freer."],
  ["top_p", "Top-p", 0.05, 1, 0.01, "Picks among the likeliest tokens of this total."],
  ["top_k", "Top-k", 0, 200, 1, "Picks among this many likeliest tokens; 0 is all."],
];

export function openSettings() {
  const content = h("div", {class: "settings"});
  const draw = () =>
    content.replaceChildren(
      h("p", {class: "help"}, "For this chat and for new ones. They are kept in this browser."),
      drawSystem(),
      ...SLIDERS.map(drawSlider),
      drawCheck(
        "Greedy",
        "Always the likeliest token: same question, same answer.",
        state.settings.sampling.greedy,
        (checked) => {
          state.settings.sampling.greedy = checked;
        },
      ),
      state.info.pan_and_scan && state.info.sees
        ? drawCheck(
            "Pan and scan",
            "Reads wide and tall pictures, such as documents, in several crops: more detail, more tokens.",
            state.settings.pan_and_scan,
            (checked) => {
              state.settings.pan_and_scan = checked;
            },
          )
        : "",
      drawTheme(),
      h("button", {type: "button", class: "button", onclick: restore}, "Restore the model's defaults"),
    );
  const restore = async () => {
    state.settings = defaults();
    await save();
    draw();
  };
  draw();
  openDialog("Settings", content, {class: "sheet"});
}

function drawSystem() {
  const area = h("textarea", {id: "system", rows: "4", dir: "auto", "aria-describedby": "system-help"});
  area.value = state.settings.system;
  area.addEventListener("input", () => {
    state.settings.system = area.value;
    save();
  });
  return h(
    "div",
    {class: "field"},
    h("label", {for: "system"}, "System prompt"),
    area,
    h("p", {class: "help", id: "system-help"}, "What the model reads before your first message."),
  );
}

function drawSlider([name, label, low, high, step, help]) {
  const most = high ?? state.info.max_new_tokens_limit;
  const value = state.settings.sampling[name];
  const bounds = {min: low, max: most, step, value};
  const slider = h("input", {type: "range", "aria-label": `${label}, slider`, ...bounds});
  const field = h("input", {type: "number", id: name, "aria-describedby": `${name}-help`, ...bounds});
  const set = (text) => {
    const wanted = Number(text);
    if (text === "" || !Number.isFinite(wanted)) return;
    state.settings.sampling[name] = Math.min(most, Math.max(low, step === 1 ? Math.round(wanted) : wanted));
    save();
  };
  slider.addEventListener("input", () => {
    field.value = slider.value;
    set(slider.value);
  });
  field.addEventListener("input", () => {
    slider.value = field.value;
    set(field.value);
  });
  field.addEventListener("change", () => {
    field.value = state.settings.sampling[name];
  });
  const {[name]: own} = state.info.defaults;
  return h(
    "div",
    {class: "field"},
    h("div", {class: "field-head"}, h("label", {for: name}, label), field),
    slider,
    h("p", {class: "help", id: `${name}-help`}, `${help} The model's default is ${number(own)}.`),
  );
}

function drawCheck(label, help, checked, set) {
  const id = label.toLowerCase().replaceAll(" ", "-");
  const box = h("input", {type: "checkbox", id, checked, "aria-describedby": `${id}-help`});
  box.addEventListener("change", () => {
    set(box.checked);
    save();
  });
  return h(
    "div",
    {class: "field check"},
    box,
    h("label", {for: id}, label),
    h("p", {class: "help", id: `${id}-help`}, help),
  );
}

function drawTheme() {
  const choose = h(
    "select",
    {id: "theme"},
    ["system", "light", "dark"].map((name) => h("option", {value: name, selected: theme() === name}, name)),
  );
  choose.addEventListener("change", () => {
    localStorage.setItem("theme", choose.value);
    applyTheme();
  });
  return h("div", {class: "field field-head"}, h("label", {for: "theme"}, "Look"), choose);
}

const theme = () => localStorage.getItem("theme") ?? "system";

export function applyTheme() {
  document.documentElement.dataset.theme = theme();
}

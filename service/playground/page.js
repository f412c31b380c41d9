// What every view needs of the page: elements, the link, the list of models, timings, bytes as text.

import { ask } from "./api.js";

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// --- The link: #view?name=value holds the whole state of a view. ---

export function readLink() {
  const [view, query = ""] = location.hash.slice(1).split("?", 2);
  return { view, params: new URLSearchParams(query) };
}

export function linkTo(view, params) {
  const kept = Object.entries(params).filter(([, value]) => value !== undefined && value !== "");
  const query = new URLSearchParams(kept).toString();
  return `#${view}${query && "?"}${query}`;
}

const links = new Map();
let writing;

// Remember a view's state, and show it in the address a moment later: browsers bound how often it may change.
export function setLink(view, params) {
  links.set(view, linkTo(view, params));
  clearTimeout(writing);
  writing = setTimeout(writeLink, 150);
}

// Call this before the address changes: afterwards nothing can write the history entry that Back returns to.
export function flushLink() {
  if (writing !== undefined) writeLink();
}

export function writeLink() {
  clearTimeout(writing);
  writing = undefined;
  const shown = document.body.dataset.view;
  const asked = readLink().view;
  if (asked !== shown && byId(`view-${asked}`)) return; // its link was clicked, and hashchange has not fired yet
  if (links.has(shown)) history.replaceState(null, "", links.get(shown));
}

// --- Models. ---

const details = new Map();
let list;

export async function catalogue() {
  list ??= (await ask("models")).data;
  return list;
}

export function forgetModels() {
  list = undefined;
  details.clear();
}

export async function modelDetail(name, version) {
  const key = `${name}/${version ?? ""}`;
  if (!details.has(key)) {
    details.set(key, (await ask(`models/${encodeURIComponent(name)}`, { query: { version } })).data);
  }
  return details.get(key);
}

const percent = (value) => `${(100 * value).toFixed(2)} %`;

// The one or two numbers that tell a model's quality best.
export function headline(metrics) {
  if (metrics.test_accuracy !== undefined) return `${percent(metrics.test_accuracy)} of the test images right`;
  if (metrics.label_agreement !== undefined) {
    const distance = metrics.frechet_distance;
    const also = distance === undefined ? "" : `, Fréchet distance ${distance.toFixed(2)}`;
    return `${percent(metrics.label_agreement)} read as the digit asked for${also}`;
  }
  return "";
}

// A model and a version to choose from. changed: called after a choice.
export class Picker {
  #model;
  #version;
  #about;
  #models = [];

  constructor(prefix, changed) {
    this.#model = byId(`${prefix}-model`);
    this.#version = byId(`${prefix}-version`);
    this.#about = byId(`${prefix}-about`);
    this.#model.addEventListener("change", () => {
      this.#fillVersions();
      changed();
    });
    this.#version.addEventListener("change", () => {
      this.#describe();
      changed();
    });
  }

  get name() {
    return this.#model.value;
  }

  // undefined for the latest, so that a link keeps leading to the latest
  get version() {
    if (!this.#models.length) return undefined;
    const latest = this.#models.find((each) => each.name === this.name)?.version;
    const chosen = Number(this.#version.value);
    return chosen === latest ? undefined : chosen;
  }

  // Fill in the models of a task; choose the one asked for, or else keep the choice, or else take the default.
  // suits: which of them the view can use.
  async fill(task, params, { preferred, suits = () => true } = {}) {
    const { models, defaults } = await catalogue();
    this.#models = models.filter((each) => each.task === task && suits(each));
    if (!this.#models.length) throw new Error(`This service has no model for ${task} that this view can use.`);
    const names = this.#models.map((each) => each.name);
    const asked = params.get("model");
    const [before, version] = [this.name, this.version];
    this.#model.replaceChildren(...names.map((each) => element("option", { value: each }, each)));
    const fallback = names.includes(preferred) ? preferred : defaults[task];
    this.#model.value = [asked, before, fallback, names[0]].find((each) => names.includes(each));
    this.#fillVersions(asked || !before ? Number(params.get("version")) : version);
    if (asked && !names.includes(asked)) warn(`Model ${asked} is not served here: ${this.name} answers.`);
  }

  #fillVersions(asked) {
    const model = this.#models.find((each) => each.name === this.name);
    const versions = [...model.versions].reverse();
    this.#version.replaceChildren(...versions.map((each) => element("option", { value: each }, String(each))));
    this.#version.value = versions.includes(asked) ? asked : model.version;
    this.#describe();
  }

  async #describe() {
    if (!this.#about) return;
    const name = this.name;
    const version = this.version;
    try {
      const { metrics } = await modelDetail(name, version);
      if (name !== this.name) return;
      const more = element("a", { href: linkTo("models", { name, version }) }, `about ${name}`);
      const quality = headline(metrics);
      this.#about.replaceChildren(quality && `${quality}; `, more);
    } catch {
      this.#about.replaceChildren();
    }
  }
}

// --- Numbers and bytes. ---

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

// Show where a request's time went.
export function showTiming(id, { total, queue, device, batch }) {
  const rows = [
    ["Round trip", milliseconds(total)],
    ["In the queue", queue === undefined ? undefined : milliseconds(queue)],
    ["On the device", device === undefined ? undefined : milliseconds(device)],
    ["Batch", batch === undefined ? undefined : `${batch} ${batch === 1 ? "image" : "images"}`],
  ];
  const shown = rows.filter(([, value]) => value !== undefined);
  byId(id).replaceChildren(
    ...shown.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

export function toBase64Url(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return urlSafe(btoa(text));
}

export const urlSafe = (base64) => base64.replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

// Returns null for text that is not base64.
export function fromBase64Url(text) {
  try {
    const decoded = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
    return Uint8Array.from(decoded, (character) => character.charCodeAt(0));
  } catch {
    return null;
  }
}

export const randomSeed = () => Math.floor(Math.random() * 1_000_000);

// Return a whole number within the bounds of its field, and show it there.
export function readNumber(input, fallback) {
  const value = Math.round(Number(input.value));
  const usable = input.value.trim() !== "" && Number.isSafeInteger(value);
  const bounded = Math.min(Math.max(usable ? value : fallback, Number(input.min)), Number(input.max));
  input.value = bounded;
  return bounded;
}

// Show a model's labels as radio buttons. Returns what reads the choice.
export function fillLabels(id, labels, chosen, changed) {
  const box = byId(id);
  box.closest("fieldset").hidden = !labels.length;
  const choices = labels.map((label) => {
    const input = element("input", { type: "radio", name: id, value: label, checked: label === chosen });
    input.addEventListener("change", changed);
    return element("label", {}, input, element("span", {}, label));
  });
  box.replaceChildren(...choices);
  return () => box.querySelector("input:checked")?.value;
}

// Show something that concerns the whole page; nothing for "".
export function warn(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

let announcing;

// Tell a screen reader, once nothing has changed for a moment.
export function announce(text, milliseconds = 0) {
  clearTimeout(announcing);
  announcing = setTimeout(() => {
    byId("announce").textContent = text;
  }, milliseconds);
}

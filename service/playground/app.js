// The page: which view is shown, the API key, pictures that are dropped or pasted.

import { apiKey } from "./api.js";
import { DrawView } from "./draw.js";
import { ExploreView } from "./explore.js";
import { GenerateView } from "./generate.js";
import { ModelsView } from "./models.js";
import * as page from "./page.js";

const { byId } = page;
const FIRST = "draw";
const KINDS = { draw: DrawView, generate: GenerateView, explore: ExploreView, models: ModelsView };
const views = {};

function open() {
  const { view: asked, params } = page.readLink();
  const view = KINDS[asked] ? asked : (document.body.dataset.view ?? FIRST);
  const changed = view !== document.body.dataset.view;
  document.body.dataset.view = view;
  if (changed) {
    for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== `view-${view}`;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `inkserve: ${byId(`${view}-title`).textContent.toLowerCase()}`;
  }
  if (asked && !KINDS[asked]) return page.writeLink(); // a jump inside the page
  page.warn("");
  views[view] ??= new KINDS[view]();
  return views[view].open(params);
}

addEventListener("click", page.flushLink, { capture: true }); // it may be on a link to another view

addEventListener("hashchange", async () => {
  const before = document.body.dataset.view;
  await open();
  if (document.body.dataset.view !== before) {
    scrollTo(0, 0);
    page.announce(byId(`${document.body.dataset.view}-title`).textContent);
  }
});

// --- Pictures. ---

function take(file) {
  if (document.body.dataset.view !== "draw") {
    page.flushLink();
    location.hash = "#draw"; // its event opens the view once more, which keeps the picture
    open();
  }
  views.draw.take(file);
}

const pictureOf = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/") || !file.type);

addEventListener("paste", (event) => {
  const file = pictureOf(event.clipboardData);
  if (file) take(file);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("paper").classList.add("dragged");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("paper").classList.remove("dragged");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("paper").classList.remove("dragged");
  const file = pictureOf(event.dataTransfer);
  if (file) take(file);
});

// --- The API key. ---

const dialog = byId("key-dialog");

addEventListener("key-wanted", () => {
  askForKey(apiKey.get() ? "The service does not know this API key." : "This service asks for an API key.");
});

function askForKey(reason) {
  byId("key-button").hidden = false;
  byId("key-reason").textContent = reason;
  if (!dialog.open) dialog.showModal();
}

function useKey(key) {
  apiKey.set(key);
  byId("key-input").value = "";
  dialog.close();
  page.forgetModels();
  page.writeLink();
  open();
}

byId("key-button").hidden = !apiKey.get();
byId("key-button").addEventListener("click", () => {
  askForKey(apiKey.get() ? "A key is in use." : "This service asks for an API key.");
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("key-input").value.trim();
  if (key) useKey(key);
});
byId("key-forget").addEventListener("click", () => useKey(""));
byId("key-cancel").addEventListener("click", () => dialog.close());

// --- The link. ---

byId("copy-link").addEventListener("click", async (event) => {
  page.writeLink();
  const button = event.currentTarget;
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "See the address bar";
  }
  page.announce(button.textContent);
  setTimeout(() => (button.textContent = "Copy link"), 2000);
});

open();

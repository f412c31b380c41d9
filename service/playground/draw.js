// The view "Draw": a drawing or a picture is classified whenever it changes.

import { ask, Latest, pause } from "./api.js";
import { Drawing } from "./drawing.js";
import { Explainer } from "./explain.js";
import * as page from "./page.js";

const { byId, element } = page;
const GAP_MS = 60; // at least, from one request to the next
const MOST_TRIES = 10; // of a service that is busy or away
const MOST_BARS = 10;
const LONGEST_LINK = 4000;

export class DrawView {
  #drawing;
  #picker;
  #opened = false; // whether the list of models was asked for, and came or failed
  #source = null; // what is classified: "ink", or the Blob of a picture
  #png = ""; // what the model saw of a picture, for the link
  #jobs = new Latest((job) => this.#classify(job));
  #bars = new Map();
  #generation = 0; // grows with each change: a result of an older one is not shown
  #reported;
  #tries = 0; // in vain, one after the other
  #explainer = new Explainer(() => this.#subject());

  constructor() {
    this.#drawing = new Drawing(byId("ink"), (live) => this.#inkChanged(live));
    this.#picker = new page.Picker("draw", () => this.#refresh());
    byId("undo").addEventListener("click", () => this.#drawing.undo());
    byId("clear").addEventListener("click", () => this.#drawing.clear());
    for (const id of ["file", "camera"]) {
      byId(id).addEventListener("change", (event) => {
        const [file] = event.target.files;
        event.target.value = "";
        if (file) this.take(file);
      });
    }
    this.#prepareBars(Array.from("0123456789"));
  }

  async open(params) {
    try {
      await this.#picker.fill("classification", params, { suits: ({ preprocess }) => preprocess !== "none" });
    } catch (error) {
      return this.#fail(error);
    } finally {
      this.#opened = true;
    }
    const png = page.fromBase64Url(params.get("png") ?? "");
    const ink = page.fromBase64Url(params.get("ink") ?? "");
    if (png?.length) {
      await this.take(new Blob([png], { type: "image/png" }));
    } else if (ink?.length) {
      this.#drawing.fromBytes(ink);
      this.#inkChanged(false);
    } else if (this.#source === null) {
      this.#showNothing();
    } else {
      this.#refresh();
    }
  }

  // Classify the picture in a file.
  async take(file) {
    this.#source = file;
    this.#png = "";
    this.#drawing.show(null);
    this.#refresh();
    try {
      const picture = await createImageBitmap(file);
      if (this.#source === file) this.#drawing.show(picture);
    } catch {
      // a kind of picture that the browser does not know; the service may
    }
  }

  #inkChanged(live) {
    this.#source = this.#drawing.isEmpty ? null : "ink";
    if (this.#source) this.#refresh(live);
    else this.#showNothing();
    if (this.#drawing.penDown !== null && !this.#drawing.isEmpty) {
      page.announce(this.#drawing.penDown ? "Pen down" : "Pen up");
    }
  }

  #refresh(live = false) {
    this.#generation += 1;
    this.#explainer.withdraw();
    const isEmpty = this.#source === null;
    byId("invitation").hidden = !isEmpty;
    byId("undo").disabled = this.#drawing.isEmpty;
    byId("clear").disabled = isEmpty;
    if (isEmpty) return this.#showNothing();
    this.#tries = 0;
    byId("verdict").setAttribute("aria-busy", "true");
    if (!this.#opened) return; // the models are not known yet: `open` comes back here
    if (!live) this.#setLink();
    this.#jobs.push({ generation: this.#generation, source: this.#source });
  }

  async #classify({ generation, source }) {
    const started = performance.now();
    byId("verdict").setAttribute("aria-busy", "true");
    try {
      const { body, type, model, version } = await this.#subject(source);
      const query = { model, version, show_input: true };
      const { data, timing } = await ask("classify", { query, body, type });
      page.showTiming("draw-timing", timing);
      if (this.#source === source) this.#show(data, source);
    } catch (error) {
      if (this.#source === source) await this.#failed(error, { generation, source });
    }
    if (generation === this.#generation) byId("verdict").removeAttribute("aria-busy"); // nothing newer waits
    await pause(Math.max(0, GAP_MS - (performance.now() - started)));
  }

  async #subject(source = this.#source) {
    const body = source === "ink" ? await this.#drawing.toPng() : source;
    const type = source === "ink" ? "image/png" : body.type || undefined;
    return { body, type, model: this.#picker.name, version: this.#picker.version };
  }

  #show({ model, version, predictions: [prediction] }, source) {
    clearTimeout(this.#reported);
    this.#tries = 0;
    const { label, probability, probabilities, input, abstain } = prediction;
    if (abstain) {
      this.#state("unsure", "?", "Not sure");
      byId("draw-message").textContent = `This does not look like a digit. The nearest is ${label}.`;
    } else {
      this.#state("known", label, `${percent(probability)} sure`);
      byId("answer").prepend(element("span", { className: "unseen" }, `${label}, `));
    }
    byId("seen").src = `data:image/png;base64,${input}`;
    byId("seen").alt = `The picture as ${model} gets it${abstain ? "" : `, with a ${label}`}`;
    byId("seen").hidden = false;
    this.#explainer.offer(model);
    const entries = Object.entries(probabilities);
    const many = entries.length > MOST_BARS;
    const shown = many ? entries.sort((a, b) => b[1] - a[1]).slice(0, MOST_BARS) : entries;
    this.#prepareBars(many ? shown.map(([name]) => name) : Object.keys(probabilities));
    for (const [name, value] of shown) this.#bars.get(name)(value, name === label && !abstain);
    if (source !== "ink" && this.#source === source) {
      this.#png = input.length <= LONGEST_LINK ? page.urlSafe(input) : "";
      this.#setLink();
    }
    const verdict = abstain ? "Not sure: this does not look like a digit" : `${label}, ${percent(probability)} sure`;
    page.announce(`${verdict}, by ${model} version ${version}`, 700);
  }

  // An error: what cannot be read may be read after the next stroke; what comes too fast is tried again.
  async #failed(error, { generation, source }) {
    clearTimeout(this.#reported);
    if ([0, 429, 503].includes(error.status)) {
      this.#fail(error);
      this.#tries += 1;
      if (this.#tries > MOST_TRIES) return;
      await pause(1000 * (error.retrySeconds ?? 2));
      if (generation === this.#generation) this.#jobs.push({ generation, source });
      return;
    }
    if (source !== "ink" || error.status !== 400) return this.#fail(error);
    this.#state("unsure", "?", "No digit yet");
    const report = () => {
      if (generation !== this.#generation) return;
      byId("draw-message").textContent = this.#drawing.isLive ? "" : error.message;
      page.announce(`No digit yet. ${error.message}`);
    };
    this.#reported = setTimeout(report, 600);
  }

  #fail(error) {
    this.#state("failed", "!", "No answer");
    byId("draw-message").textContent = error.message;
    page.announce(error.message);
    if (error.status === 401) dispatchEvent(new CustomEvent("key-wanted"));
  }

  #state(state, digit, answer) {
    byId("verdict").dataset.state = state;
    byId("digit").textContent = digit;
    byId("answer").textContent = answer;
    byId("draw-message").textContent = "";
  }

  #showNothing() {
    this.#generation += 1;
    this.#source = null;
    this.#jobs.drop();
    byId("verdict").removeAttribute("aria-busy");
    clearTimeout(this.#reported);
    this.#state("empty", "?", "Waiting for your digit");
    byId("invitation").hidden = false;
    byId("undo").disabled = byId("clear").disabled = true;
    this.#explainer.withdraw();
    byId("seen").hidden = true;
    for (const set of this.#bars.values()) set(null, false);
    this.#setLink();
  }

  #setLink() {
    page.setLink("draw", {
      model: this.#picker.name,
      version: this.#picker.version,
      ink: this.#source === "ink" ? page.toBase64Url(this.#drawing.toBytes()) : undefined,
      png: this.#source === "ink" ? undefined : this.#png,
    });
  }

  // Make a bar for each label, if these are not the labels that have one.
  #prepareBars(labels) {
    if (labels.join("\n") === [...this.#bars.keys()].join("\n")) return;
    this.#bars = new Map();
    byId("bars").replaceChildren(
      ...labels.map((label) => {
        const fill = element("span", { className: "fill" });
        const value = element("span", { className: "value" });
        const row = element("li", {}, element("span", { className: "label" }, label), " ");
        row.append(element("span", { className: "track" }, fill), " ", value);
        this.#bars.set(label, (probability, best) => {
          fill.style.transform = `scaleX(${probability ?? 0})`;
          value.textContent = probability === null ? "" : percent(probability);
          row.classList.toggle("best", best);
        });
        return row;
      }),
    );
  }
}

function percent(probability) {
  if (probability > 0.999 && probability < 1) return "99.9 %";
  return `${(100 * probability).toFixed(1)} %`;
}

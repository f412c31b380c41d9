// The view "Explore": the images between two seeds and two digits, and a pad of two latent dimensions.

import { ask, Latest } from "./api.js";
import { drawLatents } from "./latent.js";
import * as page from "./page.js";

const { byId, element } = page;
const PREFERRED = "vae"; // its latents are smoother than a GAN's
const MAP_SIDE = 9; // images in each direction
const REACH = 3; // the pad goes from -REACH to REACH
const PROBE = 2;
const MOST_PROBED = 512; // latents; of a larger model the first two are shown
const OCTETS = "application/octet-stream";

export class ExploreView {
  #picker = new page.Picker("explore", () => this.#modelChanged());
  #label = () => undefined;
  #size = 0; // of the latents
  #ranked = new Map(); // dimensions by how much they change the picture, for each model
  #strips = new Latest((job) => this.#showStrip(job));
  #maps = new Latest((job) => this.#showMap(job));
  #points = new Latest((job) => this.#showPoint(job));

  constructor() {
    for (const id of ["from", "to", "last", "steps"]) field(id).addEventListener("change", () => this.#refresh());
    for (const id of ["dx", "dy"]) field(id).addEventListener("change", () => this.#refreshPad());
    for (const id of ["x", "y"]) field(id).addEventListener("input", () => this.#refreshPoint());
    byId("explore-dice").addEventListener("click", () => {
      field("from").value = page.randomSeed();
      field("to").value = page.randomSeed();
      this.#refresh();
    });
    const pad = byId("pad");
    const follow = (event) => this.#follow(event);
    pad.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      pad.setPointerCapture(event.pointerId);
      this.#follow(event);
      pad.addEventListener("pointermove", follow);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      pad.addEventListener(name, () => pad.removeEventListener("pointermove", follow));
    }
  }

  async open(params) {
    const defaults = { from: 1, to: 2, steps: 9, x: 0, y: 0 };
    for (const [id, value] of Object.entries(defaults)) {
      field(id).value = params.get(id) ?? (field(id).dataset.set ? field(id).value : value);
      field(id).dataset.set = "true";
    }
    try {
      await this.#picker.fill("generation", params, { preferred: PREFERRED });
    } catch (error) {
      return report(error);
    }
    const label = params.get("label") ?? this.#label() ?? "3";
    await this.#prepare(label, params.get("last") ?? field("last").value, params.get("dx"), params.get("dy"));
  }

  async #modelChanged() {
    await this.#prepare(this.#label(), field("last").value);
  }

  // Fill in what depends on the model: labels and dimensions.
  async #prepare(label, last, dx, dy) {
    try {
      const { labels, inputs } = await page.modelDetail(this.#picker.name, this.#picker.version);
      const choices = inputs.some((each) => each.name === "label") ? labels : [];
      const known = choices.includes(label) ? label : choices[0];
      this.#label = page.fillLabels("explore-labels", choices, known, () => this.#refresh());
      const digits = choices.map((each) => element("option", { value: each }, each));
      field("last").replaceChildren(element("option", { value: "" }, "The same"), ...digits);
      field("last").value = choices.includes(last) ? last : "";
      field("last").closest("label").hidden = !choices.length;
      this.#size = inputs.find((each) => each.name === "z").shape[1];
      const ranked = await this.#rankedDimensions();
      for (const [id, asked, fallback] of [["dx", dx, ranked[0]], ["dy", dy, ranked[1] ?? ranked[0]]]) {
        const options = ranked.map((each) => element("option", { value: each }, `Dimension ${each}`));
        field(id).replaceChildren(...options);
        field(id).value = ranked.includes(Number(asked ?? NaN)) ? asked : fallback;
      }
      this.#refresh();
    } catch (error) {
      report(error);
    }
  }

  // Return every latent dimension, the one that changes the picture most first.
  async #rankedDimensions() {
    const key = `${this.#picker.name}/${this.#picker.version}`;
    if (this.#ranked.has(key)) return this.#ranked.get(key);
    const dimensions = Array.from({ length: this.#size }, (_, index) => index);
    if (this.#size <= MOST_PROBED) {
      const rows = dimensions.flatMap((index) =>
        [-PROBE, PROBE].map((value) => {
          const z = new Float32Array(this.#size);
          z[index] = value;
          return z;
        }),
      );
      const { pixels } = await this.#images(rows);
      const each = pixels.length / rows.length;
      const effect = dimensions.map((index) => {
        let sum = 0;
        for (let i = 0; i < each; i++) sum += Math.abs(pixels[2 * index * each + i] - pixels[(2 * index + 1) * each + i]);
        return sum;
      });
      dimensions.sort((a, b) => effect[b] - effect[a]);
    }
    this.#ranked.set(key, dimensions);
    return dimensions;
  }

  #refresh() {
    this.#strips.push({
      seed: page.readNumber(field("from"), 1),
      to_seed: page.readNumber(field("to"), 2),
      from: this.#label(),
      to: field("last").value || undefined,
      steps: page.readNumber(field("steps"), 9),
    });
    this.#refreshPad();
  }

  #refreshPad() {
    const rows = [];
    for (let row = 0; row < MAP_SIDE; row++) {
      for (let column = 0; column < MAP_SIDE; column++) {
        rows.push(this.#latentsAt(mapValue(column), -mapValue(row)));
      }
    }
    this.#maps.push(rows);
    this.#refreshPoint();
  }

  #refreshPoint() {
    const [x, y] = [Number(field("x").value), Number(field("y").value)];
    byId("x-text").textContent = `Value across: ${x.toFixed(1)}`;
    byId("y-text").textContent = `Value up: ${y.toFixed(1)}`;
    byId("cross").style.left = `${(50 * (x + REACH)) / REACH}%`;
    byId("cross").style.top = `${(50 * (REACH - y)) / REACH}%`;
    this.#points.push(this.#latentsAt(x, y));
    page.setLink("explore", {
      model: this.#picker.name,
      version: this.#picker.version,
      label: this.#label(),
      last: field("last").value || undefined,
      ...Object.fromEntries(["from", "to", "steps", "dx", "dy", "x", "y"].map((id) => [id, field(id).value])),
    });
  }

  #latentsAt(x, y) {
    const z = drawLatents(field("from").value, this.#size);
    z[Number(field("dx").value)] = x;
    z[Number(field("dy").value)] = y;
    return z;
  }

  #follow(event) {
    const box = byId("pad").getBoundingClientRect();
    const value = (part) => Math.min(Math.max(REACH * (2 * part - 1), -REACH), REACH).toFixed(1);
    field("x").value = value((event.clientX - box.left) / box.width);
    field("y").value = value((box.bottom - event.clientY) / box.height);
    this.#refreshPoint();
  }

  async #images(rows) {
    const body = new Float32Array(rows.length * this.#size);
    rows.forEach((row, index) => body.set(row, index * this.#size));
    return this.#asked("generate", { label: this.#label() }, { body, type: OCTETS });
  }

  // Return the images of a request for raw pixels, and the labels that the service tells of them.
  async #asked(path, query, sent = {}) {
    const chosen = { model: this.#picker.name, version: this.#picker.version, ...query };
    const { data, headers, timing } = await ask(path, { query: chosen, ...sent, accept: OCTETS });
    page.showTiming("explore-timing", timing);
    byId("explore-message").textContent = "";
    byId("explore-message").classList.remove("error");
    const [count, height, width, channels = 1] = headers.get("inkserve-shape").split(",").map(Number);
    const labels = (headers.get("inkserve-labels") ?? "").split(",").map(decodeURIComponent);
    return { pixels: new Uint8Array(data), count, height, width, channels, labels };
  }

  async #showStrip(way) {
    try {
      const images = await this.#asked("interpolate", way);
      const items = Array.from({ length: images.count }, (_, index) => {
        const label = images.labels[index] ? `${images.labels[index]}, ` : "";
        const canvas = element("canvas", { role: "img", "aria-label": `${label}step ${index + 1} of ${images.count}` });
        canvas.width = images.width;
        canvas.height = images.height;
        canvas.getContext("2d").putImageData(imageData(images, index), 0, 0);
        return element("li", {}, canvas);
      });
      byId("strip").replaceChildren(...items);
    } catch (error) {
      report(error);
    }
  }

  async #showMap(rows) {
    try {
      const images = await this.#images(rows);
      const map = byId("map");
      map.width = MAP_SIDE * images.width;
      map.height = MAP_SIDE * images.height;
      const context = map.getContext("2d");
      rows.forEach((_, index) => {
        const [row, column] = [Math.floor(index / MAP_SIDE), index % MAP_SIDE];
        context.putImageData(imageData(images, index), column * images.width, row * images.height);
      });
    } catch (error) {
      report(error);
    }
  }

  async #showPoint(z) {
    try {
      const images = await this.#images([z]);
      const canvas = byId("point");
      canvas.width = images.width;
      canvas.height = images.height;
      canvas.getContext("2d").putImageData(imageData(images, 0), 0, 0);
    } catch (error) {
      report(error);
    }
  }
}

const field = (id) => byId(`explore-${id}`);

// The value in the middle of the map's nth image.
const mapValue = (n) => REACH * ((2 * n + 1) / MAP_SIDE - 1);

function imageData({ pixels, width, height, channels }, index) {
  const data = new ImageData(width, height);
  const start = index * width * height * channels;
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) data.data[4 * i + c] = pixels[start + i * channels + (channels === 3 ? c : 0)];
    data.data[4 * i + 3] = 255;
  }
  return data;
}

function report(error) {
  byId("explore-message").textContent = error.message;
  byId("explore-message").classList.add("error");
  if (error.status === 401) dispatchEvent(new CustomEvent("key-wanted"));
}

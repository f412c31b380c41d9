// The view "Generate": a gallery for a digit and a seed.

import { ask, Latest } from "./api.js";
import * as page from "./page.js";

const { byId, element } = page;
const MIXED = "mixed";

export class GenerateView {
  #picker = new page.Picker("generate", () => this.#modelChanged());
  #label = () => MIXED;
  #seed = byId("generate-seed");
  #count = byId("generate-count");
  #jobs = new Latest((job) => this.#generate(job));

  constructor() {
    this.#seed.addEventListener("change", () => this.#refresh());
    this.#count.addEventListener("change", () => this.#refresh());
    byId("generate-dice").addEventListener("click", () => {
      this.#seed.value = page.randomSeed();
      this.#refresh();
    });
  }

  async open(params) {
    const before = { seed: this.#seed.value || "1", count: this.#count.value || "16" };
    this.#seed.value = params.get("seed") ?? before.seed;
    this.#count.value = params.get("count") ?? before.count;
    try {
      await this.#picker.fill("generation", params);
    } catch (error) {
      return report(error);
    }
    await this.#fillLabels(params.get("label") ?? this.#label());
    this.#refresh();
  }

  async #modelChanged() {
    await this.#fillLabels(this.#label());
    this.#refresh();
  }

  async #fillLabels(chosen) {
    try {
      const { labels, inputs } = await page.modelDetail(this.#picker.name, this.#picker.version);
      const choices = inputs.some((each) => each.name === "label") ? [...labels, MIXED] : [];
      const known = choices.includes(chosen) ? chosen : MIXED;
      this.#label = page.fillLabels("generate-labels", choices, known, () => this.#refresh());
    } catch (error) {
      report(error);
    }
  }

  #refresh() {
    const query = {
      model: this.#picker.name,
      version: this.#picker.version,
      label: this.#label(),
      seed: page.readNumber(this.#seed, 1),
      count: page.readNumber(this.#count, 16),
    };
    page.setLink("generate", query);
    this.#jobs.push(query);
  }

  async #generate(query) {
    byId("gallery").setAttribute("aria-busy", "true");
    try {
      const { data, timing } = await ask("generate", { query });
      page.showTiming("generate-timing", timing);
      byId("gallery").replaceChildren(...data.images.map(picture));
      const what = query.label && query.label !== MIXED ? `of the digit ${query.label}` : "of all digits";
      const images = data.images.length === 1 ? "1 image" : `${data.images.length} images`;
      byId("generate-message").textContent = `${images} ${what}, seed ${data.seed}, by ${data.model} version ${data.version}`;
      byId("generate-message").classList.remove("error");
    } catch (error) {
      report(error);
    }
    byId("gallery").removeAttribute("aria-busy");
  }
}

function picture({ label, png }, index) {
  const name = label === null ? `image ${index + 1}` : `generated ${label}`;
  const image = element("img", { src: `data:image/png;base64,${png}`, alt: `${name}: open in Draw` });
  return element("li", {}, element("a", { href: page.linkTo("draw", { png: page.urlSafe(png) }) }, image));
}

function report(error) {
  byId("generate-message").textContent = error.message;
  byId("generate-message").classList.add("error");
  if (error.status === 401) dispatchEvent(new CustomEvent("key-wanted"));
}

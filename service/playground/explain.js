// An explanation of what was read: a heat map over the picture that the model sees, and the same in words.

import { ask } from "./api.js";
import * as page from "./page.js";

const { byId, element } = page;
const METHODS = { occlusion: "Occlusion", lime: "LIME", integrated_gradients: "Integrated gradients" };
const GRADIENT = "integrated_gradients"; // only of models that have a gradient model
const LINES = ["upper", "middle", "lower"];
const COLUMNS = ["left", "middle", "right"];

export class Explainer {
  #subject;
  #generation = 0; // grows whenever what is shown is out of date

  // subject: returns a promise of the body, its type, the model and the version that were classified last.
  constructor(subject) {
    this.#subject = subject;
    byId("explain").addEventListener("click", () => (this.#isShown ? this.hide() : this.#show()));
    byId("explain-method").addEventListener("change", () => this.#isShown && this.#show());
    this.#list(false);
  }

  get #isShown() {
    return byId("explain").getAttribute("aria-pressed") === "true";
  }

  // Offer the methods that a model has.
  async offer(model) {
    const generation = this.#generation;
    const { models } = await page.catalogue();
    if (generation !== this.#generation) return;
    this.#list(models.some((each) => each.name === `${model}-gradient`));
    byId("explain").disabled = byId("explain-method").disabled = false;
  }

  #list(hasGradient) {
    const select = byId("explain-method");
    const names = Object.keys(METHODS).filter((name) => name !== GRADIENT || hasGradient);
    if (names.length === select.options.length) return;
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => element("option", { value: name }, METHODS[name])));
    if (names.includes(chosen)) select.value = chosen;
  }

  hide() {
    this.#generation += 1;
    byId("explain").setAttribute("aria-pressed", "false");
    byId("heat").hidden = true;
    byId("why").textContent = "";
  }

  // There is nothing to explain.
  withdraw() {
    this.hide();
    byId("explain").disabled = byId("explain-method").disabled = true;
  }

  async #show() {
    const generation = (this.#generation += 1);
    byId("explain").setAttribute("aria-pressed", "true");
    byId("why").textContent = "Asking why …";
    try {
      const { body, type, model, version } = await this.#subject();
      const query = { model, version, method: byId("explain-method").value, show_overlay: true };
      const { data } = await ask("explain", { query, body, type });
      if (generation !== this.#generation) return;
      const [{ target, attributions, overlay }] = data.explanations;
      const words = inWords(target, attributions);
      byId("heat").src = `data:image/png;base64,${overlay}`;
      byId("heat").alt = `Heat map of ${METHODS[data.method]}. ${words}`;
      byId("heat").hidden = false;
      byId("why").textContent = `${words} ${data.rows} rows in ${Math.round(data.milliseconds)} ms.`;
      page.announce(words);
    } catch (error) {
      if (generation !== this.#generation) return;
      this.hide();
      byId("why").textContent = error.message;
      page.announce(error.message);
      if (error.status === 401) dispatchEvent(new CustomEvent("key-wanted"));
    }
  }
}

// Where a map is strongest: the ninths of the picture that speak most for and against the target.
function inWords(target, attributions) {
  const sums = { for: new Array(9).fill(0), against: new Array(9).fill(0) };
  attributions.forEach((line, y) => {
    line.forEach((value, x) => {
      const place = 3 * Math.floor((3 * y) / attributions.length) + Math.floor((3 * x) / line.length);
      sums[value > 0 ? "for" : "against"][place] += Math.abs(value);
    });
  });
  const [forIt, against] = [Math.max(...sums.for), Math.max(...sums.against)];
  if (forIt + against === 0) return `Nothing speaks for ${target} or against it.`;
  const said = [];
  if (forIt > 0) said.push(`Red speaks for ${target}, most in the ${nameOf(sums.for.indexOf(forIt))}.`);
  if (against > forIt / 10) said.push(`Blue speaks against it, most in the ${nameOf(sums.against.indexOf(against))}.`);
  return said.join(" ");
}

function nameOf(place) {
  const [line, column] = [LINES[Math.floor(place / 3)], COLUMNS[place % 3]];
  return line === column ? "middle" : `${line} ${column}`;
}

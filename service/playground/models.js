// The view "Models": every model that is served, its versions and its metrics.

import { ask } from "./api.js";
import * as page from "./page.js";

const { byId, element } = page;
const TRIED_IN = { classification: "draw", generation: "generate" };

export class ModelsView {
  async open(params) {
    try {
      const { models, failed, defaults } = await page.catalogue();
      const asked = params.get("name");
      const chosen = models.find((each) => each.name === asked) ?? models[0];
      byId("model-list").replaceChildren(
        ...models.map((each) => entry(each, each === chosen, defaults[each.task] === each.name)),
        ...failed.map(failure),
      );
      if (!chosen) return;
      const version = Number(params.get("version")) || undefined;
      const known = chosen.versions.includes(version) && version !== chosen.version ? version : undefined;
      page.setLink("models", { name: chosen.name, version: known });
      show(await page.modelDetail(chosen.name, known));
    } catch (error) {
      byId("model-detail").replaceChildren(element("p", { className: "message error" }, error.message));
      if (error.status === 401) dispatchEvent(new CustomEvent("key-wanted"));
    }
  }
}

function entry({ name, task, versions }, current, isDefault) {
  const link = element("a", { href: page.linkTo("models", { name }) }, element("strong", {}, name));
  if (current) link.setAttribute("aria-current", "true");
  const count = versions.length === 1 ? `version ${versions[0]}` : `versions ${versions.join(", ")}`;
  link.append(element("span", {}, `${task}, ${count}${isDefault ? ", the default" : ""}`));
  return element("li", {}, link);
}

function failure({ name, version, reason }) {
  const which = version === null ? name : `${name}, version ${version}`;
  return element("li", { className: "error" }, element("strong", {}, which), element("span", {}, reason));
}

function show(model) {
  const { name, version, versions, task, description, metrics, labels, inputs, outputs, sha256, command, card } = model;
  const facts = [
    ["Task", task],
    ["Version", versionsText(name, version, versions)],
    ["Labels", labels.length ? labels.join(", ") : "none"],
    ["Inputs", inputs.map(tensor).join(", ")],
    ["Outputs", outputs.map(tensor).join(", ")],
    ["Made by", command ? element("code", {}, command) : "not told"],
    ["SHA-256", element("code", {}, sha256)],
  ];
  const view = TRIED_IN[task];
  const link = { model: name, version: version === Math.max(...versions) ? undefined : version };
  byId("model-detail").replaceChildren(
    element("h2", {}, name),
    element("p", {}, description),
    ...(view ? [element("p", {}, element("a", { className: "button", href: page.linkTo(view, link) }, "Try it"))] : []),
    element("h3", {}, "Metrics"),
    list(Object.entries(metrics).map(([key, value]) => [words(key), number(value)])),
    element("h3", {}, "Facts"),
    list(facts),
    layers(name, version),
    ...(card ? [element("h3", {}, "Card"), element("pre", { tabIndex: 0, role: "region", "aria-label": "Card" }, card)] : []),
  );
}

// The layers, asked for when they are opened.
function layers(name, version) {
  const box = element("details", { className: "layers" }, element("summary", {}, "Layers"));
  box.addEventListener("toggle", async () => {
    if (!box.open || box.querySelector("table")) return;
    try {
      const { data } = await ask(`models/${encodeURIComponent(name)}/graph`, { query: { version } });
      box.replaceChildren(box.firstChild, table(data));
    } catch (error) {
      box.replaceChildren(box.firstChild, element("p", { className: "message error" }, error.message));
    }
  });
  return box;
}

function table({ layers, parameters, multiply_adds: cost }) {
  const most = Math.max(1, ...layers.map((each) => each.multiply_adds ?? 0));
  const rows = layers.map((each) => {
    const fill = element("span", { className: "fill" });
    fill.style.transform = `scaleX(${(each.multiply_adds ?? 0) / most})`;
    const shape = each.shape === null ? "unknown" : each.shape.map((size) => (size < 0 ? "n" : size)).join(" x ");
    return element(
      "tr",
      {},
      element("th", { scope: "row", title: each.name }, each.operator),
      element("td", {}, shape),
      element("td", {}, count(each.parameters)),
      element("td", {}, count(each.multiply_adds), element("span", { className: "cost" }, fill)),
    );
  });
  const heads = ["Operator", "Output", "Parameters", "Multiply-adds"];
  return element(
    "div",
    { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Layers" },
    element(
      "table",
      {},
      element("caption", {}, `${layers.length} layers, ${count(parameters)} parameters, ${count(cost)} multiply-adds a row; n is the batch`),
      element("thead", {}, element("tr", {}, ...heads.map((each) => element("th", { scope: "col" }, each)))),
      element("tbody", {}, ...rows),
    ),
  );
}

const count = (value) => (value === null ? "unknown" : value.toLocaleString("en"));

function versionsText(name, version, versions) {
  if (versions.length === 1) return String(version);
  const links = versions.map((each) =>
    each === version ? element("strong", {}, String(each)) : element("a", { href: page.linkTo("models", { name, version: each }) }, String(each)),
  );
  return element("span", {}, ...links.flatMap((each, index) => (index ? [" ", each] : [each])));
}

function list(pairs) {
  const rows = pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return element("dl", { className: "facts" }, ...rows);
}

const words = (key) => key.replace(/_/g, " ");
const tensor = ({ name, datatype, shape }) => `${name}: ${datatype} [${shape.join(", ")}]`;
const number = (value) => (typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(5))) : String(value));

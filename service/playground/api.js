// Requests to the service: the API key, the time that each one took, errors in words. Knows nothing of the page.

const BASE = new URL("../", import.meta.url);
const STORE = "inkserve-api-key";
const TIMEOUT_MS = 40_000;

let keyInMemory = "";

export const apiKey = {
  get() {
    try {
      return sessionStorage.getItem(STORE) ?? "";
    } catch {
      return keyInMemory; // storage is switched off
    }
  },
  set(key) {
    keyInMemory = key;
    try {
      if (key) sessionStorage.setItem(STORE, key);
      else sessionStorage.removeItem(STORE);
    } catch {
      // keyInMemory has it
    }
  },
};

export class ApiError extends Error {
  constructor(status, message, retrySeconds) {
    super(message);
    this.status = status;
    this.retrySeconds = retrySeconds;
  }
}

// Ask for a path. query: undefined values are left out. Returns the response with `timing`, and its body as
// `data`: JSON, or an ArrayBuffer for `accept: application/octet-stream`. Throws ApiError.
export async function ask(path, { query = {}, body, type, accept = "application/json" } = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  const headers = { Accept: accept };
  if (type) headers["Content-Type"] = type;
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  const started = performance.now();
  let response, data;
  try {
    response = await fetch(url, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body,
      credentials: "omit",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const raw = response.ok && accept === "application/octet-stream";
    data = raw ? await response.arrayBuffer() : await response.json();
  } catch (error) {
    if (response?.ok === false) throw new ApiError(response.status, `The service answered ${response.status}.`);
    if (error.name === "TimeoutError") throw new ApiError(0, "The service did not answer in time.");
    throw new ApiError(0, "The service cannot be reached. Is it still running?");
  }
  if (!response.ok) throw failure(response, data);
  return { data, headers: response.headers, timing: readTiming(response.headers, performance.now() - started) };
}

function failure(response, data) {
  const seen = data?.error ?? `status ${response.status}`;
  const retry = Number(response.headers.get("retry-after")) || undefined;
  const words = {
    401: "The service asks for an API key.",
    403: `This API key is not enough: ${seen}.`,
    404: `Not found: ${seen}.`,
    413: `Too large: ${seen}.`,
    415: `Not a picture that the service can read: ${seen}.`,
    429: `The service is busy: ${seen}.`,
    500: "The service failed. Its log has the cause.",
    503: `The service is not ready: ${seen}.`,
    504: `Too late: ${seen}.`,
  };
  return new ApiError(response.status, words[response.status] ?? sentence(seen), retry);
}

function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

function readTiming(headers, milliseconds) {
  const sent = headers.get("server-timing") ?? "";
  const number = (pattern) => {
    const found = sent.match(pattern);
    return found ? Number(found[1]) : undefined;
  };
  return {
    total: milliseconds,
    queue: number(/queue;dur=([\d.]+)/),
    device: number(/compute;dur=([\d.]+)/),
    batch: number(/batch;desc="(\d+)"/),
  };
}

// Runs one job at a time. A job that comes meanwhile waits; a newer one takes its place.
export class Latest {
  #work;
  #next = null;
  #busy = false;

  constructor(work) {
    this.#work = work;
  }

  push(job) {
    this.#next = { job };
    if (!this.#busy) this.#run();
  }

  drop() {
    this.#next = null;
  }

  async #run() {
    this.#busy = true;
    while (this.#next) {
      const { job } = this.#next;
      this.#next = null;
      await this.#work(job);
    }
    this.#busy = false;
  }
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

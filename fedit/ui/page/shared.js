// What both modes use: elements, requests, streams, announcements.

export const byId = (id) => document.getElementById(id);

/** Make an element; text always becomes a text node, so nothing that a model writes is ever markup. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function problem(message) {
  const place = byId("problem");
  place.textContent = message ?? "";
  place.hidden = !message;
}

/** Say in words that mean something what the browser calls "network error" or "failed to fetch". */
async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof TypeError) throw new Error("The server cannot be reached. Is fedit ui still running?");
    throw error;
  }
}

async function reach(path, options) {
  const response = await reached(fetch(path, options));
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not one of the server's own messages
  }
  throw new Error(message);
}

const posted = (body, signal) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
  signal,
});

export const get = async (path) => (await reach(path)).json();
export const post = async (path, body) => (await reach(path, posted(body))).json();

/** Post and hand every event of the answer to `onEvent`; leaving by `signal` raises AbortError. */
export async function stream(path, body, signal, onEvent) {
  const response = await reach(path, posted(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reached(reader.read());
    if (done) throw new Error("The connection ended before the answer did.");
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const content = JSON.parse(data);
      if (content.error) throw new Error(content.error.message);
      onEvent(content);
    }
  }
}

export const wasStopped = (error) => error.name === "AbortError";

/** Let screen readers say something. */
export function announce(text) {
  const place = byId("live");
  place.append(make("p", {}, text));
  while (place.childElementCount > 20) place.firstElementChild.remove();
}

/** Announces streamed text a sentence at a time: every token would be noise. */
export class Narrator {
  #waiting = "";

  add(text) {
    this.#waiting += text;
    const end = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => this.#waiting.lastIndexOf(mark)));
    if (end > 0) {
      announce(this.#waiting.slice(0, end + 1).trim());
      this.#waiting = this.#waiting.slice(end + 1);
    }
  }

  end() {
    if (this.#waiting.trim()) announce(this.#waiting.trim());
    this.#waiting = "";
  }
}

/** The settings as requests have them; throws where one is out of range. */
export function settings() {
  const form = byId("settings-form");
  if (!form.checkValidity()) {
    document.dispatchEvent(new Event("show-settings"));
    form.reportValidity();
    throw new Error("One of the settings is out of range.");
  }
  const seed = byId("seed").value;
  return {
    max_tokens: Number(byId("max_tokens").value),
    temperature: Number(byId("temperature").value),
    top_p: Number(byId("top_p").value),
    ...(seed === "" ? {} : { seed: Number(seed) }),
  };
}

export const systemPrompt = () => byId("system").value.trim();

export function speed({ tokens, tokens_per_second }) {
  return `${tokens} ${tokens === 1 ? "token" : "tokens"}, ${tokens_per_second.toFixed(1)} tokens/s`;
}

/** Enter sends, Shift+Enter starts a line, also while a composition (Chinese, Japanese, …) is being typed. */
export function sendsOnEnter(area, form) {
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}

export function growing(area) {
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  area.addEventListener("input", fit);
  return fit;
}

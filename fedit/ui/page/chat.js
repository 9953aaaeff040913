// Chat: one conversation, answered by whichever arm is chosen.

import {
  announce, byId, growing, make, Narrator, problem, sendsOnEnter, settings, speed, stream, systemPrompt, wasStopped,
} from "./shared.js";

const IDEAS = [
  "Give three tips for staying healthy.",
  "Classify as animal or plant: oak, salmon, fern, otter.",
  "Rewrite more politely: Send me the report now.",
];

const messages = []; // {role, content}
let running = null; // AbortController of the answer that is being written

export function startChat(state) {
  const form = byId("composer");
  const question = byId("question");
  const fit = growing(question);

  byId("arm").append(...state.arms.map(({ name }) => make("option", { value: name }, name)));
  byId("ideas").append(...IDEAS.map((text) => make("button", { type: "button", onclick: () => send(text) }, text)));

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value.trim();
    if (!text || running) return;
    question.value = "";
    fit();
    send(text);
  });
  sendsOnEnter(question, form);
  byId("stop").addEventListener("click", stopChat);
  byId("clear").addEventListener("click", clear);

  async function send(text) {
    if (running) return;
    messages.push({ role: "user", content: text });
    show(make("div", { class: "message user" }, make("div", { class: "text" }, text)));
    await answer();
  }

  async function answer() {
    problem();
    const arm = byId("arm").value;
    const text = document.createTextNode("");
    const body = make("div", { class: "text waiting" }, text);
    const meta = make("div", { class: "meta" }, make("span", {}, "waiting"));
    const card = make("div", { class: "message assistant" }, make("div", { class: "who" }, arm), body, meta);
    show(card);
    busy(true);
    const narrator = new Narrator();
    let note = "";
    try {
      const system = systemPrompt();
      const turns = system ? [{ role: "system", content: system }, ...messages] : messages;
      const request = { model: arm, messages: turns, stream: true, ...settings() };
      await stream("/v1/chat/completions", request, running.signal, (event) => {
        const piece = event.choices[0]?.delta.content;
        if (piece) {
          const following = atEnd();
          text.appendData(piece);
          narrator.add(piece);
          body.className = "text writing";
          meta.replaceChildren("writing");
          if (following) toEnd();
        }
        if (event.timings) {
          note = speed(event.timings);
          if (event.choices[0].finish_reason === "length") note += ", cut at the longest answer";
        }
      });
    } catch (error) {
      if (!wasStopped(error)) problem(error.message);
      note = wasStopped(error) ? "stopped" : "not answered";
      if (!text.data) {
        // Nothing was said: the question goes back to where it was typed.
        card.previousElementSibling.remove();
        card.remove();
        const { content } = messages.pop();
        question.value ||= content;
        fit();
      }
    }
    narrator.end();
    busy(false);
    body.className = "text";
    focusQuestion();
    byId("welcome").hidden = messages.length > 0;
    if (!card.isConnected) return;
    messages.push({ role: "assistant", content: text.data });
    announce(`${arm}: ${note}`);
    for (const button of document.querySelectorAll(".again")) button.remove();
    meta.replaceChildren(
      make("span", {}, note),
      make("button", { type: "button", onclick: (event) => copy(text.data, event.target) }, "Copy"),
      make("button", { type: "button", class: "again", onclick: again }, "Regenerate"),
    );
    toEnd();
  }

  async function again() {
    if (running) return;
    messages.pop();
    byId("log").lastElementChild.remove();
    await answer();
  }

  function clear() {
    stopChat();
    messages.length = 0;
    for (const message of document.querySelectorAll(".message")) message.remove();
    byId("welcome").hidden = false;
    problem();
    focusQuestion();
  }

  function focusQuestion() {
    if (matchMedia("(pointer: fine)").matches) question.focus(); // elsewhere a keyboard would cover the answer
  }
}

/** Stop the answer that is being written, if there is one. */
export function stopChat() {
  running?.abort();
}

function busy(on) {
  running = on ? new AbortController() : null;
  byId("send").hidden = on;
  byId("stop").hidden = !on;
  byId("clear").disabled = on;
}

function show(message) {
  byId("welcome").hidden = true;
  byId("log").append(message);
  toEnd();
}

function atEnd() {
  const log = byId("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 48;
}

function toEnd() {
  const log = byId("log");
  log.scrollTop = log.scrollHeight;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// Compare: one question to several arms, blind by default, and the vote.

import {
  announce, byId, get, growing, make, Narrator, post, problem, sendsOnEnter, settings, speed, stream, systemPrompt,
  wasStopped,
} from "./shared.js";

const PLACE = "fedit-question";
const list = new Intl.ListFormat("en");

let state;
let drawn = null; // the question of the set that stands in the field
let current = null; // {id, cards, complete}: the comparison that is shown
let running = null;

export function startCompare(loaded) {
  state = loaded;
  const form = byId("ask");
  const field = byId("compared");
  growing(field);

  byId("arms").append(...state.arms.map(({ name }) => chip(name)));
  const chosen = [state.arms[0], state.arms.find(({ name }) => name.endsWith("base")) ?? state.arms[1]];
  for (const arm of chosen) if (arm) boxOf(arm.name).checked = true;
  limit();
  byId("votes-file").textContent = state.votes;
  byId("draw").hidden = !state.questions;
  if (state.questions) field.placeholder = "Draw a question or type one";

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) askAll();
  });
  sendsOnEnter(field, form);
  field.addEventListener("input", () => { if (drawn && field.value !== drawn.text) fromSet(null); });
  byId("draw").addEventListener("click", () => attempt(draw));
  byId("stop-all").addEventListener("click", stopCompare);
  byId("next").addEventListener("click", () => attempt(next));
  attempt(async () => showResults(await get("/api/results")));
}

/** Stop the answers that are being written, if any are. */
export function stopCompare() {
  running?.abort();
}

/** Vote by key: 1 to 4 for an answer, t for a tie, x for all bad, n for the next question. */
export function voteByKey(key) {
  const button = document.querySelector(`#comparison button[data-key="${CSS.escape(key)}"]`);
  if (button && button.offsetParent) button.click();
}

async function attempt(action) {
  try {
    problem();
    await action();
  } catch (error) {
    problem(error.message);
  }
}

function chip(name) {
  const box = make("input", { type: "checkbox", value: name, onchange: limit });
  return make("label", { class: "chip" }, box, make("span", {}, name));
}

const boxes = () => [...byId("arms").querySelectorAll("input")];
const boxOf = (name) => boxes().find((box) => box.value === name);

function limit() {
  const checked = boxes().filter((box) => box.checked).length;
  for (const box of boxes()) box.disabled = !box.checked && checked >= state.most;
  byId("ask-all").disabled = running !== null || checked < state.fewest;
  byId("ask-all").title = checked < state.fewest ? `Choose at least ${state.fewest}` : "";
}

async function draw() {
  const number = Number(sessionStorage.getItem(PLACE) ?? 0);
  const question = await get(`/api/question?number=${number}`);
  sessionStorage.setItem(PLACE, String((question.number + 1) % state.questions));
  byId("compared").value = question.text;
  byId("compared").dispatchEvent(new Event("input"));
  fromSet(question);
}

function fromSet(question) {
  drawn = question;
  const kind = question?.category ? `, ${question.category}` : "";
  byId("from").textContent = question ? `Question ${question.id}${kind}` : "";
}

async function next() {
  if (state.questions) {
    await draw();
    await askAll();
  } else {
    byId("main").scrollTop = 0;
    byId("compared").focus();
  }
}

async function askAll() {
  const question = byId("compared").value.trim();
  if (!question) {
    byId("compared").focus();
    return;
  }
  await attempt(async () => {
    const request = {
      arms: boxes().filter((box) => box.checked).map((box) => box.value),
      question,
      question_id: drawn?.id ?? "",
      system: systemPrompt(),
      blind: byId("blind").checked,
      ...settings(),
    };
    const cards = layOut(question, request.arms.length);
    const restore = clearField();
    busy(true);
    const narrators = cards.map(() => new Narrator());
    try {
      await stream("/api/compare", request, running.signal, (event) => take(event, cards, narrators));
      if (!current?.complete) throw new Error("The server ended before all answers were there.");
      openBallot(cards);
    } catch (error) {
      restore();
      for (const card of cards) {
        card.body.classList.remove("waiting", "writing");
        card.foot.textContent = "not finished";
      }
      if (!wasStopped(error)) throw error;
      announce("Stopped. Ask again to vote.");
    } finally {
      busy(false);
    }
  });
}

/** Empty the field for the next question; what comes back puts the present one there again. */
function clearField() {
  const field = byId("compared");
  const [text, question] = [field.value, drawn];
  const fill = (content, from) => {
    field.value = content;
    field.dispatchEvent(new Event("input"));
    fromSet(from);
  };
  fill("", null);
  return () => { if (!field.value) fill(text, question); };
}

function busy(on) {
  running = on ? new AbortController() : null;
  byId("progress").hidden = !on;
  byId("draw").disabled = on;
  limit();
}

function layOut(question, count) {
  const cards = state.labels.slice(0, count).map((label) => {
    const name = make("span", { class: "name" }, `Answer ${label}`);
    const text = document.createTextNode("");
    const body = make("div", { class: "text" }, text);
    const foot = make("footer", { class: "muted small" }, "waiting");
    const head = make("header", {}, make("span", { class: "letter", "aria-hidden": "true" }, label), name);
    const card = make("article", { class: "answer", "aria-label": `Answer ${label}` }, head, body, foot);
    return { label, card, name, text, body, foot };
  });
  current = null;
  byId("asked").textContent = question;
  byId("asked-from").textContent = byId("from").textContent;
  byId("progress-text").textContent = "Waiting for the model";
  byId("answers").replaceChildren(...cards.map(({ card }) => card));
  byId("answers").classList.toggle("four", count === 4);
  byId("ballot").hidden = byId("verdict").hidden = true;
  const area = byId("comparison");
  area.hidden = false;
  area.focus({ preventScroll: true });
  area.scrollIntoView({ block: "start" });
  cards[0].body.classList.add("waiting");
  return cards;
}

function take(event, cards, narrators) {
  if (event.comparison) {
    current = { id: event.comparison, cards, complete: false };
    if (event.names) for (const card of cards) card.name.textContent = event.names[card.label];
    return;
  }
  if (event.complete) current.complete = true;
  const place = cards.findIndex(({ label }) => label === event.label);
  if (place < 0) return;
  const card = cards[place];
  if (event.text) {
    if (!card.text.data) {
      announce(`Answer ${card.label}:`);
      byId("progress-text").textContent = `Answer ${card.label} is being written, ${place + 1} of ${cards.length}`;
      card.foot.textContent = "";
    }
    card.text.appendData(event.text);
    card.body.className = "text writing";
    narrators[place].add(event.text);
  }
  if (event.done) {
    narrators[place].end();
    card.body.className = "text";
    card.foot.textContent = speed(event.done);
    if (!card.text.data) card.body.append(make("span", { class: "muted" }, "(an empty answer)"));
    cards[place + 1]?.body.classList.add("waiting");
  }
}

function openBallot(cards) {
  const two = cards.length === 2;
  const choices = [
    ...cards.map(({ label }, place) => [label, two ? `${label} is better` : `${label} is best`, String(place + 1)]),
    ["tie", "Tie", "t"],
    ["both_bad", two ? "Both are bad" : "All are bad", "x"],
  ];
  const buttons = choices.map(([choice, text, key]) => make(
    "button",
    { type: "button", "data-key": key, "aria-keyshortcuts": key, onclick: () => attempt(() => vote(choice)) },
    text, make("kbd", { "aria-hidden": "true" }, key),
  ));
  byId("ballot-title").textContent = two ? "Which answer is better?" : "Which answer is best?";
  byId("choices").replaceChildren(...buttons);
  byId("ballot").hidden = false;
  announce(`All answers are there. ${byId("ballot-title").textContent}`);
}

async function vote(choice) {
  const { id, cards } = current;
  for (const button of byId("choices").children) button.disabled = true;
  let answer;
  try {
    answer = await post("/api/vote", { comparison: id, choice });
  } catch (error) {
    for (const button of byId("choices").children) button.disabled = false;
    throw error;
  }
  for (const card of cards) {
    card.name.textContent = answer.names[card.label];
    card.card.setAttribute("aria-label", `Answer ${card.label}, by ${answer.names[card.label]}`);
    card.card.classList.toggle("best", card.label === choice);
  }
  const others = list.format(cards.filter(({ label }) => label !== choice).map(({ label }) => answer.names[label]));
  const said = { tie: `A tie between ${others}.`, both_bad: `None was good: ${others}.` }[choice]
    ?? `You preferred ${answer.names[choice]} to ${others}.`;
  byId("verdict-text").textContent = said;
  byId("next").textContent = state.questions ? "Next question" : "Ask another";
  byId("ballot").hidden = true;
  byId("verdict").hidden = false;
  byId("next").focus({ preventScroll: true });
  announce(said);
  showResults(answer.results);
}

const percent = (share) => `${Math.round(100 * share)}%`;

function showResults(results) {
  const rows = results.pairs.map((pair) => {
    const tied = pair.ties + pair.both_bad;
    const parts = [["win", pair.wins], ["tie", tied], ["loss", pair.losses]];
    const meter = make("div", { class: "meter", "aria-hidden": "true" });
    for (const [kind, count] of parts) {
      if (!count) continue;
      const part = make("span", { class: kind });
      part.style.flexGrow = count;
      meter.append(part);
    }
    const [low, high] = pair.interval;
    const count = (kind, text) => make("span", {}, make("i", { class: kind, "aria-hidden": "true" }), text);
    return make(
      "div", { class: "duel" },
      make("div", { class: "sides" }, make("span", {}, pair.one), make("span", {}, pair.other)),
      meter,
      make(
        "div", { class: "counts" },
        count("win", `${pair.one} won ${pair.wins}`),
        count("tie", `${pair.ties} tied, ${pair.both_bad} both bad`),
        count("loss", `${pair.other} won ${pair.losses}`),
        make("span", {}, `win rate of ${pair.one}: ${percent(pair.win_rate)} (95% interval ${percent(low)} to ${percent(high)})`),
      ),
    );
  });
  const notes = [];
  if (results.votes) notes.push(`${results.votes} blind ${results.votes === 1 ? "vote" : "votes"}`);
  else rows.push(make("p", { class: "muted" }, "None yet. Ask a question and vote for the better answer."));
  if (results.decided) notes.push(`the answer shown first won ${results.first_shown} of ${results.decided} decided`);
  if (results.not_blind) notes.push(`votes with the names shown, not counted: ${results.not_blind}`);
  if (notes.length) rows.push(make("p", { class: "muted small" }, `${notes.join("; ")}.`));
  byId("pairs").replaceChildren(...rows);
}

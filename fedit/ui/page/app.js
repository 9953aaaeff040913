// The page's frame: mode, colours, settings.

import { startChat, stopChat } from "./chat.js";
import { startCompare, stopCompare, voteByKey } from "./compare.js";
import { byId, get, problem } from "./shared.js";

const MODES = ["chat", "compare"];
const THEMES = ["system", "light", "dark"];
const THEME = "fedit-theme";

// The token has become a cookie; it need not stay in the address bar and the history.
history.replaceState(null, "", location.pathname + location.hash);

function showMode(mode) {
  for (const name of MODES) {
    const tab = byId(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === mode));
    tab.tabIndex = name === mode ? 0 : -1;
    byId(name).hidden = name !== mode;
  }
  history.replaceState(null, "", `#${mode}`);
}

function startTabs() {
  for (const [place, name] of MODES.entries()) {
    const tab = byId(`tab-${name}`);
    tab.addEventListener("click", () => showMode(name));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const other = MODES[(place + step + MODES.length) % MODES.length];
      showMode(other);
      byId(`tab-${other}`).focus();
    });
  }
  showMode(MODES.includes(location.hash.slice(1)) ? location.hash.slice(1) : MODES[0]);
}

function startTheme() {
  const button = byId("theme");
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    const label = `Colours: ${theme === "system" ? "as the system" : theme}`;
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  apply(localStorage.getItem(THEME) ?? THEMES[0]);
  button.addEventListener("click", () => {
    const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    localStorage.setItem(THEME, theme);
    apply(theme);
  });
}

function startSettings(state) {
  byId("max_tokens").value = state.max_tokens;
  if (state.context) byId("max_tokens").max = state.context;
  for (const name of ["temperature", "top_p"]) {
    byId(name).addEventListener("input", () => { byId(`${name}-out`).textContent = byId(name).value; });
  }
  byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
  const toggle = byId("settings-toggle");
  const open = (on) => {
    byId("settings").classList.toggle("open", on);
    toggle.setAttribute("aria-expanded", String(on));
  };
  toggle.addEventListener("click", () => open(toggle.getAttribute("aria-expanded") !== "true"));
  document.addEventListener("show-settings", () => open(true));
  byId("main").addEventListener("pointerdown", () => open(false));
  return open;
}

function startKeys(openSettings) {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      stopChat();
      stopCompare();
      openSettings(false);
      return;
    }
    const typing = event.target.closest("textarea, select, input:not([type=checkbox])");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || byId("compare").hidden) return;
    voteByKey(event.key.toLowerCase());
  });
}

startTabs();
startTheme();
try {
  const state = await get("/api/state");
  byId("model").textContent = state.model;
  document.title = `fedit: ${state.model}`;
  startKeys(startSettings(state));
  startChat(state);
  startCompare(state);
  document.documentElement.dataset.ready = "yes";
} catch (error) {
  problem(error.message);
}

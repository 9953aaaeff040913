"use strict";
// A choice of arms above the examples, and settings that are printed although they are folded.
for (const section of document.querySelectorAll("section")) {
  const answers = [...section.querySelectorAll("[data-arm]")];
  const arms = [...new Set(answers.map((answer) => answer.dataset.arm))];
  if (arms.length < 2) continue;
  const choice = document.createElement("fieldset");
  choice.append(Object.assign(document.createElement("legend"), { textContent: "Show the answers of" }));
  for (const arm of arms) {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      for (const answer of answers) if (answer.dataset.arm === arm) answer.hidden = !box.checked;
    });
    label.append(box, arm);
    choice.append(label);
  }
  section.querySelector(".example").before(choice);
}
const folded = () => document.querySelectorAll("details[data-printed]");
addEventListener("beforeprint", () => folded().forEach((part) => { part.open = true; }));
addEventListener("afterprint", () => folded().forEach((part) => { part.open = false; }));

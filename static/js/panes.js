// Narrow screens show one pane at a time, middle ones the third as a sheet; links open details elsewhere on the page.

const app = document.querySelector(".app");

function show(pane) {
  app.dataset.pane = pane;
  for (const link of document.querySelectorAll(".tabs [data-pane-to]")) {
    if (link.dataset.paneTo === pane) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function reveal(ids) {
  const details = ids.split(" ").map((id) => document.getElementById(id)).filter(Boolean);
  for (const one of details) {
    for (let above = one; above; above = above.parentElement?.closest("details")) above.open = true;
  }
  details[0]?.scrollIntoView({ block: "nearest" });
  details[0]?.querySelector("summary")?.focus();
}

document.addEventListener("click", (event) => {
  const tab = event.target.closest("[data-pane-to]");
  const link = event.target.closest("[data-opens]");
  if (!tab && !link) return;
  event.preventDefault();
  if (tab) show(tab.dataset.paneTo === app.dataset.pane ? "chat" : tab.dataset.paneTo);
  else reveal(link.dataset.opens);
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const question = event.target.closest("details[open]");
  if (question) {
    question.open = false;
    question.querySelector("summary").focus();
  } else show("chat");
});

document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

show(app.dataset.pane);

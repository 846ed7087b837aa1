// The stream stays at its newest message, unless the reader has scrolled up: then a button says that there is more.

const pane = document.querySelector("[data-follow]");
const button = document.querySelector("[data-to-newest]");
const list = document.getElementById("messages");
const isAtEnd = () => pane.scrollHeight - pane.scrollTop - pane.clientHeight < 80;
let follows = true;

function toNewest() {
  pane.scrollTop = pane.scrollHeight;
  button.hidden = true;
}

pane.addEventListener("scroll", () => {
  follows = isAtEnd();
  if (follows) button.hidden = true;
}, { passive: true });

button.addEventListener("click", toNewest);
new ResizeObserver(() => follows && toNewest()).observe(pane);
new ResizeObserver(() => follows && toNewest()).observe(list);
new MutationObserver((changes) => {
  const isNew = changes.some((change) => [...change.addedNodes].some((node) => node.matches?.(".message") && node === list.lastElementChild));
  if (follows) toNewest();
  else if (isNew) button.hidden = false;
}).observe(list, { childList: true });

if (location.hash.startsWith("#message-")) follows = false;
else toNewest();

// A press on [data-copy] puts its text on the clipboard, and says so in the button.

async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  // Over plain http there is no clipboard API.
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  if (!isCopied) throw new Error("not copied");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const label = button.textContent;
  try {
    await copy(button.dataset.copy);
    button.textContent = "Copied";
  } catch {
    window.prompt("Copy it from here:", button.dataset.copy);
  }
  setTimeout(() => (button.textContent = label), 1500);
});

// The composer grows with its text, sends with Enter (Shift+Enter is a new line), and is emptied only when the server has taken the text.

const form = document.querySelector("[data-composer]");

if (form) {
  const text = form.elements.text;
  const grow = () => {
    text.style.height = "auto";
    text.style.height = `${Math.min(text.scrollHeight + 2, innerHeight * 0.4)}px`;
  };
  text.addEventListener("input", grow);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (text.value.trim()) form.requestSubmit(form.querySelector("button.filled"));
  });
  form.addEventListener("htmx:afterRequest", (event) => {
    if (!event.detail.successful) return;
    text.value = "";
    grow();
  });
  grow();
}

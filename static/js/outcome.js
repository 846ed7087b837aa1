// What became of a press stands where the button was. A whole page as an answer means something else happened: signed out, or an error.

document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr, requestConfig } = event.detail;
  if (requestConfig.elt.hasAttribute("hx-select") || !/^\s*<!doctype/i.test(xhr.responseText)) return;
  if (xhr.status < 400) {
    event.detail.shouldSwap = false;
    location.assign(xhr.responseURL);
  } else {
    event.detail.swapOverride = "innerHTML";
    event.detail.serverResponse = `<span class="error" role="alert">The server refused this (${xhr.status}). Reload the page and try again.</span>`;
  }
});

for (const name of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(name, (event) => {
    const place = event.detail.target;
    if (place) place.innerHTML = '<span class="error" role="alert">The server can not be reached: nothing was sent.</span>';
  });
}

// A question that was answered closes; its outcome stays.
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful) event.target.closest("details.confirm")?.removeAttribute("open");
});

// An agent's output, live, in a sheet above the page or on a page of its own. What a program prints is text, never markup.

const sheet = document.getElementById("log-sheet");
const MOST_RUNS = 4;
const RETRY_AFTER = 1500;
const REFUSED = [4401, 4404];

class Log {
  constructor(box, address) {
    this.box = box;
    this.url = new URL(address, location.href.replace(/^http/, "ws")).href;
    this.connect();
  }

  connect() {
    this.socket = new WebSocket(this.url);
    this.socket.addEventListener("message", (event) => this.take(JSON.parse(event.data)));
    this.socket.addEventListener("close", (event) => {
      if (!this.isOver && !REFUSED.includes(event.code)) this.retry = setTimeout(() => this.connect(), RETRY_AFTER);
    });
  }

  end() {
    this.isOver = true;
    clearTimeout(this.retry);
    this.socket.close();
  }

  take({ run, title, text, append }) {
    const follows = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    const part = this.box.querySelector(`[data-run="${run}"]`) || this.begin(run);
    const words = part.querySelector("h3");
    const output = part.querySelector("pre");
    if (words.textContent !== title) words.textContent = title;
    if (append) output.append(text);
    else output.textContent = text;
    if (follows) this.box.scrollTop = this.box.scrollHeight;
  }

  begin(run) {
    const part = document.createElement("section");
    part.className = "log-run";
    part.dataset.run = run;
    part.append(document.createElement("h3"), document.createElement("pre"));
    this.box.querySelector(":scope > p")?.remove();
    this.box.append(part);
    while (this.box.children.length > MOST_RUNS) this.box.firstElementChild.remove();
    return part;
  }
}

if (sheet) {
  const box = sheet.querySelector("[data-log]");
  let log;
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-log-of]");
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    sheet.querySelector("h2").textContent = `Log of ${link.dataset.logOf}`;
    sheet.querySelector("[data-log-page]").href = link.href;
    box.replaceChildren(Object.assign(document.createElement("p"), { className: "muted", textContent: "Nothing was printed yet." }));
    log = new Log(box, link.dataset.logAt);
    sheet.showModal();
  });
  sheet.addEventListener("close", () => log?.end());
  sheet.addEventListener("click", (event) => event.target === sheet && sheet.close());
}

const page = document.querySelector(".log-page [data-log-at]");
if (page) {
  page.scrollTop = page.scrollHeight;
  new Log(page, page.dataset.logAt);
}

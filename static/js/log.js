// An agent's output, live, in a sheet above the page or on a page of its own. What a program prints is text, never markup.

const sheet = document.getElementById("log-sheet");
const MOST_RUNS = 4;
const RETRY_AFTER = 1500;
const REFUSED = [4401, 4404];
const PING_EVERY = 4000;
const SILENT_AFTER = 10000;

class Log {
  constructor(box, address) {
    this.box = box;
    this.url = new URL(address, location.href.replace(/^http/, "ws")).href;
    this.connect();
  }

  connect() {
    clearTimeout(this.retry);
    const socket = (this.socket = new WebSocket(this.url));
    this.heardAt = Date.now();
    socket.addEventListener("message", (event) => this.hear(JSON.parse(event.data)));
    socket.addEventListener("close", (event) => {
      if (socket !== this.socket || this.isOver) return;
      clearInterval(this.beat);
      if (!REFUSED.includes(event.code)) this.retry = setTimeout(() => this.connect(), RETRY_AFTER);
    });
    clearInterval(this.beat);
    this.beat = setInterval(() => this.ping(), PING_EVERY);
  }

  // A half-open connection never says that it is closed, and shows what was for ever: do not wait for its close event.
  ping() {
    if (Date.now() - this.heardAt > SILENT_AFTER) {
      this.socket.close();
      this.connect();
    } else if (this.socket.readyState === WebSocket.OPEN) this.socket.send('{"ping": true}');
  }

  end() {
    this.isOver = true;
    clearTimeout(this.retry);
    clearInterval(this.beat);
    this.socket.close();
  }

  hear(message) {
    this.heardAt = Date.now();
    if (!message.pong) this.take(message);
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

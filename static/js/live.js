// One socket per [data-live-at]. It takes what the server pushes, notices a dead connection by itself, comes back for ever,
// and says the id of the last event this page shows, so that the server sends exactly what was missed.

const PING_EVERY = 4000;
const SILENT_AFTER = 10000;
const LONGEST_WAIT = 8000;
const SIGNED_OUT = 4401;
const NOT_HERE = 4404;
const ROLE_CHANGED = 4405;

const isOpenQuestion = (node) => node.matches?.("details.confirm[open]");

// What a person has opened or typed, and what stands where a button was pressed, is theirs: a push leaves it alone.
Object.assign(Idiomorph.defaults, { ignoreActiveValue: true });
Object.assign(Idiomorph.defaults.callbacks, {
  beforeNodeMorphed: (old, fresh) => !(old.dataset?.keep !== undefined || (isOpenQuestion(old) && fresh.matches?.("details.confirm"))),
  beforeAttributeUpdated: (name, node) => !((name === "open" && node.matches("details")) || name === "aria-current"),
});

// Not htmx's `beforeend`: with the morph extension on the page it would append the wrapper, too.
function add(list, wrapper) {
  for (const item of [...wrapper.children]) {
    list.append(item);
    htmx.process(item);
  }
}

function swap(html) {
  const box = document.createElement("template");
  box.innerHTML = html;
  for (const once of box.content.querySelectorAll("[data-once]")) {
    if (document.getElementById(once.id)) once.remove();
  }
  for (const part of [...box.content.children]) {
    const [style, place] = part.getAttribute("hx-swap-oob").split(":");
    const target = document.querySelector(place || `#${CSS.escape(part.id)}`);
    if (style === "beforeend" && target) add(target, part);
    if (style === "beforeend" || !target) part.remove();
  }
  htmx.swap(document.body, box.innerHTML, { swapStyle: "none" });
}

class Live {
  constructor(element) {
    this.url = new URL(element.dataset.liveAt, location.href.replace(/^http/, "ws")).href;
    this.isMain = element.matches("[data-live-main]") || !document.querySelector("[data-live-main]");
    this.failures = 0;
    this.state = document.getElementById("live");
    this.connect();
  }

  connect() {
    clearTimeout(this.retry);
    this.heardAt = Date.now();
    this.socket = new WebSocket(this.url);
    this.socket.addEventListener("open", () => this.opened());
    this.socket.addEventListener("message", (event) => this.take(event.data));
    this.socket.addEventListener("close", (event) => event.target === this.socket && this.lost(event.code));
  }

  opened() {
    this.socket.send(JSON.stringify({ last: Number(document.getElementById("cursor").dataset.last) }));
    this.ping();
    clearInterval(this.beat);
    this.beat = setInterval(() => this.ping(), PING_EVERY);
  }

  ping() {
    if (Date.now() - this.heardAt > SILENT_AFTER) this.abandon();
    else if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ ping: Math.round(performance.now() * 10) / 10 }));
  }

  // A half-open connection never says that it is closed: do not wait for its close event.
  abandon() {
    const socket = this.socket;
    this.socket = null;
    socket.close();
    this.lost(1006);
  }

  take(html) {
    this.heardAt = Date.now();
    const pong = html.match(/^<span id="pong" data-ping="([\d.]+)"/);
    if (pong) {
      this.show("live", Math.max(1, Math.round(performance.now() - Number(pong[1]))));
      return;
    }
    this.failures = 0;
    const said = html.match(/data-now="([^"]+)"/);
    if (said) document.documentElement.dataset.skew = Date.parse(said[1]) - Date.now();
    swap(html);
    document.dispatchEvent(new CustomEvent("chatroom:changed"));
  }

  lost(code) {
    clearInterval(this.beat);
    clearTimeout(this.retry);
    if (code === SIGNED_OUT || code === ROLE_CHANGED) location.reload();
    else if (code === NOT_HERE && this.isMain) location.assign("/");
    else this.again();
  }

  again() {
    this.show("lost");
    this.retry = setTimeout(() => this.connect(), Math.random() * Math.min(LONGEST_WAIT, 500 * 2 ** this.failures));
    this.failures += 1;
  }

  hurry() {
    if (!this.socket || this.socket.readyState > WebSocket.OPEN) this.connect();
    else this.ping();
  }

  show(state, milliseconds) {
    if (!this.isMain || !this.state) return;
    const words = this.state.querySelector("[data-live-words]");
    const time = this.state.querySelector("[data-live-time]");
    if (state === "lost" && this.state.dataset.state !== "lost") {
      this.seen = new Date(this.heardAt).toLocaleTimeString("en-GB");
      words.textContent = `reconnecting… showing the state of ${this.seen}`;
      time.textContent = "";
    } else if (state === "live") {
      if (this.state.dataset.state !== "live") words.textContent = "live";
      time.textContent = `· ${milliseconds} ms`;
    }
    this.state.dataset.state = state;
  }
}

const lives = [...document.querySelectorAll("[data-live-at]")].map((element) => new Live(element));
for (const name of ["online", "pageshow"]) addEventListener(name, () => lives.forEach((live) => live.hurry()));
addEventListener("offline", () => lives.forEach((live) => live.socket && live.abandon()));
document.addEventListener("visibilitychange", () => document.hidden || lives.forEach((live) => live.hurry()));

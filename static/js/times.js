// Times of day in the reader's own zone, and ages that tick without the server. Only the server's clock counts: `skew` is how far ours is off.

const page = document.documentElement;
const RECENT = 12 * 3600 * 1000;

function now() {
  return Date.now() + Number(page.dataset.skew || 0);
}

function sayAge(seconds, form) {
  if (form === "timer") {
    const pad = (number) => String(number).padStart(2, "0");
    const hours = Math.floor(seconds / 3600);
    const rest = `${pad(seconds % 60)}`;
    return hours ? `${hours}:${pad(Math.floor(seconds / 60) % 60)}:${rest}` : `${Math.floor(seconds / 60)}:${rest}`;
  }
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${seconds} s`;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function showClock(element) {
  const moment = new Date(element.dateTime);
  const parts = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (element.dataset.clock === "seconds") parts.second = "2-digit";
  const time = moment.toLocaleTimeString("en-GB", parts);
  const present = now();
  const isRecent = moment.toDateString() === new Date(present).toDateString() || Math.abs(present - moment) < RECENT;
  write(element, isRecent ? time : `${moment.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`);
  element.title = moment.toLocaleString();
}

function tick() {
  const present = now();
  for (const element of document.querySelectorAll("time[data-since]")) {
    write(element, sayAge(Math.max(0, Math.floor((present - Date.parse(element.dateTime)) / 1000)), element.dataset.since));
  }
  for (const element of document.querySelectorAll("time[data-until]")) {
    const left = Math.floor((Date.parse(element.dateTime) - present) / 1000);
    if (element.dataset.until === "in") write(element, left > 0 ? `in ${sayAge(left, "long")}` : "now");
    else write(element, left >= 0 ? `${sayAge(left, "timer")} left` : "over");
  }
  for (const element of document.querySelectorAll("[data-appears]")) {
    element.hidden = Date.parse(element.dataset.appears) > present;
  }
}

function refresh() {
  document.querySelectorAll("time[data-clock]").forEach(showClock);
  tick();
}

const answered = performance.timeOrigin + (performance.getEntriesByType("navigation")[0]?.responseStart || performance.now());
page.dataset.skew = Date.parse(document.body.dataset.now) - answered || 0;
refresh();
setInterval(tick, 1000);
document.addEventListener("chatroom:changed", refresh);
document.addEventListener("htmx:afterSwap", refresh);

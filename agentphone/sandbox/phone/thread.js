// The bubbles of a conversation. Only those near the visible part are in the document, however long it is.
//
// All positions are measured from the newest message upwards, and the scroller is one with its origin at the bottom
// (column-reverse): what loads above, or turns out higher than estimated there, moves nothing that is seen.

import { el, icon, keyed } from "./dom.js";
import { dayKey, dayName, isWebAddress, mediaName, timeOfDay, wholeTime } from "./text.js";

const OVERSCAN = 600; // pixels rendered beyond the visible part, on both sides
const NEAR_TOP = 1500; // pixels before the oldest loaded message at which more is loaded
const GROUP = 5 * 60_000; // milliseconds within which messages of one sender belong together
const REACTIONS = { love: "❤️", like: "👍", dislike: "👎", laugh: "😂", emphasize: "‼️", question: "❓" };

export class Thread {
  /**
   * `onNeedOlder()` is called while older messages should load, `onScroll(position)` after scrolling;
   * `onBottom(isAtBottom)` when the newest message comes into view or leaves it.
   */
  constructor(scroller, { onNeedOlder, onScroll, onBottom }) {
    this.scroller = scroller;
    this.sizer = scroller.querySelector(".thread-sizer");
    this.window = scroller.querySelector(".thread-window");
    this.top = scroller.querySelector(".thread-top");
    this.onNeedOlder = onNeedOlder;
    this.onScroll = onScroll;
    this.onBottom = onBottom;
    this.clear();
    let frame = 0;
    scroller.addEventListener("scroll", () => {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        this.render();
        this.onScroll(this.position());
      });
    });
    scroller.addEventListener("keydown", (event) => this.#moveFocus(event));
    let width = 0;
    new ResizeObserver(() => {
      if (scroller.clientWidth !== width) this.heights.clear(); // The texts wrap differently now.
      width = scroller.clientWidth;
      this.render();
    }).observe(scroller);
  }

  clear() {
    this.items = [];
    this.offsets = []; // the distance of each item's lower edge from the bottom
    this.heights = new Map();
    this.total = 0;
    this.hasOlder = false;
    this.count = 0;
    this.isAtBottom = true;
    this.highlighted = null;
    this.scroller.scrollTop = 0;
    this.render();
  }

  /** Show these messages, oldest first; `count` is how many the conversation has in all. */
  show(messages, { hasOlder, count }) {
    this.items = itemsOf(messages);
    this.hasOlder = hasOlder;
    this.count = Math.max(count, messages.length);
    this.render();
  }

  /** Where the thread is: the lowest message in view and its distance from the lower edge; null at the bottom. */
  position() {
    const bottom = this.#scrolled();
    if (bottom < 4) return null;
    const index = this.#indexAt(bottom);
    const item = this.items[index];
    return item ? { id: item.id, receivedAt: item.message.receivedAt, distance: this.offsets[index] - bottom } : null;
  }

  /** Go to a position; return whether its message is loaded. */
  restore(position) {
    const index = this.items.findIndex((item) => item.id === position.id);
    if (index < 0) return false;
    this.#scrollTo(this.offsets[index] - position.distance);
    this.render();
    return true;
  }

  /** Bring a message into the middle of the view, and mark it. */
  reveal(id) {
    this.highlighted = id;
    this.restore({ id, distance: this.scroller.clientHeight / 2 - 40 });
    this.restore({ id, distance: this.scroller.clientHeight / 2 - 40 }); // once its surroundings are measured
  }

  toBottom() {
    this.#scrollTo(0);
    this.render();
  }

  render() {
    const before = this.position();
    // Rows that are rendered for the first time are measured, which may bring others into view.
    for (let pass = 0; pass < 4; pass += 1) {
      this.#layOut();
      if (before !== null) {
        const index = this.items.findIndex((item) => item.id === before.id);
        if (index >= 0) this.#scrollTo(this.offsets[index] - before.distance);
      }
      this.#renderRows();
      if (!this.#measure()) break;
    }
    this.top.textContent = this.items.length === 0 ? "" : this.hasOlder ? "Loading older messages…" : "Beginning of the conversation";
    this.scroller.setAttribute("aria-busy", this.hasOlder && this.#isNearTop() ? "true" : "false");
    if (this.hasOlder && this.#isNearTop()) this.onNeedOlder();
    const isAtBottom = this.#scrolled() < 40;
    if (isAtBottom !== this.isAtBottom) this.onBottom((this.isAtBottom = isAtBottom));
  }

  #scrolled() {
    return Math.max(0, -this.scroller.scrollTop);
  }

  #scrollTo(distance) {
    if (Math.abs(this.#scrolled() - distance) >= 1) this.scroller.scrollTop = -Math.max(0, distance);
  }

  #isNearTop() {
    return this.#scrolled() + this.scroller.clientHeight > this.total - NEAR_TOP;
  }

  #layOut() {
    let offset = 0;
    this.offsets.length = this.items.length;
    for (let index = this.items.length - 1; index >= 0; index -= 1) {
      this.offsets[index] = offset;
      const item = this.items[index];
      offset += this.heights.get(item.id) ?? item.estimate;
    }
    this.total = offset;
    this.sizer.style.height = `${offset}px`;
  }

  /** The index of the item at a distance from the bottom. */
  #indexAt(distance) {
    let low = 0;
    let high = this.items.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.offsets[middle] <= distance) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #renderRows() {
    const bottom = this.#scrolled();
    const last = this.#indexAt(Math.max(0, bottom - OVERSCAN));
    const first = this.#indexAt(bottom + this.scroller.clientHeight + OVERSCAN);
    const rows = this.items.slice(first, last + 1);
    const total = Math.max(this.count, this.items.length);
    const skipped = total - this.items.length;
    const focused = document.activeElement;
    keyed(this.window, rows, {
      key: (item) => item.id,
      version: (item) => `${item.version} ${item.id === this.highlighted}`,
      create: () => el("article", { tabindex: "-1" }),
      fill: (row, item) => fillRow(row, item, item.id === this.highlighted),
    });
    rows.forEach((item, index) => {
      const row = this.window.children[index];
      row.setAttribute("aria-posinset", skipped + first + index + 1);
      row.setAttribute("aria-setsize", total);
    });
    this.window.style.bottom = `${rows.length === 0 ? 0 : this.offsets[last]}px`;
    if (focused?.closest?.(".thread-window") === this.window && !focused.isConnected) this.scroller.focus({ preventScroll: true });
    this.rendered = rows;
  }

  /** Measure the rendered rows; return whether a height was not as assumed. */
  #measure() {
    let isChanged = false;
    this.rendered.forEach((item, index) => {
      const height = this.window.children[index].getBoundingClientRect().height;
      if (Math.abs((this.heights.get(item.id) ?? item.estimate) - height) > 0.5) isChanged = true;
      this.heights.set(item.id, height);
    });
    return isChanged;
  }

  #moveFocus(event) {
    const steps = { ArrowUp: -1, ArrowDown: 1 };
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "End") this.toBottom();
    const current = document.activeElement.closest("article");
    if (!(event.key in steps)) return;
    event.preventDefault();
    const rows = [...this.window.children];
    const view = this.scroller.getBoundingClientRect();
    const next = current
      ? rows[rows.indexOf(current) + steps[event.key]]
      : rows.filter((row) => row.getBoundingClientRect().bottom <= view.bottom + 4).at(-1);
    next?.focus({ preventScroll: true });
    next?.scrollIntoView({ block: "nearest" });
  }
}

/** Prepare messages for the thread: which begin a day, and which stand together. */
function itemsOf(messages) {
  const items = [];
  let previous = null;
  let previousDay = null;
  for (const message of messages) {
    const sender = `${message.direction} ${message.senderIdentifier ?? ""}`;
    const time = Date.parse(message.receivedAt);
    const day = dayKey(message.receivedAt);
    const startsDay = day !== previousDay;
    const follows = previous !== null && !startsDay && previous.sender === sender && time - previous.time < GROUP;
    if (previous !== null) previous.endsGroup = !follows;
    const item = { id: message.id, message, sender, time, startsDay, startsGroup: !follows, endsGroup: true };
    const lines = Math.ceil(((message.body ?? "").length + 12) / 46);
    item.estimate = 17 + lines * 21 + (startsDay ? 48 : 0) + (follows ? 0 : 8);
    items.push(item);
    previous = item;
    previousDay = day;
  }
  for (const item of items) {
    const { message } = item;
    // Everything that a row shows: a row whose version is the same is not filled again.
    item.version = JSON.stringify([
      message.body, message.status, message.reactions, message.mediaUrls, message.replyTo, message.errorCode,
      item.startsDay, item.startsGroup, item.endsGroup,
    ]);
  }
  return items;
}

function fillRow(row, item, isHighlighted) {
  const { message } = item;
  const isAgent = message.direction === "outbound";
  const who = isAgent ? "Agent" : (message.senderIdentifier ?? "Person");
  const media = message.mediaUrls ?? (message.mediaUrl ? [message.mediaUrl] : []);
  row.className = ["row", isAgent ? "agent" : "person", item.startsGroup && "starts", item.endsGroup && "ends", isHighlighted && "found"]
    .filter(Boolean)
    .join(" ");
  row.setAttribute("aria-label", `${who}, ${wholeTime(message.receivedAt)}`);
  const meta = el(
    "span",
    { class: "meta" },
    el("time", { datetime: message.receivedAt, title: wholeTime(message.receivedAt), text: timeOfDay(message.receivedAt) }),
    isAgent ? statusElement(message) : null,
  );
  row.replaceChildren(
    ...(item.startsDay ? [el("p", { class: "day" }, el("span", { text: dayName(message.receivedAt) }))] : []),
    ...(message.senderIdentifier && item.startsGroup && !isAgent ? [el("p", { class: "sender", dir: "auto", text: message.senderIdentifier })] : []),
    el(
      "div",
      { class: "bubble" },
      message.replyTo ? el("blockquote", { dir: "auto", text: message.replyTo.message || "a message" }) : null,
      ...media.map((url) => mediaElement(url)),
      el("p", { class: "body", dir: "auto" }, message.body ?? "", meta),
      reactionsElement(message.reactions),
    ),
  );
}

/** What became of a message: a mark for the usual ends, the word for every other. */
function statusElement({ status, errorCode }) {
  if (!status && !errorCode) return null;
  const hasFailed = errorCode || ["failed", "undelivered", "error"].includes(status);
  if (hasFailed) return el("span", { class: "failed-status", text: `${status ?? "failed"}${errorCode ? ` ${errorCode}` : ""}` });
  const mark = { sent: "check", delivered: "checks", read: "checks" }[status];
  if (!mark) return el("span", { text: status });
  return el("span", { class: `status ${status}`, role: "img", "aria-label": status, title: status }, icon(mark));
}

/** A link and no image: the page loads nothing from elsewhere. */
function mediaElement(url) {
  const parts = [icon("media"), el("span", { dir: "auto", text: mediaName(url) })];
  if (!isWebAddress(url)) return el("span", { class: "media" }, ...parts);
  return el("a", { class: "media", href: url, target: "_blank", rel: "noreferrer noopener", title: url }, ...parts);
}

function reactionsElement(reactions) {
  if (!reactions?.length) return null;
  const counts = new Map();
  for (const { reactionType } of reactions) counts.set(reactionType, (counts.get(reactionType) ?? 0) + 1);
  const names = [...counts].map(([type, times]) => (times > 1 ? `${times} ${type}` : type));
  return el(
    "span",
    { class: "reactions", role: "img", "aria-label": `Reactions: ${names.join(", ")}` },
    ...[...counts].map(([type, times]) => `${REACTIONS[type] ?? type}${times > 1 ? times : ""}`),
  );
}

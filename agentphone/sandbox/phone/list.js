// The conversations, most recent first, and the results of a search.

import { listConversations, search } from "./api.js";
import { byId, coalesced, el, inTurn, keepingFocus, keyed, memory } from "./dom.js";
import { hue, initials, number, phoneNumber, shortTime, timeKey, wholeTime } from "./text.js";

const PAGE = 100;

export class ConversationList {
  /** `onOpen(conversation, message)` is called with the conversation that was chosen, and the message found in it. */
  constructor({ onOpen }) {
    this.list = byId("list");
    this.onOpen = onOpen;
    this.all = new Map();
    this.total = 0;
    this.loaded = 0;
    this.current = null;
    this.results = null;
    this.unread = new Set(memory.read("unread", []));
    this.refresh = inTurn(() => this.#refresh());
    this.refreshSoon = coalesced(() => this.refresh(), 60);
    this.list.addEventListener("click", (event) => this.#choose(event));
    this.list.addEventListener("keydown", (event) => this.#moveFocus(event));
    this.list.parentElement.addEventListener("scroll", () => this.#loadMore(), { passive: true });
    const field = byId("search");
    field.addEventListener("input", () => this.#searchSoon());
    field.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") {
        event.preventDefault();
        this.list.querySelector("a")?.focus();
      } else if (event.key === "Escape" && field.value !== "") {
        event.preventDefault();
        field.value = "";
        this.#searchSoon();
      }
    });
    this.#searchSoon = coalesced(() => this.#search(), 120);
    this.#showTitle();
  }

  #searchSoon;

  /** Read the most recent conversations again. */
  async #refresh() {
    const { data, total } = await listConversations(PAGE, 0);
    for (const conversation of data) this.all.set(conversation.id, conversation);
    this.total = total;
    this.loaded = Math.max(this.loaded, data.length);
    this.render();
    if (this.results !== null) this.#searchSoon();
  }

  /** Forget everything and read it again. */
  async reset() {
    this.all.clear();
    this.loaded = 0;
    await this.refresh();
    // After a restart the sandbox may be another one.
    if (this.all.size >= this.total) for (const id of this.unread) if (!this.all.has(id)) this.setRead(id);
  }

  /** Take note of a conversation that was read elsewhere; its list fields stay. */
  update(detail) {
    const { messages, ...conversation } = detail;
    this.all.set(detail.id, { ...this.all.get(detail.id), ...conversation });
  }

  remove(conversation) {
    if (this.all.delete(conversation)) {
      this.total -= 1;
      this.loaded -= 1;
    }
    this.setRead(conversation);
    this.render();
  }

  setUnread(conversation) {
    this.unread.add(conversation);
    this.#keepUnread();
  }

  setRead(conversation) {
    if (this.unread.delete(conversation)) this.#keepUnread();
  }

  #keepUnread() {
    memory.write("unread", [...this.unread]);
    this.#showTitle();
    this.render();
  }

  #showTitle() {
    document.title = `${this.unread.size > 0 ? `(${this.unread.size}) ` : ""}AgentPhone sandbox`;
  }

  setCurrent(conversation) {
    this.current = conversation;
    this.render();
  }

  /** The conversations in the order in which they are shown. */
  sorted() {
    const key = (conversation) => timeKey(conversation.lastMessageAt ?? "");
    return [...this.all.values()].sort((a, b) => (key(a) < key(b) ? 1 : key(a) > key(b) ? -1 : 0));
  }

  render() {
    const shown = this.results ?? this.sorted();
    keyed(this.list, shown, {
      key: (conversation) => conversation.id,
      version: (conversation) => this.#version(conversation),
      create: () => el("li"),
      fill: (row, conversation) => this.#fill(row, conversation),
    });
    const tabStop = this.list.querySelector("[aria-current]") ?? this.list.querySelector("a");
    for (const link of this.list.querySelectorAll("a")) link.tabIndex = link === tabStop ? 0 : -1;
    byId("list-empty").hidden = shown.length > 0;
    byId("list-empty-text").textContent =
      this.results === null ? "No conversations yet. Text your agent to begin one." : "Nothing found.";
    byId("list-count").textContent = this.results === null ? number(this.total) : number(shown.length);
  }

  #version(conversation) {
    const { id, lastMessageAt, lastMessagePreview, participant, match, groupName } = conversation;
    return JSON.stringify([
      lastMessageAt, lastMessagePreview, participant, groupName, match?.id, this.unread.has(id), id === this.current,
      this.results === null ? "" : byId("search").value, shortTime(lastMessageAt),
    ]);
  }

  #fill(row, conversation) {
    const isCurrent = conversation.id === this.current;
    const isUnread = this.unread.has(conversation.id);
    const text = conversation.match?.body ?? conversation.lastMessagePreview ?? "";
    const at = conversation.match?.receivedAt ?? conversation.lastMessageAt;
    const link = el(
      "a",
      { href: `/?conversation=${encodeURIComponent(conversation.id)}`, class: isUnread ? "unread" : "", "aria-current": isCurrent ? "true" : null },
      el("span", { class: `avatar hue${hue(conversation.participant)}`, "aria-hidden": "true", text: initials(conversation.participant) }),
      el(
        "span",
        { class: "about" },
        el(
          "span",
          { class: "line" },
          el("span", { class: "name", dir: "auto", text: conversation.groupName ?? phoneNumber(conversation.participant) }),
          el("time", { datetime: at, title: wholeTime(at), text: shortTime(at) }),
        ),
        el(
          "span",
          { class: "line" },
          el("span", { class: "preview", dir: "auto" }, ...marked(text, conversation.match ? byId("search").value : "")),
          isUnread ? el("span", { class: "dot" }, el("span", { class: "visually-hidden", text: "unread" })) : null,
        ),
      ),
    );
    keepingFocus(row, () => row.replaceChildren(link));
    row.conversation = conversation;
  }

  #choose(event) {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return; // a new tab
    event.preventDefault();
    const { conversation } = link.parentElement;
    this.onOpen(conversation, conversation.match ?? null);
  }

  #moveFocus(event) {
    const links = [...this.list.querySelectorAll("a")];
    const index = links.indexOf(document.activeElement);
    const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: links.length - 1 }[event.key];
    if (index < 0 || next === undefined) return;
    event.preventDefault();
    if (next < 0) byId("search").focus();
    else links[next]?.focus();
  }

  async #loadMore() {
    const { scrollTop, clientHeight, scrollHeight } = this.list.parentElement;
    if (this.results !== null || this.isLoading || this.loaded >= this.total) return;
    if (scrollTop + clientHeight < scrollHeight - 400) return;
    this.isLoading = true;
    try {
      const { data, total } = await listConversations(PAGE, this.loaded);
      for (const conversation of data) this.all.set(conversation.id, conversation);
      this.total = total;
      this.loaded += data.length;
      this.render();
    } finally {
      this.isLoading = false;
    }
  }

  async #search() {
    const query = byId("search").value.trim();
    if (query === "") this.results = null;
    else {
      const { data } = await search(query);
      if (byId("search").value.trim() !== query) return this.#searchSoon();
      this.results = data;
    }
    this.render();
  }
}

/** A text with the first place that matches a query marked, and that place in view. */
function marked(text, query) {
  const at = query.trim() === "" ? -1 : text.toLowerCase().indexOf(query.trim().toLowerCase());
  if (at < 0) return [text];
  const end = at + query.trim().length;
  const start = Math.max(0, at - 18);
  return [`${start > 0 ? "…" : ""}${text.slice(start, at)}`, el("mark", { text: text.slice(at, end) }), text.slice(end, end + 120)];
}

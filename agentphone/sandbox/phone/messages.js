// The messages of one conversation: loaded from the newest backwards without gaps, and kept up to date.

import { getConversation, listMessages } from "./api.js";
import { inTurn } from "./dom.js";
import { timeKey } from "./text.js";

const NEWEST = 100;
const PAGE = 200;
const CATCH_UP_PAGES = 5;
const PATIENCE = 30; // refreshes until an announced message is given up

/** Sort a page from the oldest to the newest; servers list either way. */
function ascending(page) {
  const isAscending = page.length > 1 && timeKey(page[0].receivedAt) < timeKey(page.at(-1).receivedAt);
  return isAscending ? page : [...page].reverse();
}

/** A moment later: pages overlap a little, so that messages of one timestamp are not lost between two of them. */
function justAfter(timestamp) {
  return new Date(Date.parse(timestamp) + (timestamp.includes(".") ? 1 : 1000)).toISOString();
}

export class Messages {
  constructor(conversation) {
    this.id = conversation;
    this.detail = null; // the conversation itself, as last read
    this.list = []; // oldest first
    this.hasOlder = true;
    this.known = new Map();
    this.loading = null;
    this.refresh = inTurn(() => this.#refresh());
    this.expected = new Map(); // announced messages that the history does not show yet: how often to look for them
  }

  /** Take note of a message that was announced. A sandbox may show sent messages with a delay. */
  expect(message, timestamp) {
    const newest = this.list.at(-NEWEST) ?? this.list[0];
    if (!this.known.has(message) && newest && newest.sortKey <= timeKey(timestamp)) this.expected.set(message, PATIENCE);
  }

  /** Whether there is a message to look for again; each call uses up some patience. */
  isWaiting() {
    for (const [message, patience] of this.expected) {
      if (this.known.has(message) || patience === 0) this.expected.delete(message);
      else this.expected.set(message, patience - 1);
    }
    return this.expected.size > 0;
  }

  /** Read the newest messages and the conversation; return the messages that were not known and are new. */
  async #refresh() {
    const detail = await getConversation(this.id, NEWEST);
    this.detail = detail;
    const page = ascending(detail.messages);
    const isFirst = this.list.length === 0;
    // By its oldest message: one in the middle may be known because it was sent from here.
    const overlaps = isFirst || this.known.has(page[0].id);
    if (!overlaps && page.length === NEWEST) {
      // A long absence. Close the gap, or begin anew if it is wide.
      let gap = page;
      for (let pages = 0; pages < CATCH_UP_PAGES; pages += 1) {
        const earlier = await listMessages(this.id, PAGE, justAfter(gap[0].receivedAt));
        const older = ascending(earlier.data);
        gap = [...older, ...gap];
        if (!earlier.hasMore || older.some((message) => this.known.has(message.id))) return this.#merge(gap);
      }
      this.list = [];
      this.known.clear();
      this.hasOlder = true;
    }
    const added = this.#merge(page);
    if (isFirst) this.hasOlder = page.length < detail.messageCount;
    return isFirst ? [] : added;
  }

  /** Read one more page backwards; callers that come meanwhile wait for the same page. */
  loadOlder() {
    this.loading ??= this.#loadOlder().finally(() => (this.loading = null));
    return this.loading;
  }

  async #loadOlder() {
    if (!this.hasOlder || this.list.length === 0) return;
    const oldest = this.list[0].receivedAt;
    let page = await listMessages(this.id, PAGE, justAfter(oldest));
    if (page.hasMore && page.data.every((message) => this.known.has(message.id))) {
      page = await listMessages(this.id, PAGE, oldest); // A whole page of one timestamp: step past it.
    }
    this.#merge(ascending(page.data), { isOldest: true });
    this.hasOlder = page.hasMore;
  }

  /** Read backwards until a timestamp is reached. */
  async loadUntil(timestamp) {
    while (this.hasOlder && (this.list.length === 0 || timeKey(this.list[0].receivedAt) >= timeKey(timestamp))) {
      await this.loadOlder();
    }
  }

  /** Read again what is around a message that changed and is not among the newest. */
  async reread(timestamp) {
    const isLoaded = this.list.length > 0 && timeKey(this.list[0].receivedAt) <= timeKey(timestamp);
    const isNewest = this.list.length <= NEWEST || timeKey(this.list.at(-NEWEST).receivedAt) <= timeKey(timestamp);
    if (isLoaded && !isNewest) this.#merge(ascending((await listMessages(this.id, 20, justAfter(timestamp))).data));
  }

  /** Add a message that the sandbox has just confirmed. */
  add(message) {
    return this.#merge([message]);
  }

  #merge(read, { isOldest = false } = {}) {
    const page = [...new Map(read.map((message) => [message.id, message])).values()]; // Pages overlap.
    for (const message of page) message.sortKey = timeKey(message.receivedAt);
    const added = page.filter((message) => !this.known.has(message.id));
    for (const message of page) this.known.set(message.id, message);
    const ids = new Set(page.map((message) => message.id));
    const others = this.list.filter((message) => !ids.has(message.id));
    // Stable, so that messages of one timestamp stay in the order in which the server lists them.
    this.list = (isOldest ? [...page, ...others] : [...others, ...page])
      .sort((a, b) => (a.sortKey < b.sortKey ? -1 : a.sortKey > b.sortKey ? 1 : 0));
    return added;
  }
}

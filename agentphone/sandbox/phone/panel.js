// Beside the thread: the state of the conversation, its webhook deliveries, and the latest requests of the API.

import { addFault, clearFaults, getDelivery, getRequest, listDeliveries, listRequests, redeliver } from "./api.js";
import { byId, coalesced, el, icon, inTurn, keepingFocus, keyed } from "./dom.js";
import { duration, preciseTime, pretty } from "./text.js";

const DELIVERIES = 30;
const REQUESTS = 60;

export class Panel {
  /** `report(promise, done)` shows how an action ended. */
  constructor({ report }) {
    this.report = report;
    this.conversation = null;
    this.states = new Map(); // by conversation: the state now, the one before, and when it changed
    this.requests = new Map();
    this.reported = null; // while the requests are read: those that the stream reports meanwhile
    this.loadRequests = inTurn(() => this.#loadRequests());
    this.refreshDeliveries = coalesced(() => this.#loadDeliveries());
    byId("clear-faults").addEventListener("click", () => this.report(clearFaults(), "No request will be made to fail."));
    for (const button of document.querySelectorAll("[data-fault]")) {
      button.addEventListener("click", () => {
        const { fault, name } = button.dataset;
        this.report(addFault(JSON.parse(fault)), `The next request gets ${name}.`);
      });
    }
  }

  /** Show what belongs to a conversation; null for none. */
  open(conversation) {
    this.conversation = conversation;
    byId("deliveries").replaceChildren();
    byId("deliveries").keyedChildren = undefined;
    byId("panel").classList.toggle("nothing-open", conversation === null);
    this.#showState();
    if (conversation !== null) this.refreshDeliveries();
  }

  /** Take note of a conversation's metadata as it is now. */
  setState(conversation, metadata) {
    const seen = this.states.get(conversation);
    const isSame = seen && JSON.stringify(seen.now) === JSON.stringify(metadata);
    if (!isSame) this.states.set(conversation, { now: metadata, before: seen?.now, changedAt: seen ? new Date() : null });
    if (conversation === this.conversation && !isSame) this.#showState();
  }

  #showState() {
    const state = this.states.get(this.conversation);
    const container = byId("state");
    if (!state) return container.replaceChildren();
    const isEmpty = state.now === null || state.now === undefined || Object.keys(state.now).length === 0;
    const tree = stateTree(state.now ?? {}, state.changedAt ? (state.before ?? {}) : state.now);
    container.replaceChildren(
      ...(isEmpty ? [el("p", { class: "empty", text: "No metadata. What your agent stores for this conversation appears here." })] : []),
      ...(tree.children.length > 0 ? [tree] : []),
    );
    byId("state-changed").textContent = state.changedAt ? `changed ${preciseTime(state.changedAt)}` : "";
  }

  async #loadDeliveries() {
    const conversation = this.conversation;
    if (conversation === null) return;
    const { data } = await listDeliveries(conversation, DELIVERIES);
    if (conversation !== this.conversation) return;
    byId("deliveries-empty").hidden = data.length > 0;
    const fillDelivery = (details) => this.#fillDelivery(details);
    keyed(byId("deliveries"), data, {
      key: (delivery) => delivery.id,
      version: (delivery) => JSON.stringify([delivery.status, delivery.attempts]),
      create: () => disclosure(fillDelivery),
      fill: (item, delivery) => {
        item.delivery = delivery;
        fillSummary(item, deliverySummary(delivery));
        if (item.firstElementChild.open) fillInside(item.firstElementChild, fillDelivery);
      },
    });
  }

  async #fillDelivery(details) {
    const { delivery } = details.parentElement;
    const whole = await getDelivery(delivery.id);
    const attempts = whole.attempts.map((attempt, index) =>
      el(
        "li",
        {},
        el("span", { class: "attempt-number", text: `${index + 1}` }),
        el("time", { datetime: attempt.at, text: preciseTime(attempt.at) }),
        badge(attempt.status, attempt.error === null),
        el("span", { class: "muted", text: duration(attempt.seconds) }),
        attempt.status === null && attempt.error ? el("span", { class: "failed", text: attempt.error }) : null,
      ),
    );
    const inside = [
      el("ol", { class: "attempts", "aria-label": "Attempts" }, ...attempts),
      el(
        "div",
        { class: "actions" },
        el(
          "button",
          {
            type: "button",
            class: "small",
            onclick: () => this.report(redeliver(delivery.id), "Delivering again, under the same id."),
          },
          icon("again"),
          "Deliver again",
        ),
        el("code", { class: "muted", text: delivery.id }),
      ),
      code("Payload", JSON.stringify(whole.payload, null, 2)),
    ];
    keepingFocus(details.lastElementChild, () => details.lastElementChild.replaceChildren(...inside));
  }

  /** Read all requests that the sandbox remembers. */
  async #loadRequests() {
    const reported = (this.reported = new Map());
    try {
      const { data } = await listRequests(REQUESTS);
      this.requests = new Map([...data.map((request) => [request.id, request]), ...reported]);
    } finally {
      this.reported = null;
    }
    this.#showRequests();
  }

  /** Show a request, or how it ended. */
  addRequest(request) {
    this.requests.set(request.id, request);
    this.reported?.set(request.id, request);
    this.showRequestsSoon ??= coalesced(() => this.#showRequests(), 50);
    this.showRequestsSoon();
  }

  #showRequests() {
    const newest = [...this.requests.values()].sort((a, b) => b.id - a.id).slice(0, REQUESTS);
    this.requests = new Map(newest.map((request) => [request.id, request]));
    byId("requests-empty").hidden = newest.length > 0;
    keyed(byId("requests"), newest, {
      // With the time: numbers begin anew when the sandbox does.
      key: (request) => `${request.id} ${request.at}`,
      version: (request) => `${request.status} ${request.seconds}`,
      create: () => disclosure(fillRequest),
      fill: (item, request) => {
        item.request = request;
        fillSummary(item, requestSummary(request));
        if (item.firstElementChild.open) fillInside(item.firstElementChild, fillRequest);
      },
    });
  }
}

async function fillRequest(details) {
  const { request } = details.parentElement;
  const whole = await getRequest(request.id);
  const query = Object.entries(whole.query).map(([name, value]) => `${name}=${value}`).join("\n");
  const headers = Object.entries(whole.headers).map(([name, value]) => `${name}: ${value}`).join("\n");
  details.lastElementChild.replaceChildren(
    el("p", { class: "path", text: `${whole.method} ${whole.path}` }),
    ...(query ? [code("Query", query)] : []),
    ...(whole.body ? [code("Body", pretty(whole.body))] : []),
    code("Headers", headers),
  );
}

function requestSummary(request) {
  const isOver = request.seconds !== null;
  return [
    el("span", { class: "method", text: request.method }),
    el("span", { class: "target", text: shortPath(request.path), title: request.path }),
    request.isFault ? el("span", { class: "tag fault", text: "fault" }) : null,
    isOver ? badge(request.status, request.status !== null && request.status < 400) : el("span", { class: "badge waiting", text: "…" }),
    el("span", { class: "muted milliseconds", text: duration(request.seconds) }),
  ];
}

/** A path with its ids shortened, so that what follows them can be seen. */
const shortPath = (path) => path.replace(/\b(?:conv|msg|dlv)_[0-9a-z]+([0-9a-z]{2})/gi, "…$1");

function deliverySummary(delivery) {
  const last = delivery.attempts.at(-1);
  const outcome =
    delivery.status === "pending" && !last
      ? el("span", { class: "badge waiting", text: "…" })
      : badge(last?.status ?? null, last?.error === null);
  const attempts = delivery.attempts.length;
  return [
    el("span", { class: "target", text: delivery.event }),
    attempts > 1 ? el("span", { class: "tag", text: `${attempts} attempts` }) : null,
    delivery.status === "pending" && last ? el("span", { class: "tag waiting", text: "retrying" }) : null,
    delivery.status === "failed" ? el("span", { class: "tag fault", text: "gave up" }) : null,
    outcome,
    el("span", { class: "muted milliseconds", text: last ? duration(last.seconds) : "" }),
    el("time", { class: "muted", datetime: delivery.createdAt, text: preciseTime(delivery.createdAt) }),
  ];
}

function badge(status, isGood) {
  return el("span", { class: `badge ${isGood ? "good" : "bad"}`, text: status === null ? "no answer" : `${status}` });
}

function disclosure(onOpen) {
  const details = el("details", {}, el("summary"), el("div", { class: "inside" }));
  details.addEventListener("toggle", () => {
    if (details.open) fillInside(details, onOpen);
  });
  return el("li", {}, details);
}

/** Show what belongs to an open row, or why it cannot be shown: the sandbox may be gone, or have forgotten it. */
function fillInside(details, fill) {
  fill(details).catch((error) => (details.lastElementChild.textContent = error.message));
}

function fillSummary(item, parts) {
  item.querySelector("summary").replaceChildren(...parts.filter(Boolean));
}

function code(name, text) {
  return el("div", { class: "code" }, el("h4", { text: name }), el("pre", { tabindex: "0", role: "region", "aria-label": name, dir: "ltr", text }));
}

/** JSON as a tree. What differs from `before` is marked; what is gone is struck through. */
function stateTree(value, before) {
  const list = el("ul", { class: "tree" });
  const isList = Array.isArray(value);
  for (const [key, item] of Object.entries(value)) {
    const earlier = before?.[key];
    const isChanged = JSON.stringify(item) !== JSON.stringify(earlier);
    list.append(stateRow(isList ? `${key}` : key, item, earlier, isChanged ? "changed" : ""));
  }
  for (const [key, item] of Object.entries(before ?? {})) {
    if (!Object.hasOwn(value, key)) list.append(stateRow(key, item, item, "removed"));
  }
  return list;
}

function stateRow(key, value, before, change) {
  const isTree = value !== null && typeof value === "object" && Object.keys(value).length > 0;
  const isSameKind = before !== null && typeof before === "object";
  const note = change && !(isTree && isSameKind) ? el("span", { class: "visually-hidden", text: ` (${change})` }) : null;
  const row = el("li", { class: isTree && isSameKind && change === "changed" ? "" : change }, el("span", { class: "key", dir: "auto", text: key }));
  if (isTree) row.append(note ?? "", stateTree(value, isSameKind ? before : {}));
  else row.append(el("span", { class: `value ${value === null ? "null" : typeof value}`, dir: "auto", text: typeof value === "string" ? value : JSON.stringify(value) }), note ?? "");
  return row;
}

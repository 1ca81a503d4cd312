// The page: which conversation is open, what happens to it, and what the person does.

import * as api from "./api.js";
import { byId, coalesced, keyed, memory, sleep } from "./dom.js";
import { ConversationList } from "./list.js";
import { Messages } from "./messages.js";
import { Panel } from "./panel.js";
import { connect } from "./stream.js";
import { channelName, number, phoneNumber } from "./text.js";
import { Thread } from "./thread.js";

const AGENT_NUMBER = "+15555550100"; // for a sandbox that has no conversation yet
const BURST = 10;
const STATES = {
  connecting: "Connecting…",
  live: "Live",
  polling: "Live, by polling",
  lost: "No connection",
};

const list = new ConversationList({ onOpen: (conversation, message) => open(conversation.id, { message }) });
const panel = new Panel({ report });
const thread = new Thread(byId("thread"), {
  onNeedOlder: () => loadOlder(),
  onScroll: (position) => {
    if (current !== null) memory.write(`position ${current.id}`, position);
  },
  onBottom: (isAtBottom) => {
    byId("to-newest").hidden = isAtBottom;
    if (isAtBottom) byId("to-newest").classList.remove("news");
  },
});

let current = null; // the Messages of the open conversation

// The open conversation

async function open(id, { message = null, push = true, focus = true } = {}) {
  const url = id === null ? "/" : `/?conversation=${encodeURIComponent(id)}`;
  if (push && url !== location.pathname + location.search) history.pushState(null, "", url);
  document.body.dataset.view = id === null ? "list" : "thread";
  if (current?.id !== id || id === null) {
    current = id === null ? null : new Messages(id);
    byId("composer-text").value = id === null ? "" : memory.read(`draft ${id}`, "");
    fitComposer();
    thread.clear();
    panel.open(id);
    list.setCurrent(id);
    showHeader(list.all.get(id) ?? null);
  }
  if (id === null) return;
  list.setRead(id);
  if (focus && matchMedia("(min-width: 720px)").matches) byId("composer-text").focus();
  const opened = current;
  const place = message ?? memory.read(`position ${id}`, null);
  try {
    if (opened.detail === null) await opened.refresh();
    if (place !== null) await opened.loadUntil(place.receivedAt);
  } catch (error) {
    if (opened !== current || error.status === 0) return; // Everything is read again once the sandbox is back.
    if (error.status !== 404) throw error;
    list.remove(id);
    await open(null, { push: false });
    return announce("That conversation does not exist any more.", { isError: true });
  }
  if (opened !== current) return;
  showMessages();
  if (message !== null) thread.reveal(message.id);
  else if (place !== null) thread.restore(place);
}

async function refreshCurrent() {
  const opened = current;
  if (opened === null) return;
  try {
    const added = await opened.refresh();
    if (opened !== current) return;
    showMessages();
    for (const message of added) announceMessage(message);
    if (opened.isWaiting()) setTimeout(refreshCurrentSoon, 1000);
  } catch (error) {
    if (error.status === 404 && opened === current) {
      list.remove(opened.id);
      await open(null);
    } else throw error;
  }
}
const refreshCurrentSoon = coalesced(refreshCurrent, 20);

async function loadOlder() {
  const opened = current;
  if (opened === null || opened.loading) return;
  try {
    await opened.loadOlder();
  } catch {
    await sleep(1000); // The stream finds out what is wrong.
  }
  if (opened === current) showMessages();
}

function showMessages() {
  const { detail, list: messages, hasOlder } = current;
  list.update(detail);
  showHeader(detail);
  panel.setState(detail.id, detail.metadata);
  thread.show(messages, { hasOlder, count: detail.messageCount });
}

function showHeader(conversation) {
  document.body.classList.toggle("conversation-open", current !== null);
  byId("participant").textContent = conversation ? (conversation.groupName ?? phoneNumber(conversation.participant)) : "";
  const count = conversation?.messageCount ?? 0;
  byId("about-conversation").textContent = conversation
    ? `with ${phoneNumber(conversation.phoneNumber)} · ${number(count)} ${count === 1 ? "message" : "messages"} · ${channelName(conversation.channel)}`
    : "";
  const members = (conversation?.isGroup && conversation.participants?.map(({ identifier }) => identifier)) || [];
  byId("member").hidden = members.length === 0;
  keyed(byId("member"), members, { key: (member) => member, create: (member) => new Option(phoneNumber(member), member) });
  const label = !conversation ? "Text" : members.length > 0 ? "Text the group" : `Text as ${phoneNumber(conversation.participant)}`;
  byId("composer-text").placeholder = label;
  byId("composer-text").setAttribute("aria-label", label);
}

function announceMessage(message) {
  if (!thread.isAtBottom) byId("to-newest").classList.add("news");
  announce(`${message.direction === "outbound" ? "Agent" : "Person"}: ${message.body || "media"}`, { isQuiet: true });
}

// What the person does

async function send(opened, bodies) {
  if (opened.detail === null) await opened.refresh();
  const { detail } = opened;
  thread.toBottom();
  const person = detail.isGroup ? byId("member").value : detail.participant;
  const where = detail.isGroup ? { group: detail.groupId } : detail.channel === "whatsapp" ? { channel: "whatsapp" } : {};
  for (const body of bodies) {
    const message = await api.text(person, detail.phoneNumber, body, where);
    if (message.conversationId !== opened.id) return void (await open(message.conversationId)); // another channel's
    opened.add(message);
    if (opened === current) showMessages();
  }
  if (opened === current) thread.toBottom();
}

function takeDraft() {
  const field = byId("composer-text");
  const body = field.value;
  field.value = "";
  keepDraft();
  fitComposer();
  return body;
}

async function sendDraft(bodiesOf) {
  const opened = current;
  if (opened === null) return;
  const body = takeDraft();
  byId("composer-text").focus();
  try {
    await send(opened, bodiesOf(body));
  } catch (error) {
    // Nothing typed is lost.
    const field = byId("composer-text");
    if (opened !== current) memory.write(`draft ${opened.id}`, body);
    else if (field.value === "") field.value = body;
    keepDraft();
    fitComposer();
    report(Promise.reject(error));
  }
}

function keepDraft() {
  if (current !== null) memory.write(`draft ${current.id}`, byId("composer-text").value);
}

function fitComposer() {
  const field = byId("composer-text");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 160)}px`;
  byId("send").disabled = field.value.trim() === "";
}

function burst(body) {
  return Array.from({ length: BURST }, (_, index) => `${body.trim() || "Burst"} (${index + 1} of ${BURST})`);
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (byId("composer-text").value.trim() !== "") sendDraft((body) => [body]);
});
byId("composer-text").addEventListener("input", () => {
  fitComposer();
  keepDraft();
});
byId("composer-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("composer").requestSubmit();
  }
});
byId("send-twice").addEventListener("click", () => sendDraft((body) => [body.trim() || "Hello", body.trim() || "Hello"]));
byId("send-burst").addEventListener("click", () => sendDraft(burst));
byId("to-newest").addEventListener("click", () => {
  thread.toBottom();
  byId("thread").focus();
});
byId("back").addEventListener("click", () => {
  open(null);
  list.list.querySelector("a")?.focus();
});

// A new conversation

const newText = byId("new-text");
for (const button of document.querySelectorAll("[data-new-text]")) {
  button.addEventListener("click", () => {
    const agents = [...new Set([...list.sorted().map(({ phoneNumber: agent }) => agent), AGENT_NUMBER])];
    byId("agent-numbers").replaceChildren(...agents.map((agent) => new Option(phoneNumber(agent), agent)));
    byId("new-to").value = list.all.get(current?.id)?.phoneNumber ?? agents[0];
    byId("new-from").value ||= freeNumber();
    byId("new-error").textContent = "";
    newText.showModal();
    byId("new-from").select();
  });
}
byId("new-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [from, to, body] = ["new-from", "new-to", "new-body"].map((id) => byId(id).value.trim());
  try {
    const message = await api.text(from, to, body);
    newText.close();
    byId("new-from").value = "";
    byId("new-body").value = "";
    await open(message.conversationId);
  } catch (error) {
    byId("new-error").textContent = error.message;
  }
});
byId("new-cancel").addEventListener("click", () => newText.close());

/** A number of the range that is reserved for fiction and that has no conversation yet. */
function freeNumber() {
  const taken = new Set([...list.all.values()].map(({ participant }) => participant));
  for (let last = 110; last < 200; last += 1) if (!taken.has(`+15555550${last}`)) return `+15555550${last}`;
  return `+1555555${Math.floor(1000 + Math.random() * 9000)}`;
}

// The key

api.onKeyNeeded((wasWrong) => {
  const dialog = byId("key-dialog");
  byId("key-error").textContent = wasWrong ? "That is not this sandbox's key." : "";
  byId("key").value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close();
      resolve(byId("key").value.trim());
      byId("key").value = "";
    };
  });
});
byId("key-dialog").addEventListener("cancel", (event) => event.preventDefault()); // Nothing works without.

// The drawer of small screens

function toggleDrawer(isOpen) {
  document.body.classList.toggle("drawer-open", isOpen);
  byId("open-drawer").setAttribute("aria-expanded", `${isOpen}`);
  for (const id of ["conversations", "main"]) byId(id).inert = isOpen;
  (isOpen ? byId("close-drawer") : byId("open-drawer")).focus();
}
byId("open-drawer").addEventListener("click", () => toggleDrawer(true));
byId("close-drawer").addEventListener("click", () => toggleDrawer(false));
byId("shade").addEventListener("click", () => toggleDrawer(false));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.classList.contains("drawer-open")) toggleDrawer(false);
});
matchMedia("(min-width: 1100px)").addEventListener("change", ({ matches }) => {
  if (matches && document.body.classList.contains("drawer-open")) toggleDrawer(false);
});

// What happened, in words

let toastTimer = 0;

/** Say something: to screen readers, and unless it is quiet to everyone. */
function announce(text, { isQuiet = false, isError = false } = {}) {
  byId("announcer").textContent = text;
  if (isQuiet) return;
  const toast = byId("toast");
  toast.textContent = text;
  toast.classList.toggle("error", isError);
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (toast.hidden = true), 5000);
}

/** Say how an action ended. */
async function report(action, done) {
  try {
    await action;
    if (done) announce(done);
  } catch (error) {
    announce(error.message, { isError: true });
  }
}

// Changes

function onEvent(name, data) {
  if (name === "reset") readEverything();
  else if (name === "request") panel.addRequest(data);
  else if (name === "polled") panel.loadRequests().catch(() => {});
  else if (name === "change") onChange(data);
}

function onChange({ kind, conversationId, messageId, receivedAt }) {
  const isOpen = conversationId === current?.id;
  if (kind === "delivery") {
    if (isOpen) panel.refreshDeliveries();
    return;
  }
  if (kind === "removed") {
    if (isOpen) refreshCurrentSoon();
    else list.remove(conversationId);
    return;
  }
  if (kind === "message") {
    list.refreshSoon();
    if (!isOpen || document.hidden) list.setUnread(conversationId);
    if (isOpen) {
      current.expect(messageId, receivedAt);
      current.reread(receivedAt).catch(() => {});
    }
  }
  if (isOpen && (kind === "message" || kind === "metadata")) refreshCurrentSoon();
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && current !== null) list.setRead(current.id);
});

async function readEverything() {
  await Promise.all([list.reset(), panel.loadRequests(), refreshCurrent()]).catch(() => {});
}

let isLost = false;

function onState(state) {
  byId("connection").dataset.state = state;
  byId("connection-text").textContent = STATES[state];
  byId("lost").hidden = state !== "lost";
  if (state === "lost") isLost = true;
  else if (isLost) {
    isLost = false;
    announce("The sandbox is back.", { isQuiet: true });
    readEverything(); // Requests have no ids to resume from, and it may be another sandbox.
  }
}

async function start() {
  onState("connecting");
  fitComposer();
  let last = null;
  while (last === null) {
    // The first call, which asks for the key if there is one. Everything after it is reported by the stream.
    last = await api.changesSince(null).then((changes) => changes.last, () => sleep(500).then(() => null));
  }
  connect(last, { onEvent, onState });
  await list.refresh().catch(() => {});
  panel.loadRequests().catch(() => {});
  const id = new URLSearchParams(location.search).get("conversation");
  const first = matchMedia("(min-width: 720px)").matches ? (list.sorted()[0]?.id ?? null) : null;
  await open(id ?? first, { push: false, focus: id === null });
}

window.addEventListener("popstate", () => open(new URLSearchParams(location.search).get("conversation"), { push: false }));
start();

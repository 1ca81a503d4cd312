// Changes as they happen. One tab holds the stream and tells the others: browsers allow six connections to a server.
// Where a stream does not get through, it polls.

import { changesSince, currentKey, headers, renewKey } from "./api.js";
import { sleep } from "./dom.js";

const FIRST_BYTE = 4_000; // A proxy that collects the response would never let anything through.
const SILENCE = 40_000; // The sandbox sends a comment every 15 seconds.
const POLL = 1_000;
const POLL_FOR = 10_000; // Then the stream is tried again.
const BACKOFF = [200, 500, 1_000, 2_000];

/**
 * Report the changes after an id until the page is closed.
 *
 * `onEvent(name, data)`: `change` and `request`; `reset` means that everything is to be read again.
 * `onState(state)`: `live`, `polling` or `lost`.
 */
export function connect(lastId, { onEvent, onState }) {
  let state = null;
  const channel = "BroadcastChannel" in window ? new BroadcastChannel("agentphone-sandbox") : null;
  let isLeader = false;

  function setState(next) {
    if (isLeader) channel?.postMessage({ state: next });
    if (next !== state) onState((state = next));
  }

  function deliver(name, data, id) {
    if (id) lastId = id;
    onEvent(name, data);
  }

  function publish(name, data, id) {
    channel?.postMessage({ name, data, id });
    deliver(name, data, id);
  }

  channel?.addEventListener("message", ({ data }) => {
    if (data.hello) {
      if (isLeader && state !== null) channel.postMessage({ state });
    } else if (isLeader) return;
    else if (data.state) setState(data.state);
    else deliver(data.name, data.data, data.id);
  });

  async function lead() {
    isLeader = true;
    let failures = 0;
    for (;;) {
      const startedAt = performance.now();
      await readStream(lastId, publish, () => setState("live")).catch(() => {});
      failures = performance.now() - startedAt > 5_000 ? 0 : failures + 1;
      if (failures === 0) continue;
      const pollUntil = performance.now() + (failures > 1 ? POLL_FOR : 0);
      do {
        const works = await poll().then(() => true, () => false);
        if (!works) setState("lost");
        else if (failures > 1) setState("polling");
        await sleep(works ? POLL : BACKOFF[Math.min(failures - 1, BACKOFF.length - 1)]);
        if (!works) break;
      } while (performance.now() < pollUntil);
    }
  }

  async function poll() {
    const changes = await changesSince(lastId);
    if (changes.isReset) publish("reset", {}, changes.last);
    for (const change of changes.data) publish("change", change, change.id);
    publish("polled", {}, changes.last);
  }

  channel?.postMessage({ hello: true });
  // Locks need a secure context, which a loopback address is. Elsewhere each tab has a stream of its own.
  if (channel && navigator.locks) navigator.locks.request("agentphone-sandbox", lead);
  else lead();
}

async function readStream(lastId, onEvent, onOpen) {
  const abort = new AbortController();
  let timer = setTimeout(() => abort.abort(), FIRST_BYTE);
  try {
    const used = currentKey();
    const response = await fetch("/sandbox/events", {
      headers: headers({ Accept: "text/event-stream", ...(lastId === null ? {} : { "Last-Event-ID": lastId }) }),
      cache: "no-store",
      signal: abort.signal,
    });
    if (response.status === 401) {
      clearTimeout(timer);
      return await renewKey(used);
    }
    if (!response.ok || !response.headers.get("content-type")?.startsWith("text/event-stream")) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let isFirst = true; ; isFirst = false) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE);
      if (isFirst) onOpen();
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)));
        if (fields.event) onEvent(fields.event, JSON.parse(fields.data), fields.id);
      }
    }
  } finally {
    clearTimeout(timer);
    abort.abort();
  }
}

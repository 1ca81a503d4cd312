// Elements from data. Everything that people or agents wrote is set as text; nothing here parses markup.

/** Create an element. `properties` are attributes; `class`, `text`, `on…` and booleans are understood. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Create an icon from the sprite in index.html; decoration only, so its button needs a name. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const byId = (id) => document.getElementById(id);

/**
 * Make the children of a container those of the items, in their order. An element stays as long as its item's key
 * does, with its focus and open details; it is filled again only if the item's version changed.
 */
export function keyed(container, items, { key, version = () => "", create, fill }) {
  const before = container.keyedChildren ?? new Map();
  const after = new Map();
  const wantedKeys = new Set(items.map(key));
  for (const [name, { element }] of before) if (!wantedKeys.has(name)) element.remove();
  let next = container.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let entry = before.get(name);
    const wanted = version(item);
    if (entry === undefined) {
      entry = { element: create(item), version: wanted };
      fill?.(entry.element, item);
    } else if (entry.version !== wanted) {
      entry.version = wanted;
      fill?.(entry.element, item);
    }
    after.set(name, entry);
    if (entry.element === next) next = next.nextElementSibling;
    else keepingFocus(entry.element, () => container.insertBefore(entry.element, next));
  }
  container.keyedChildren = after;
}

/** Run a function that moves an element or replaces what is in it; a focus in it stays where it was. */
export function keepingFocus(element, run) {
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  const tag = focused?.localName;
  run();
  if (focused === null || focused === document.activeElement) return;
  (focused.isConnected ? focused : element.querySelector(tag))?.focus({ preventScroll: true });
}

/** Run a function soon, and once for all calls that come before it has finished. */
export function coalesced(run, delay = 30) {
  let isWaiting = false;
  let isRunning = false;
  let isWanted = false;
  async function go() {
    isWaiting = false;
    isRunning = true;
    try {
      await run();
    } catch (error) {
      if (error.status !== 0) throw error; // A lost server is noticed by the stream; then everything is read again.
    } finally {
      isRunning = false;
      if (isWanted) {
        isWanted = false;
        call();
      }
    }
  }
  function call() {
    if (isRunning) isWanted = true;
    else if (!isWaiting) {
      isWaiting = true;
      setTimeout(go, delay);
    }
  }
  return call;
}

/** Make an asynchronous function run once at a time: the result of an earlier call never replaces a later one's. */
export function inTurn(run) {
  let last = Promise.resolve();
  return () => {
    const next = last.then(run, run);
    last = next.catch(() => {});
    return next;
  };
}

export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** What this tab remembers across a reload. The key is never among it. */
export const memory = {
  read(name, otherwise) {
    try {
      return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(name, value) {
    try {
      sessionStorage.setItem(name, JSON.stringify(value));
    } catch {
      // Full or forbidden: the page works without.
    }
  },
};

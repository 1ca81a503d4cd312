// Calls to the sandbox: the API proper under /v1, and /sandbox for what only a sandbox has.

let key = "phone"; // A sandbox without --api-key accepts any. It stays in this variable: a reload forgets it.
let askForKey = async () => null;
let asking = null;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Set what asks the person for the key: called with whether one was wrong, resolves to the key. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export function headers(more = {}) {
  // Without the Authorization header the sandbox does nothing, so no other site's page can make it do anything.
  return { Authorization: `Bearer ${key}`, "X-AgentPhone-Phone": "1", ...more };
}

/** Wait until the person has given another key than the one that was rejected. */
export async function renewKey(rejected) {
  if (rejected !== key) return;
  asking ??= askForKey(key !== "phone").then((given) => {
    key = given;
    asking = null;
  });
  await asking;
}

export const currentKey = () => key;

/** Return the JSON of a response. Raises ApiError, with status 0 if the sandbox cannot be reached. */
export async function call(method, path, body) {
  for (;;) {
    const used = key;
    const response = await fetch(path, {
      method,
      cache: "no-store",
      headers: headers(body === undefined ? {} : { "Content-Type": "application/json" }),
      body: body === undefined ? undefined : JSON.stringify(body),
    }).catch(() => {
      throw new ApiError(0, "The sandbox cannot be reached.");
    });
    if (response.status === 401) {
      await renewKey(used);
      continue;
    }
    const text = await response.text().catch(() => "");
    let content = null;
    try {
      content = text === "" ? null : JSON.parse(text);
    } catch {
      // An error page of something in between.
    }
    if (!response.ok) throw new ApiError(response.status, content?.error?.message ?? `The sandbox answered ${response.status}.`);
    return content;
  }
}

const id = encodeURIComponent;

export const listConversations = (limit, offset) => call("GET", `/v1/conversations?limit=${limit}&offset=${offset}`);
export const getConversation = (conversation, limit) =>
  call("GET", `/v1/conversations/${id(conversation)}?message_limit=${limit}`);
export const listMessages = (conversation, limit, before) =>
  call("GET", `/v1/conversations/${id(conversation)}/messages?limit=${limit}${before ? `&before=${id(before)}` : ""}`);
/** Text as a person. `more` says where: the group, or the channel where it is a conversation of its own. */
export const text = (from, to, body, more = {}) =>
  call("POST", "/sandbox/messages", { direction: "inbound", from, to, body, ...more });
export const search = (query) => call("GET", `/sandbox/search?q=${id(query)}`);
export const listDeliveries = (conversation, limit) =>
  call("GET", `/sandbox/deliveries?conversation_id=${id(conversation)}&limit=${limit}`);
export const getDelivery = (delivery) => call("GET", `/sandbox/deliveries/${id(delivery)}`);
export const redeliver = (delivery) => call("POST", `/sandbox/deliveries/${id(delivery)}/redeliver`);
export const listRequests = (limit) => call("GET", `/sandbox/requests?limit=${limit}`);
export const getRequest = (number) => call("GET", `/sandbox/requests/${number}`);
export const addFault = (fault) => call("POST", "/sandbox/faults", fault);
export const clearFaults = () => call("DELETE", "/sandbox/faults");
export const changesSince = (last) => call("GET", `/sandbox/changes${last === null ? "" : `?after=${last}`}`);

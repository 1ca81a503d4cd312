// How numbers, times, sizes and JSON are shown.

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const preciseClock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const dayOfYear = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const weekday = new Intl.DateTimeFormat(undefined, { weekday: "short" });
const shortDay = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const shortDayOfYear = new Intl.DateTimeFormat(undefined, { day: "2-digit", month: "2-digit", year: "2-digit" });
const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const count = new Intl.NumberFormat();

export const timeOfDay = (timestamp) => clock.format(new Date(timestamp));
export const preciseTime = (timestamp) => preciseClock.format(new Date(timestamp));
export const wholeTime = (timestamp) => whole.format(new Date(timestamp));
export const number = (value) => count.format(value);

/** A timestamp as a key that sorts as time does, whatever its number of fractional digits. */
export const timeKey = (timestamp) => timestamp.replace(/Z$/, "");

export const dayKey = (timestamp) => new Date(timestamp).toDateString();

function daysAgo(date) {
  const midnight = (moment) => new Date(moment.getFullYear(), moment.getMonth(), moment.getDate());
  return Math.round((midnight(new Date()) - midnight(date)) / 86_400_000);
}

export function dayName(timestamp) {
  const date = new Date(timestamp);
  const ago = daysAgo(date);
  if (ago === 0) return "Today";
  if (ago === 1) return "Yesterday";
  return (date.getFullYear() === new Date().getFullYear() ? day : dayOfYear).format(date);
}

export function shortTime(timestamp) {
  const date = new Date(timestamp);
  const ago = daysAgo(date);
  if (ago === 0) return clock.format(date);
  if (ago > 0 && ago < 7) return weekday.format(date);
  return (date.getFullYear() === new Date().getFullYear() ? shortDay : shortDayOfYear).format(date);
}

/** A North American number with its usual spaces; every other participant as it is. */
export function phoneNumber(value) {
  const parts = /^\+1(\d{3})(\d{3})(\d{4})$/.exec(value ?? "");
  return parts ? `+1 ${parts[1]} ${parts[2]} ${parts[3]}` : (value ?? "");
}

const CHANNELS = { sms: "SMS", mms: "MMS", imessage: "iMessage", whatsapp: "WhatsApp" };

export const channelName = (channel) => CHANNELS[channel] ?? channel ?? "SMS";

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}

export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** Two characters for a participant: the end of a number, the start of a name. */
export function initials(participant) {
  const digits = /\d{2}$/.exec(participant ?? "");
  return digits ? digits[0] : (participant ?? "?").slice(0, 2).toUpperCase();
}

/** One of eight hues, the same for a participant each time. */
export function hue(participant) {
  let sum = 0;
  for (const letter of participant ?? "") sum = (sum * 31 + letter.codePointAt(0)) % 997;
  return sum % 8;
}

/** The name of a media file, for the text of its link. */
export function mediaName(url) {
  try {
    const { pathname, hostname } = new URL(url);
    return decodeURIComponent(pathname.split("/").pop()) || hostname;
  } catch {
    return url;
  }
}

export const isWebAddress = (url) => /^https?:\/\//i.test(url);

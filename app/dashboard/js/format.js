// Numbers as people read them. What is unknown is a dash.

export const DASH = '–';

const compactFormat = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const wholeFormat = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });

const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

// 12,345
export const whole = (value) => (known(value) ? wholeFormat.format(value) : DASH);

// 12.3K
export const compact = (value) => (known(value) ? compactFormat.format(value) : DASH);

// As many digits as say something: 2.345, 0.0123, 1.5e-5
export function number(value, digits = 4) {
  if (!known(value)) return DASH;
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace(/\.?0+e/, 'e').replace('e+', 'e');
  return String(Number(value.toPrecision(digits)));
}

export const percent = (share) => (known(share) ? `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %` : DASH);

// Powers of 1024: 1.5 GB as file managers say it.
export function bytes(value) {
  if (!known(value)) return DASH;
  const units = ['B', 'KB', 'MB', 'GB', 'TB', 'PB'];
  let place = 0;
  let left = value;
  while (left >= 1024 && place < units.length - 1) {
    left /= 1024;
    place += 1;
  }
  return `${place === 0 || left >= 100 ? Math.round(left) : left.toFixed(1)} ${units[place]}`;
}

// 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  const total = Math.max(0, Math.round(seconds));
  if (total < 60) return `${total} s`;
  const units = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];
  const first = units.findIndex(([, size]) => total >= size);
  const [name, size] = units[first];
  const [smaller, its] = units[first + 1] ?? [];
  const rest = its ? Math.floor((total % size) / its) : 0;
  return `${Math.floor(total / size)} ${name}${rest ? ` ${rest} ${smaller}` : ''}`;
}

// Seconds since 1970, as the API has them: 14:03:20 today, 3 May 14:03 otherwise.
export function time(seconds) {
  if (!known(seconds)) return DASH;
  const at = new Date(seconds * 1000);
  const clock = { hour: '2-digit', minute: '2-digit' };
  if (at.toDateString() === new Date().toDateString()) return at.toLocaleTimeString('en-GB', { ...clock, second: '2-digit' });
  const year = at.getFullYear() === new Date().getFullYear() ? {} : { year: 'numeric' };
  return at.toLocaleString('en-GB', { day: 'numeric', month: 'short', ...year, ...clock });
}

// 5 min ago
export function ago(seconds) {
  if (!known(seconds)) return DASH;
  const since = Date.now() / 1000 - seconds;
  if (since < 45) return 'just now';
  return `${duration(since < 3600 ? Math.round(since / 60) * 60 : since < 86400 ? Math.round(since / 3600) * 3600 : Math.round(since / 86400) * 86400)} ago`;
}

// A name of somebody else's within a sentence: what it says about the direction of writing ends with it (U+202E would
// have the "24 rows" after it read "swor 42").
export const isolated = (name) => `\u2068${name}\u2069`;

// "1 file", "3 files"
export const count = (value, one, many = `${one}s`) => `${whole(value)} ${value === 1 ? one : many}`;

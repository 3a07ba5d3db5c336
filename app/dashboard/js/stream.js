// Server-sent events read by fetch: EventSource sends no header, and a key in an address would stand in every log.

import { api, ApiError } from './api.js';

const FIRST_WAIT = 500; // ms, doubled up to
const LONGEST_WAIT = 15_000;

// One JSON object a message until the server says that it is over (204), or [DONE], or `signal` fires.
// onMessage(data, id), onState('live' | 'waiting' | 'over'). Comes back whenever the line breaks, from the last id on.
export async function follow(path, { query, lastId = null, signal, onMessage, onState = () => {} }) {
  let last = lastId;
  let wait = FIRST_WAIT;
  while (!signal.aborted) {
    try {
      const answer = await api.raw(path, { query, signal, headers: last === null ? {} : { 'last-event-id': last } });
      if (answer.status === 204) {
        onState('over');
        return;
      }
      onState('live');
      let heard = false;
      for await (const { id, data } of messages(answer.body)) {
        if (id !== null) last = id;
        heard = true;
        onMessage(JSON.parse(data), id);
      }
      if (heard) {
        wait = FIRST_WAIT;
        continue; // it ended as it should, and says so when asked again
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    if (signal.aborted) return;
    onState('waiting');
    // Chance spreads the clients of a server that comes back.
    await pause(wait * (0.75 + Math.random() / 2), signal);
    wait = Math.min(LONGEST_WAIT, wait * 2);
  }
}

// The messages of one body: {id, data}. Also for answers to a POST, which are not asked for again.
export async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let left = '';
  let id = null;
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      left += value;
      const lines = left.split(/\r\n|\n|\r(?!$)/);
      left = lines.pop();
      for (const line of lines) {
        if (line === '') {
          if (data.length) yield { id, data: data.join('\n') };
          data = [];
        } else if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
        else if (line.startsWith('id:')) id = line.slice(3).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Until the time is over, the signal fires or `target` has the event. Leaves no listener behind: a page may stay open for days.
export function pause(milliseconds, signal, target = null, event = '') {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      target?.removeEventListener(event, done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener('abort', done);
    target?.addEventListener(event, done);
  });
}

// Until the browser has shown what was drawn; a page that nobody sees shows nothing, and waits a moment.
export function seen(signal) {
  const shown = new Promise((resolve) => { requestAnimationFrame(() => requestAnimationFrame(resolve)); });
  return Promise.race([shown, pause(500, signal)]);
}

// A function that has `work` done soon, once for all that ask for it within `milliseconds`.
export function soon(work, milliseconds, signal) {
  let timer = null;
  signal.addEventListener('abort', () => clearTimeout(timer), { once: true });
  return () => {
    timer ??= setTimeout(() => {
      timer = null;
      work();
    }, milliseconds);
  };
}

// A function that has `take` given the answer to `ask`, unless it was asked again meanwhile: answers overtake one another.
export function newest(ask, take) {
  let asked = 0;
  return async () => {
    const mine = ++asked;
    const answer = await ask();
    if (mine === asked) take(answer);
  };
}

// Call `look` now and every `milliseconds` after it ended, at once when the page is seen again and not while nobody sees it.
// Errors are `onError`'s.
export async function poll(look, milliseconds, signal, onError = () => {}) {
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        await look();
      } catch (error) {
        if (signal.aborted) return;
        onError(error);
      }
    }
    await pause(milliseconds, signal, document, 'visibilitychange');
  }
}

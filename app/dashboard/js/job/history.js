// What happened to a job: its events, and the attempts with what ended each.

import { api } from '../api.js';
import { h, show as fill } from '../dom.js';
import { compact, DASH, duration, time, whole } from '../format.js';
import { act, button, table } from '../parts.js';
import { newest } from '../stream.js';
import { jobPath } from '../wishes.js';

const PAGE = 50;
const MOST = 500; // lines on the page
const REASONS = {
  finished: 'finished', preempted: 'it gave way to an urgent job', drained: 'its worker was stopped', interrupted: 'its worker was stopped', paused: 'paused', cancelled: 'cancelled', worker_lost: 'its worker was not heard of any more',
  worker_crashed: 'the trainer crashed', offline: 'its worker lost the database', claim_lost: 'another worker had it', stalled: 'nothing moved any more',
};

// {element, load() → the newest event's id or "", add(event)}
export function makeEvents(jobId, signal) {
  const list = h('ol', { class: 'events' });
  const older = button('Older events', { small: true, onclick: () => act(older, more) });
  const element = h('div', { class: 'stack' }, h('h2', {}, 'Events'), list, older);
  older.hidden = true;
  const seen = new Set();
  let last = null;

  function line(event) {
    seen.add(event.id);
    const [first, ...rest] = event.message.split('\n');
    return h('li', { dataset: { level: event.level } },
      h('time', { class: 'muted nowrap', datetime: new Date(event.created_at * 1000).toISOString() }, time(event.created_at)),
      h('div', {}, event.level === 'info' ? null : h('span', { class: 'level' }, event.level === 'warn' ? 'Warning: ' : 'Error: '), first,
        rest.length ? h('details', {}, h('summary', {}, 'All of it'), h('pre', { tabindex: '0' }, rest.join('\n'))) : null));
  }

  async function more() {
    const page = await api.get(`${jobPath(jobId)}/events`, { query: { type: 'message', limit: PAGE, after: last }, signal });
    list.append(...page.data.filter((event) => !seen.has(event.id)).map(line));
    last = page.last_id ?? last;
    older.hidden = !page.has_more;
    return page;
  }

  return {
    element,
    load: async () => (await more()).first_id ?? '',
    add(event) {
      if (seen.has(event.id) || event.type !== 'message') return;
      list.prepend(line(event));
      while (list.children.length > MOST) list.lastChild.remove();
    },
  };
}

// {element, load()}
export function makeAttempts(jobId, signal) {
  const area = h('div');
  const element = h('div', { class: 'stack' }, h('h2', {}, 'Attempts'), area);
  let drawn = null;

  function draw(list) {
    const key = JSON.stringify(list);
    if (key === drawn) return;
    drawn = key;
    if (!list.length) {
      fill(area, h('p', { class: 'muted' }, 'No worker has had it yet.'));
      return;
    }
    const columns = [{ text: 'Attempt', class: 'num' }, 'Worker', 'Device', 'Began', { text: 'Lasted', class: 'num' }, { text: 'Tokens/s', class: 'num' }, 'Ended'];
    fill(area, table(columns, list.map((row, i) => [
      whole(list.length - i),
      h('span', { class: 'mono' }, row.worker),
      row.device ?? DASH,
      h('span', { class: 'nowrap' }, time(row.started_at)),
      row.ended_at ? duration(row.ended_at - row.started_at) : 'goes on',
      row.tokens_per_second === null ? DASH : compact(row.tokens_per_second),
      row.ended_at ? [REASONS[row.reason] ?? (row.reason ?? DASH).replaceAll('_', ' '), row.exit_code ? h('span', { class: 'muted' }, row.exit_code < 0 ? ` (signal ${-row.exit_code})` : ` (exit code ${row.exit_code})`) : null] : DASH,
    ]), { label: 'Attempts' }));
  }

  return {
    element,
    load: newest(() => api.get(`${jobPath(jobId)}/attempts`, { query: { limit: 200 }, signal }), ({ data }) => draw(data)),
  };
}

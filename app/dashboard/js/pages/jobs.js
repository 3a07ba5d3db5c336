// All jobs: what runs, what waits, what became of the others. One page of the list is looked at again every few seconds.

import { api } from '../api.js';
import { h, setText, show as fill } from '../dom.js';
import { ago, DASH, duration, number, percent, time, whole } from '../format.js';
import { act, badge, button, buttonLink, emptyState, errorState, head, menu, skeleton } from '../parts.js';
import { keep, link } from '../router.js';
import { sparkline } from '../sparkline.js';
import { poll } from '../stream.js';
import { ENDED, nameOf, share, standing, wishes } from '../wishes.js';

export const title = 'Jobs';

const PAGE = 50;
const EVERY = 3_000; // ms
const POINTS = 28; // of a sparkline
const FILTERS = [
  ['', 'All'], ['active', 'Active'], ['succeeded', 'Succeeded'], ['failed', 'Failed'], ['cancelled', 'Cancelled'],
];
const ACTIVE = ['validating_files', 'queued', 'running', 'paused'];

export async function show(root, params, signal) {
  const state = { filter: params.status ?? '', search: params.search ?? '', after: params.after ?? '', before: [] };
  const rows = new Map();
  const chosen = new Set();
  let more = false;
  let asked = 0; // the newest request alone is drawn

  const search = h('input', { type: 'search', name: 'search', placeholder: 'Search name, model, id  ( / )', 'aria-label': 'Search jobs', value: state.search, oninput: later(() => change({ search: search.value.trim() }), 250, signal) });
  const filters = FILTERS.map(([value, label]) => h('button', { type: 'button', 'aria-pressed': String(value === state.filter), onclick: () => change({ filter: value }) }, label));
  const compare = buttonLink('Compare', '#/compare');
  compare.hidden = true;
  const live = h('span', { class: 'live', role: 'status' });
  const body = h('tbody');
  const list = h('div', { class: 'table-box jobs', hidden: true },
    h('table', {},
      h('thead', {}, h('tr', {}, ['', 'Job', 'Status', 'Progress', 'Loss', 'Created', ''].map((text, i) => h('th', { scope: 'col', class: ['pick', 'job', 'status', 'how-far', 'loss', 'created', 'do'][i] }, text || h('span', { class: 'sr' }, i ? 'Actions' : 'Compare'))))),
      body));
  const instead = h('div', {}, skeleton(8));
  const newer = button('Newer', { small: true, onclick: () => turn(state.before.pop() ?? '') });
  const older = button('Older', { small: true, onclick: () => { state.before.push(state.after); turn([...rows.keys()].at(-1)); } });
  const pager = h('div', { class: 'row pager' }, newer, older);
  pager.hidden = true;

  root.append(
    head(title, { actions: [compare, buttonLink('New job', '#/new', { kind: 'primary' })] }),
    h('div', { class: 'row filters' }, h('div', { class: 'segments', role: 'group', 'aria-label': 'Status' }, filters), search, live),
    instead, list, pager);

  function change({ filter = state.filter, search: words = state.search }) {
    Object.assign(state, { filter, search: words, after: '', before: [] });
    FILTERS.forEach(([value], i) => filters[i].setAttribute('aria-pressed', String(value === filter)));
    look().catch(tell);
  }

  function turn(after) {
    state.after = after;
    look().then(() => window.scrollTo(0, 0)).catch(tell);
  }

  async function look() {
    const mine = ++asked;
    keep('jobs', { status: state.filter, search: state.search, after: state.after });
    const query = new URLSearchParams({ limit: PAGE, points: POINTS });
    if (state.search) query.set('search', state.search);
    if (state.after) query.set('after', state.after);
    for (const status of state.filter === 'active' ? ACTIVE : [state.filter].filter(Boolean)) query.append('status', status);
    const page = await api.get(`fine_tuning/jobs?${query}`, { signal });
    if (mine !== asked) return;
    more = page.has_more;
    draw(page.data);
    setText(live, '');
  }

  function draw(jobs) {
    const ids = jobs.map((job) => job.id);
    for (const job of jobs) {
      if (!rows.has(job.id)) rows.set(job.id, makeRow(job, { signal, chosen, onChosen, changed: () => look().catch(tell) }));
      rows.get(job.id).set(job);
    }
    for (const id of rows.keys()) if (!ids.includes(id)) rows.delete(id);
    // In the list's order, which is the map's from here on.
    const before = [...body.children];
    const after = ids.map((id) => rows.get(id).element);
    if (before.length !== after.length || after.some((element, i) => element !== before[i])) body.replaceChildren(...after);
    const ordered = ids.map((id) => [id, rows.get(id)]);
    rows.clear();
    ordered.forEach(([id, row]) => rows.set(id, row));
    list.hidden = !jobs.length;
    pager.hidden = !more && !state.after;
    newer.disabled = !state.after;
    older.disabled = !more;
    instead.hidden = jobs.length > 0;
    fill(instead, jobs.length ? [] : none());
  }

  function none() {
    if (state.filter || state.search || state.after) {
      return emptyState('No such job', 'No job fits this filter.', button('Show all', { onclick: () => { search.value = ''; change({ filter: '', search: '' }); } }));
    }
    return emptyState('No jobs yet', 'A job takes a base model and a file of examples, and makes a model that has learned from them. It is yours to use and to download.', buttonLink('Make the first one', '#/new', { kind: 'primary' }));
  }

  function onChosen() {
    compare.hidden = chosen.size < 2;
    compare.textContent = `Compare ${chosen.size}`;
    compare.href = link('compare', { jobs: [...chosen].join(',') });
  }

  function tell(error) {
    if (error.name === 'AbortError' || error.status === 401) return;
    if (rows.size) setText(live, `${error.message} Trying again …`);
    else fill(instead, errorState(error, () => look().catch(tell)));
  }

  await poll(look, EVERY, signal, tell);
}

// A row whose parts change in place: {element, set(job)}.
function makeRow(first, { signal, chosen, onChosen, changed }) {
  let job = first;
  const pick = h('input', { type: 'checkbox', 'aria-label': `Compare ${nameOf(first)}`, checked: chosen.has(first.id), onchange: () => { chosen[pick.checked ? 'add' : 'delete'](first.id); onChosen(); } });
  const status = badge(first.status);
  const bar = h('span');
  const progress = h('div', { class: 'progress', role: 'progressbar', 'aria-label': 'Progress', 'aria-valuemin': '0', 'aria-valuemax': '100' }, bar);
  const far = h('span', { class: 'far' });
  const left = h('span', { class: 'left muted' });
  const spark = sparkline('Loss');
  const loss = h('span', { class: 'num' });
  const created = h('td', { class: 'created muted nowrap' });
  const more = menu(`Actions for ${nameOf(first)}`, () => wishes(job).map((wish) => ({
    label: wish.label,
    danger: wish.danger,
    run: async () => {
      const now = await act(more.opener, wish.run);
      if (now && !signal.aborted) { set(now); changed(); }
    },
  })));
  const element = h('tr', {},
    h('td', { class: 'pick' }, pick),
    h('td', { class: 'job' }, h('a', { href: `#/jobs/${first.id}`, title: nameOf(first) }, nameOf(first)), h('div', { class: 'muted below' }, first.suffix ? `${first.model} · ` : '', h('span', { class: 'mono' }, first.id))),
    h('td', { class: 'status' }, status),
    h('td', { class: 'how-far' }, progress, h('div', { class: 'row spread below' }, far, left)),
    h('td', { class: 'loss' }, h('div', { class: 'row nowrap' }, spark, loss)),
    created,
    h('td', { class: 'do' }, more));

  function set(now) {
    job = { ...now, loss_curve: now.loss_curve ?? job.loss_curve ?? [] };
    status.set(job.status);
    const part = share(job);
    progress.dataset.status = job.status;
    progress.setAttribute('aria-valuenow', String(Math.round(100 * (part ?? 0))));
    bar.style.width = `${100 * (part ?? 0)}%`;
    setText(far, farOf(job, part));
    setText(left, leftOf(job));
    spark.set(job.loss_curve);
    setText(loss, job.loss_curve.length ? number(job.loss_curve.at(-1)[1], 3) : DASH);
    setText(created, ago(job.created_at));
    created.title = time(job.created_at);
  }
  return { element, set };
}

function farOf(job, part) {
  const { step, total_steps: total } = job.progress;
  if (job.status === 'failed' && job.error) return job.error.code.replaceAll('_', ' ');
  if (!total) return standing(job) ?? (['queued', 'validating_files'].includes(job.status) ? '' : 'not started');
  const doing = standing(job);
  // Of long runs the numbers alone: there is no room for more, and the bar says the rest.
  return `${whole(step)} / ${whole(total)}${doing ? ` · ${doing}` : total < 10_000 ? ` · ${percent(part)}` : ''}`;
}

function leftOf(job) {
  if (job.status === 'queued' && job.queue) return job.queue.position === 1 ? 'next' : `${whole(job.queue.position)} in line`;
  if (job.status === 'running' && job.estimated_finish) return `${duration(job.estimated_finish - Date.now() / 1000)} left`;
  if (ENDED.includes(job.status) && job.started_at) return duration(job.finished_at - job.started_at);
  return '';
}

function later(work, milliseconds, signal) {
  let timer = null;
  signal.addEventListener('abort', () => clearTimeout(timer), { once: true });
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}

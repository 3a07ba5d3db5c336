// One job: how it goes, live; what is wrong with it; what it was asked and what it made.

import { api } from '../api.js';
import { warm } from '../chart.js';
import { download, modelPath } from '../download.js';
import { h, setText, show as fill } from '../dom.js';
import { ago, bytes, compact, DASH, duration, number, percent, time, whole } from '../format.js';
import { makeCard } from '../job/card.js';
import { makeCheckpoints } from '../job/checkpoints.js';
import { latest, makeCurves } from '../job/curves.js';
import { makeDiagnosis } from '../job/diagnosis.js';
import { makeFailure } from '../job/failure.js';
import { makeAttempts, makeEvents } from '../job/history.js';
import { makeRecipe } from '../job/recipe.js';
import { makeSamples } from '../job/samples.js';
import { act, badge, button, buttonLink, copy, tabs } from '../parts.js';
import { keep, link } from '../router.js';
import { follow, poll, soon } from '../stream.js';
import { ENDED, jobPath, nameOf, share, standing, wishes } from '../wishes.js';

export const title = 'Job';

const LOOK_EVERY = 4_000; // ms; the stream tells what happens, this what is reckoned: time left, place in the queue
const DIAGNOSE_EVERY = 20_000; // ms

export async function show(root, { id, tab = '' }, signal) {
  const path = jobPath(id);
  const tiles = makeTiles();
  const curves = makeCurves(id, signal, (points) => tiles.measure(points));
  let job = await api.get(path, { signal });
  if (job.progress.step) warm(); // charts will be drawn
  document.title = `${nameOf(job)} · finetuned`;

  const status = badge(job.status);
  const actions = h('div', { class: 'actions' });
  const bar = h('span');
  const progress = h('div', { class: 'progress tall', role: 'progressbar', 'aria-label': 'Progress', 'aria-valuemin': '0', 'aria-valuemax': '100' }, bar);
  const far = h('span');
  const left = h('span', { class: 'muted' });
  const line = h('span', { class: 'live', role: 'status' });
  const failure = makeFailure();
  const diagnosis = makeDiagnosis();
  const recipe = makeRecipe();
  const events = makeEvents(id, signal);
  const attempts = makeAttempts(id, signal);
  const samples = makeSamples(id, signal);
  const checkpoints = makeCheckpoints(id, signal);
  const card = makeCard(signal);
  const parts = tabs('About this job', [
    ['history', 'History', h('div', { class: 'stack' }, attempts.element, events.element)],
    ['samples', 'Samples', samples.element],
    ['checkpoints', 'Checkpoints', checkpoints.element],
    ['recipe', 'Recipe', recipe.element],
    ['card', 'Model card', card.element],
  ], tab || (job.recipe.sample_prompts?.length ? 'samples' : 'history'), (name) => keep(`jobs/${id}`, { tab: name }));

  root.append(
    h('div', { class: 'head' },
      h('div', {},
        h('p', { class: 'crumb' }, h('a', { href: '#/jobs' }, 'Jobs'), ' /'),
        h('div', { class: 'row' }, h('h1', {}, nameOf(job)), status),
        h('p', { class: 'muted row tight' }, h('button', { class: 'mono copy', type: 'button', title: 'Copy the id', onclick: () => copy(id) }, id), h('span', {}, `from ${job.model}`), h('span', { title: time(job.created_at) }, `made ${ago(job.created_at)} by ${job.owner}`), job.priority === 'normal' ? null : h('span', {}, `${job.priority} priority`))),
      actions),
    failure.element,
    h('section', { class: 'card how', 'aria-label': 'Progress' }, h('div', { class: 'row spread' }, h('div', { class: 'row' }, far, line), left), progress, tiles.element),
    diagnosis.element,
    curves.element,
    parts);

  function set(now) {
    const before = job;
    job = now;
    status.set(job.status);
    const reached = share(job);
    progress.dataset.status = job.status;
    progress.setAttribute('aria-valuenow', String(Math.round(100 * (reached ?? 0))));
    bar.style.width = `${100 * (reached ?? 0)}%`;
    setText(far, farOf(job, reached));
    setText(left, leftOf(job));
    failure.set(job);
    recipe.set(job);
    tiles.set(job);
    drawActions();
    if (before.status !== job.status || before === job) {
      attempts.load().catch(quiet);
      checkpoints.load().catch(quiet);
      card.load(job.fine_tuned_model).catch(quiet);
      diagnose();
    }
  }

  let offered = '';
  function drawActions() {
    const all = wishes(job);
    const key = `${all.map((wish) => wish.name)}${job.fine_tuned_model}`;
    if (key === offered) return;
    offered = key;
    const buttons = all.map((wish) => {
      const made = button(wish.label, { kind: wish.danger ? 'danger' : '', onclick: async () => {
        const now = await act(made, wish.run);
        if (now && !signal.aborted) set(now);
      } });
      return made;
    });
    const name = job.fine_tuned_model;
    const get = name && button('Download', { onclick: () => act(get, () => download(`${modelPath(name)}/download`, `${name.replaceAll(':', '-')}.zip`, signal)) });
    fill(actions, buttons, get, name && buttonLink('Try it', link('playground', { models: `${name},${job.model}` }), { kind: 'primary' }));
  }

  let diagnosed = 0;
  async function diagnose() {
    diagnosed = performance.now();
    const { findings } = await api.get(`${path}/diagnosis`, { signal }).catch(() => ({ findings: null }));
    if (findings === null || signal.aborted) return;
    diagnosis.set(findings, job);
    curves.mark(findings);
  }

  function quiet(error) {
    if (!signal.aborted && error.status !== 401) setText(line, error.message);
  }

  const look = async () => {
    if (ENDED.includes(job.status)) return;
    set(await api.get(path, { signal }));
    if (performance.now() - diagnosed > DIAGNOSE_EVERY) await diagnose();
  };
  // A line that comes back may bring hundreds of events: one look is enough for all of them.
  const lookSoon = soon(() => Promise.all([look(), attempts.load()]).catch(quiet), 300, signal);
  const loadCheckpoints = soon(() => checkpoints.load().catch(quiet), 500, signal);

  function hear(message) {
    if (message.object === 'fine_tuning.job.metric') {
      curves.add(message);
      return;
    }
    if (message.object === 'fine_tuning.job') {
      set(message);
      diagnose();
      return;
    }
    const { code } = message.data;
    if (code === 'step') return;
    if (code === 'evaluated') curves.evaluate(message.data);
    else if (code === 'sampled') samples.add(message.data);
    else if (code === 'checkpoint') loadCheckpoints();
    else lookSoon();
    events.add(message);
  }

  set(job);
  const [newest] = await Promise.all([events.load(), curves.load(), samples.load()]);
  if (signal.aborted) return;
  if (ENDED.includes(job.status)) return;
  const last = curves.points().at(-1)?.step;
  // Not awaited: they go on until the reader leaves.
  poll(look, LOOK_EVERY, signal, quiet);
  follow(`${path}/events/stream`, {
    lastId: `${newest}:${last ?? ''}`,
    signal,
    onMessage: hear,
    onState: (state) => setText(line, state === 'waiting' ? 'The line broke; trying again …' : ''),
  }).catch(quiet);
}

function farOf(job, reached) {
  const { step, total_steps: total } = job.progress;
  const doing = standing(job);
  if (job.status === 'queued' && job.queue) {
    const place = job.queue.position === 1 ? 'Next in the queue' : `Number ${whole(job.queue.position)} in the queue`;
    return job.queue.estimated_start ? `${place}, begins about ${time(job.queue.estimated_start)}` : place;
  }
  if (!total) return doing ?? (job.status === 'running' ? 'preparing' : 'No step yet');
  return `Step ${whole(step)} of ${whole(total)} · ${percent(reached)}${doing ? ` · ${doing}` : ''}`;
}

function leftOf(job) {
  if (job.estimated_finish && !ENDED.includes(job.status)) {
    return `${duration(job.estimated_finish - Date.now() / 1000)} left, done about ${time(job.estimated_finish)}`;
  }
  if (job.finished_at) return `Ended ${time(job.finished_at)}`;
  return '';
}

// The numbers at a glance: {element, set(job), measure(points)}.
function makeTiles() {
  const values = {};
  const tile = (key, label) => h('div', {}, h('dt', {}, label), values[key] = h('dd', {}, DASH));
  const element = h('dl', { class: 'tiles' },
    tile('loss', 'Training loss'), tile('valid', 'Validation loss'), tile('best', 'Best validation'), tile('speed', 'Tokens/s'), tile('memory', 'Memory'), tile('tokens', 'Trained tokens'), tile('lasted', 'Took'));
  return {
    element,
    set(job) {
      if (job.trained_tokens !== null) setText(values.tokens, compact(job.trained_tokens));
      setText(values.lasted, job.started_at ? duration((job.finished_at ?? Date.now() / 1000) - job.started_at) : DASH);
    },
    measure(points) {
      const valid = points.map((point) => point.valid_loss).filter(Number.isFinite);
      setText(values.loss, number(latest(points, 'loss')));
      setText(values.valid, number(valid.at(-1) ?? null));
      setText(values.best, valid.length ? number(valid.reduce((best, value) => Math.min(best, value))) : DASH);
      setText(values.speed, compact(latest(points, 'tokens_per_second')));
      setText(values.memory, bytes(latest(points, 'memory_bytes')));
      const tokens = latest(points, 'trained_tokens');
      if (tokens !== null) setText(values.tokens, compact(tokens));
    },
  };
}

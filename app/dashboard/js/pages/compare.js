// Jobs beside one another: their curves, where their recipes differ, what their models answer.

import { api } from '../api.js';
import { asking } from '../asking.js';
import { makeChart, zoomHint } from '../chart.js';
import { h, show as fill } from '../dom.js';
import { compact, DASH, duration, number, whole } from '../format.js';
import { badge, button, buttonLink, emptyState, field, head, table, toast } from '../parts.js';
import { keep, link } from '../router.js';

export const title = 'Compare';
const MOST = 6; // lines that can be told apart
const POINTS = 1000;
const METRICS = [['loss', 'Training loss'], ['valid_loss', 'Validation loss'], ['learning_rate', 'Learning rate'], ['grad_norm', 'Gradient norm'], ['tokens_per_second', 'Tokens a second'], ['valid_accuracy', 'Validation accuracy'], ['reward_margin', 'Reward margin']];
const colourOf = (place) => `chart-${place + 1}`;

export async function show(root, params, signal) {
  const listed = (await api.get('fine_tuning/jobs', { query: { limit: 100 }, signal })).data;
  const known = new Map(listed.map((job) => [job.id, job]));
  let chosen = (params.jobs ?? '').split(',').filter(Boolean).slice(0, MOST);
  const lost = [];
  await Promise.all(chosen.filter((id) => !known.has(id)).map(async (id) => {
    try {
      known.set(id, await api.get(`fine_tuning/jobs/${encodeURIComponent(id)}`, { signal }));
    } catch (error) {
      if (error.status !== 404) throw error;
      lost.push(id);
    }
  }));
  chosen = chosen.filter((id) => known.has(id));
  const points = new Map();
  const chips = h('div', { class: 'chosen' });
  const add = h('select', { name: 'add' });
  const body = h('div', { class: 'stack' });
  const chartPlace = h('div', { class: 'big-chart' });
  const metric = h('select', { name: 'metric' }, METRICS.map(([value, text]) => h('option', { value }, text)));
  const smoothing = h('input', { type: 'range', min: 0, max: 0.98, step: 0.02, value: 0, name: 'smoothing' });
  const log = h('input', { type: 'checkbox', name: 'log' });
  const time = h('input', { type: 'checkbox', name: 'time' });
  const everything = h('input', { type: 'checkbox', name: 'all' });
  const differences = h('div', { class: 'differences' });
  const told = h('p', { class: 'hint', role: 'status' });
  let making = null; // once: it stays, whichever jobs are chosen
  let chart = null;
  let range = null; // of steps, all of them

  const section = h('section', { class: 'card stack' },
    h('div', { class: 'row spread' }, h('h2', {}, 'Curves'),
      h('div', { class: 'row' }, h('label', { class: 'check' }, log, 'Log scale'), h('label', { class: 'check' }, time, 'By time since the start'))),
    h('div', { class: 'pair' }, field('Metric', metric), field('Smoothing', smoothing)), chartPlace, told);
  const answers = h('section', { class: 'stack' });

  async function draw() {
    keep('compare', { jobs: chosen.join(',') });
    const jobs = chosen.map((id) => known.get(id));
    fill(chips, jobs.map((job, i) => h('span', { class: 'chip' }, h('i', { style: { background: `var(--${colourOf(i)})` } }), h('a', { href: link(`jobs/${job.id}`) }, nameOf(job)),
      h('button', { type: 'button', 'aria-label': `Leave out ${nameOf(job)}`, onclick: () => turnTo(chosen.filter((id) => id !== job.id)) }, '×'))));
    const others = listed.filter((job) => !chosen.includes(job.id));
    fill(add, h('option', { value: '' }, chosen.length >= MOST ? `${MOST} are the most that can be told apart` : others.length ? 'Add a job …' : 'No other job'), others.map((job) => h('option', { value: job.id }, `${nameOf(job)} · ${job.status} · ${job.model}`)));
    add.disabled = chosen.length >= MOST || !others.length;
    if (!chosen.length) {
      fill(body, emptyState(listed.length ? 'Choose the first job' : 'No job yet', listed.length ? 'Take two or more from the list above: their curves are drawn over one another.' : 'Once there are jobs, their curves and recipes can be laid side by side.', listed.length ? null : buttonLink('New job', '#/new', { kind: 'primary' })));
      return;
    }
    if (!body.contains(section)) fill(body, section, h('section', { class: 'stack' }, h('div', { class: 'row spread' }, h('h2', {}, 'Differences'), h('label', { class: 'check' }, everything, 'Equal values too')), differences), answers);
    drawDifferences(jobs);
    drawAnswers(jobs);
    await Promise.all(jobs.filter((job) => !points.has(job.id)).map(async (job) => {
      points.set(job.id, (await api.get(`fine_tuning/jobs/${job.id}/metrics`, { query: { points: POINTS }, signal })).data);
    }));
    making ??= makeChart(chartPlace, { label: 'Curves of the chosen jobs', signal, onZoom: (from, to) => {
      range = from === null ? null : [from, to];
      drawCurves();
    } });
    chart = await making;
    drawCurves();
  }

  function drawCurves() {
    if (!chart || signal.aborted) return;
    const name = metric.value;
    const lines = chosen.map((id, i) => {
      const found = (points.get(id) ?? []).filter((point) => point[name] !== null && point[name] !== undefined);
      const begun = points.get(id)?.[0]?.created_at ?? 0;
      return { name: nameOf(known.get(id)), steps: found.map((point) => point.step), elapsed: found.map((point) => point.created_at - begun), values: found.map((point) => point[name]), colour: colourOf(i), dots: found.length < 30 };
    });
    chart.draw(lines.filter((line) => line.values.length), { log: log.checked && name !== 'reward_margin', smoothing: Number(smoothing.value), axis: time.checked ? 'time' : 'step', range, signed: name === 'reward_margin', legend: false }); // the chips above are one
    const without = lines.filter((line) => !line.values.length).map((line) => line.name);
    told.textContent = without.length ? `Without it: ${without.join(', ')}.` : time.checked ? 'Across: time since the first step.' : `Across: steps. ${zoomHint()}`;
  }

  function drawDifferences(jobs) {
    const rows = [...outcomes(jobs), ...recipes(jobs)].filter((row) => everything.checked || row.kind === 'outcome' || row.differs);
    fill(differences, jobs.length > 1 || everything.checked ? table([{ text: h('span', { class: 'sr' }, 'What') }, ...jobs.map((job, i) => ({ text: h('span', {}, h('i', { class: 'dot', style: { background: `var(--${colourOf(i)})` } }), nameOf(job)) }))],
      rows.map((row) => [row.kind === 'outcome' ? row.name : h('code', {}, row.name), ...row.values]), { label: 'Differences between the jobs' })
      : h('p', { class: 'muted' }, 'Add a second job to see where they differ.'));
    rows.forEach((row, i) => differences.querySelectorAll('tbody tr')[i]?.classList.toggle('differs', Boolean(row.differs)));
  }

  function drawAnswers(jobs) {
    const usable = jobs.map((job) => job.fine_tuned_model).filter(Boolean);
    fill(answers, h('h2', {}, 'The same question for each'), usable.length ? asking({ models: usable, signal }).element
      : h('p', { class: 'muted' }, 'None of these jobs has a model yet; their checkpoints can be asked in the playground.'));
  }

  function turnTo(now) {
    chosen = now;
    range = null;
    draw().catch((error) => { if (!signal.aborted) toast(error.message, 'error'); });
  }

  add.addEventListener('input', () => { if (add.value) turnTo([...chosen, add.value]); });
  for (const input of [metric, smoothing, log, time]) input.addEventListener('input', drawCurves);
  everything.addEventListener('input', () => drawDifferences(chosen.map((id) => known.get(id))));
  fill(root, head(title, { about: 'Curves, recipes and answers of jobs side by side.' }),
    h('div', { class: 'card stack' }, chips, field('Jobs', add), lost.length ? h('p', { class: 'notice warn' }, `Not found: ${lost.join(', ')}.`) : null), body);
  await draw();
}

const nameOf = (job) => `${job.suffix ? `${job.suffix} · ` : ''}${job.id.slice(0, 14)}`;

// What came of each job.
function outcomes(jobs) {
  const row = (name, read, by = null) => ({ kind: 'outcome', name, values: jobs.map(read), differs: by !== null && new Set(jobs.map(by)).size > 1 });
  return [
    row('Status', (job) => badge(job.status)), row('Base model', (job) => job.model, (job) => job.model),
    row('Steps', (job) => `${whole(job.progress.step)} of ${whole(job.progress.total_steps)}`), row('Trained tokens', (job) => compact(job.trained_tokens)),
    row('Training file', (job) => h('a', { href: link('files', { id: job.training_file }) }, job.training_file.slice(0, 13)), (job) => job.training_file),
    row('Took', (job) => (job.started_at && job.finished_at ? duration(job.finished_at - job.started_at) : DASH)),
  ];
}

// Every hyperparameter, as far as it is resolved.
function recipes(jobs) {
  const names = [...new Set(jobs.flatMap((job) => Object.keys(job.recipe ?? {})))];
  return names.map((name) => {
    const values = jobs.map((job) => job.recipe?.[name]);
    return { kind: 'recipe', name, differs: new Set(values.map((value) => JSON.stringify(value ?? null))).size > 1, values: values.map(shown) };
  });
}

const shown = (value) => (value === null || value === undefined ? DASH : typeof value === 'number' ? number(value, 6) : Array.isArray(value) ? (value.join(', ') || DASH) : String(value));

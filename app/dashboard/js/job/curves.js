// A job's charts: what was measured, whole or the part that the reader zoomed into, and what comes.

import { api } from '../api.js';
import { makeChart, sketch, thin, zoomHint } from '../chart.js';
import { h, setText, show as fill } from '../dom.js';
import { bytes, compact, number, percent, whole } from '../format.js';
import { button } from '../parts.js';
import { pause, seen } from '../stream.js';
import { jobPath } from '../wishes.js';

const POINTS = 1_200; // of a curve, whatever its length: more than a screen has columns
const EVERY = 1_000; // ms between two drawings while numbers come
// Each chart: its lines by the name of the metric.
const CHARTS = [
  { key: 'loss', title: 'Loss', large: true, lines: [['loss', 'Training', 'chart-1'], ['valid_loss', 'Validation', 'chart-2']], log: true, say: number },
  { key: 'reward_margin', title: 'Reward margin', signed: true, lines: [['reward_margin', 'Training', 'chart-1'], ['valid_reward_margin', 'Validation', 'chart-2']], say: number },
  { key: 'reward_accuracy', title: 'Pairs in the right order', lines: [['reward_accuracy', 'Training', 'chart-1'], ['valid_reward_accuracy', 'Validation', 'chart-2']], say: percent, tickformat: '.0%' },
  { key: 'learning_rate', title: 'Learning rate', lines: [['learning_rate', 'Learning rate', 'chart-3']], exact: true, say: number, tickformat: '.2~e' },
  { key: 'grad_norm', title: 'Gradient norm', lines: [['grad_norm', 'Gradient norm', 'chart-4']], log: true, say: number },
  { key: 'tokens_per_second', title: 'Tokens per second', lines: [['tokens_per_second', 'Tokens/s', 'chart-6']], say: compact, tickformat: '~s' },
  { key: 'memory_bytes', title: 'Memory', lines: [['memory_bytes', 'Peak', 'chart-5']], exact: true, say: bytes, tickformat: '.3~f', scaled: true },
];

// {element, points(), add(metric), evaluate(facts), mark(findings), load()} of one job.
export function makeCurves(jobId, signal, onChange) {
  const options = { log: false, smoothing: 0, axis: 'step' };
  let points = []; // of the whole run, oldest first
  let part = null; // {from, to, points} of what is zoomed into
  let marks = {};
  let due = null;
  let at = -EVERY; // when it was last drawn
  const boxes = new Map();
  // Asked for at once, before anybody has the job itself: of a long job steps at equal distances, which cost little.
  const asked = api.get(`${jobPath(jobId)}/metrics`, { query: { points: POINTS, peaks: false }, signal });
  asked.catch(() => {}); // told by load()

  const smoothing = h('input', { type: 'range', min: 0, max: 0.98, step: 0.02, value: 0, id: 'smoothing', oninput: () => { options.smoothing = Number(smoothing.value); draw(); } });
  const log = h('input', { type: 'checkbox', onchange: () => { options.log = log.checked; draw(); } });
  const whole = button('Show all', { small: true, onclick: () => zoom(null, null) });
  whole.style.visibility = 'hidden'; // its place stays: nothing moves when it comes
  const axes = [['step', 'Steps'], ['time', 'Time']].map(([value, label]) => h('button', { type: 'button', 'aria-pressed': String(value === options.axis), onclick: () => turn(value) }, label));
  const tools = h('div', { class: 'row chart-tools' },
    h('div', { class: 'segments', role: 'group', 'aria-label': 'Horizontal axis' }, axes),
    h('label', { class: 'check' }, log, 'Log scale'),
    h('label', { class: 'check', for: 'smoothing' }, 'Smoothing', smoothing),
    h('span', { class: 'row tight' }, h('span', { class: 'muted zoom-hint' }, zoomHint()), whole));
  const grid = h('div', { class: 'charts' });
  const element = h('section', { 'aria-label': 'Charts' }, tools, grid);

  function turn(axis) {
    options.axis = axis;
    axes.forEach((one, i) => one.setAttribute('aria-pressed', String(['step', 'time'][i] === axis)));
    draw();
  }

  async function zoom(from, to) {
    if (!points.length) return;
    whole.style.visibility = from === null ? 'hidden' : '';
    part = from === null ? null : { from, to, points: points.filter((point) => point.step >= from && point.step <= to) };
    draw();
    if (part === null || !isThinned(points)) return;
    const mine = part; // more of it than the whole had
    const query = { after: Math.max(-1, Math.floor(from) - 1), before: Math.ceil(to) + 1, points: POINTS };
    const found = await api.get(`${jobPath(jobId)}/metrics`, { query, signal }).catch(() => null);
    if (found && part === mine) {
      mine.points = found.data;
      draw();
    }
  }

  // The place of a chart, before there is any number in it: nothing moves later.
  function boxOf(chart) {
    const value = h('span', { class: 'now' });
    const area = h('div', { class: `plot${chart.large ? ' large' : ''}` });
    const box = h('figure', { class: `card chart${chart.large ? ' large' : ''}`, dataset: { chart: chart.key } }, h('figcaption', { class: 'row spread' }, h('h3', {}, chart.title), value), area);
    const at = CHARTS.findIndex((one) => one.key === chart.key);
    const next = CHARTS.slice(at + 1).map((one) => boxes.get(one.key)?.box).find(Boolean);
    grid.insertBefore(box, next ?? null);
    boxes.set(chart.key, { value, box, area, making: null, drawn: null });
  }

  async function chartOf(chart) {
    if (!boxes.has(chart.key)) boxOf(chart);
    const made = boxes.get(chart.key);
    made.making ??= makeChart(made.area, { label: `${chart.title}, drawn by step`, signal, tickformat: chart.tickformat, onZoom: (from, to) => { zoom(from, to); } });
    made.drawn = await made.making;
  }

  function draw(only = CHARTS) {
    if (only === CHARTS) { // of some, what is due for all stays due
      clearTimeout(due);
      due = null;
      at = performance.now();
    }
    const shown = part?.points ?? points;
    const elapsed = times(shown, points[0]?.created_at);
    for (const chart of only) {
      const lines = linesOf(chart, shown, elapsed);
      const box = boxes.get(chart.key);
      if (!box?.drawn) {
        if (!box?.making && lines.length) chartOf(chart).then(() => draw([chart]), (error) => { if (!signal.aborted) console.error(error); });
        continue;
      }
      const log = options.log && chart.log;
      box.drawn.draw(lines, { ...options, log, signed: chart.signed, smoothing: chart.exact ? 0 : options.smoothing, range: part && [part.from, part.to], ticksuffix: chart.scaled ? unitOf(latest(shown, chart.key)).suffix : '' }, marks[chart.key] ?? []);
      setText(box.value, chart.say(latest(points, chart.lines[0][0])));
    }
    onChange(points);
  }

  // The first number after a while at once, then one drawing in EVERY.
  function soon() {
    due ??= setTimeout(() => (document.hidden ? (due = null) : draw()), Math.max(0, at + EVERY - performance.now()));
  }
  document.addEventListener('visibilitychange', () => document.hidden || draw(), { signal });
  signal.addEventListener('abort', () => clearTimeout(due), { once: true });

  // The peaks between the steps that were drawn first.
  async function addPeaks() {
    const { data } = await api.get(`${jobPath(jobId)}/metrics`, { query: { points: POINTS }, signal });
    const known = new Map(points.map((point) => [point.step, point]));
    for (const point of data) {
      const streamed = known.get(point.step); // it may know of an evaluation that came meanwhile
      if (streamed && point.valid_loss === null) Object.assign(point, streamed);
    }
    points = [...data, ...points.filter((point) => point.step > (data.at(-1)?.step ?? -1))];
    draw();
  }

  const first = CHARTS.filter((chart) => !chart.key.startsWith('reward'));
  first.forEach(boxOf);

  return {
    element,
    points: () => points,
    async load() {
      points = (await asked).data;
      for (const chart of first) {
        const lines = linesOf(chart, points, []);
        // Axes around nothing would show numbers that nobody measured.
        if (lines.length) sketch(boxes.get(chart.key).area, lines);
        else fill(boxes.get(chart.key).area, h('p', { class: 'muted unmeasured' }, 'Drawn from the first step on.'));
      }
      onChange(points);
      await seen(signal);
      for (const chart of first) { // one after another: the large one is seen first
        if (!linesOf(chart, points, []).length) continue;
        await chartOf(chart);
        if (signal.aborted) return;
        draw([chart]);
        await pause(0, signal);
      }
      draw(CHARTS.filter((chart) => chart.key.startsWith('reward')));
      if (isThinned(points)) addPeaks().catch(() => {}); // the picture is right without, if smoother
    },
    add(metric) {
      const last = points.at(-1);
      if (last && metric.step <= last.step) return; // trained again after a crash: the same numbers
      points.push(metric);
      points = thin(points);
      soon();
    },
    evaluate(facts) {
      const at = points.findLast((point) => point.step === facts.step);
      const rewards = Object.fromEntries(Object.entries(facts.rewards ?? {}).map(([name, value]) => [`valid_reward_${name}`, value]));
      const found = { valid_loss: facts.loss, valid_perplexity: facts.perplexity, valid_accuracy: facts.accuracy, ...rewards };
      if (at) Object.assign(at, found);
      else if (!points.length || facts.step > points.at(-1).step) points.push({ step: facts.step, created_at: Math.floor(Date.now() / 1000), ...found });
      soon();
    },
    mark(findings) {
      marks = marksOf(findings);
      soon();
    },
  };
}

// Whether there are steps between the first and the last that are not among them.
const isThinned = (points) => points.length > 1 && points.length <= points.at(-1).step - points[0].step;

// The newest value of a metric; null where there is none.
export function latest(points, name) {
  return points.findLast((point) => point[name] !== null && point[name] !== undefined)?.[name] ?? null;
}

const UNITS = [{ bytes: 1, suffix: '' }, { bytes: 2 ** 20, suffix: ' MB' }, { bytes: 2 ** 30, suffix: ' GB' }];
const unitOf = (value) => UNITS[value >= 2 ** 30 ? 2 : 1];

const linesOf = (chart, points, elapsed) => chart.lines.map(([name, label, colour]) => lineOf(points, elapsed, name, label, colour, chart)).filter((line) => line.steps.length);

function lineOf(points, elapsed, name, label, colour, { exact, scaled }) {
  const line = { name: label, colour, steps: [], values: [], elapsed: [], smoothed: !exact };
  const unit = scaled ? unitOf(latest(points, name)) : UNITS[0];
  points.forEach((point, i) => {
    if (point[name] === null || point[name] === undefined) return;
    line.steps.push(point.step);
    line.values.push(point[name] / unit.bytes);
    line.elapsed.push(elapsed[i]);
  });
  if (name.startsWith('valid_')) {
    line.dots = line.steps.length < 60;
    line.smoothed = false;
  }
  return line;
}

// Seconds since the beginning. The API has whole ones; steps within one second are spread over it.
function times(points, beginning) {
  const found = [];
  for (let i = 0; i < points.length;) {
    let end = i;
    while (end < points.length && points[end].created_at === points[i].created_at) end += 1;
    for (let k = i; k < end; k += 1) found.push(points[i].created_at - beginning + (k - i) / (end - i));
    i = end;
  }
  return found;
}

// What a diagnosis points at, by chart: the stretch between its points, and their values.
function marksOf(findings) {
  const found = {};
  for (const { evidence } of findings) {
    const chart = CHARTS.find((one) => one.lines.some(([name]) => name === evidence.metric));
    if (!chart) continue;
    const list = (found[chart.key] ??= []);
    const seen = evidence.points;
    if (seen.length > 1) list.push({ from: seen[0].step, to: seen.at(-1).step });
    for (const { step, value } of seen) list.push({ step, value, text: `${number(value)} at ${whole(step)}` });
  }
  return found;
}

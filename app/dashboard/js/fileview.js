// A file as training will see it: its problems, its report, and some rows token by token.

import { api } from './api.js';
import { h, show } from './dom.js';
import { count, number, percent, whole } from './format.js';
import { button, skeleton, table } from './parts.js';
import { pause } from './stream.js';
import { learnedLegend, learnedText } from './tokens.js';

const OUTCOMES = { whole: 'whole', split: 'split', truncated: 'cut short', dropped: 'left out', refused: 'refused', untrained: 'nothing learned' };

// Lines that keep a file from being used; null where there are none.
export function problemList(file) {
  if (file.status !== 'error') return null;
  const rows = (file.problems ?? []).map((problem) => [whole(problem.line), h('code', {}, problem.key ?? '–'), problem.message]);
  return h('section', { class: 'stack' },
    h('p', { class: 'notice bad' }, `This file cannot be trained on. ${rows.length ? 'Mend these lines and upload it again:' : file.status_details ?? ''}`),
    rows.length ? table([{ text: 'Line', class: 'num' }, 'Key', 'What is wrong'], rows, { label: 'Problems of the file' }) : null);
}

// The report of a file for a model (null: in characters), in figures and findings. Waits until it is made.
export async function fileReport(file, { model = null, validation = null, signal }) {
  const query = { model, validation_file: validation, wait: 20 };
  let report = await api.get(`files/${file.id}/report`, { query, signal });
  while (report.status === 'in_progress') {
    await pause(1000, signal);
    report = await api.get(`files/${file.id}/report`, { query, signal });
  }
  const { lengths, tokens } = report;
  const facts = [
    ['Rows', whole(report.rows)],
    [`Length in ${lengths.unit}`, `median ${whole(lengths.median)}, 95 % up to ${whole(lengths.p95)}, longest ${whole(lengths.max)}`],
    tokens && ['Tokens', `${tokens.estimated ? 'about ' : ''}${whole(tokens.total)}, of which ${whole(tokens.trained)} are learned`],
    tokens && [`Beyond ${whole(tokens.max_length)} tokens`, percent(tokens.too_long_share)],
    ['Scripts', Object.entries(report.scripts ?? {}).map(([name, share]) => `${name} ${percent(share)}`).join(', ') || '–'],
  ];
  return h('div', { class: 'stack' },
    h('dl', { class: 'facts' }, facts.filter(Boolean).map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])),
    histogram(lengths),
    report.findings.length ? h('ul', { class: 'findings' }, report.findings.map(finding)) : h('p', { class: 'notice good' }, 'Nothing stands out in this file.'));
}

function finding(found) {
  const { length } = found.lines ?? [];
  const lines = length ? ` ${length === 1 ? 'Line' : 'Lines'} ${found.lines.slice(0, 5).map(whole).join(', ')}${length > 5 ? ' …' : '.'}` : '';
  return h('li', { class: `notice ${{ error: 'bad', warn: 'warn' }[found.level] ?? ''}` },
    h('strong', {}, `${found.estimated ? 'about ' : ''}${count(found.count, 'row')}: `), found.meaning, h('span', { class: 'muted' }, lines), ' ', found.action);
}

// Bars of the lengths, each as high as its share; its numbers are in a table for who does not see it.
function histogram({ unit, histogram: bars }) {
  const most = Math.max(...bars.map((bar) => bar.rows), 1);
  const first = Math.max(0, bars.findIndex((bar) => bar.rows > 0) - 1);
  const shown = bars.slice(first);
  return h('figure', { class: 'histogram' },
    h('div', { class: 'bars', 'aria-hidden': 'true' }, shown.map((bar) => h('div', { class: 'bar', title: `up to ${whole(bar.up_to)} ${unit}: ${count(bar.rows, 'row')}` },
      h('span', { style: { height: `${Math.max(bar.rows ? 3 : 0, (100 * bar.rows) / most)}%` } }), h('small', {}, whole(bar.up_to))))),
    h('figcaption', { class: 'hint' }, `Rows by length: up to so many ${unit}.`,
      h('span', { class: 'sr' }, shown.map((bar) => ` ${bar.up_to}: ${bar.rows}.`).join(''))));
}

// Rows of the file as the model would be given them. preview.look(body) asks anew: {model, hyperparameters}.
export function filePreview(file, { signal, ask = null }) {
  const list = h('div', { class: 'stack' });
  const place = h('span', { class: 'muted num' });
  const back = button('Earlier rows', { small: true, onclick: () => move(-1) });
  const on = button('Later rows', { small: true, onclick: () => move(1) });
  const element = h('section', { class: 'stack preview' },
    h('div', { class: 'row spread' }, learnedLegend(), h('div', { class: 'actions' }, place, back, on)), list);
  const LIMIT = 3;
  let offset = 0;
  let asked = {};
  let turn = 0;

  async function look(body = asked) {
    if (body !== asked) offset = 0;
    asked = body;
    const mine = ++turn;
    if (!list.childElementCount) show(list, skeleton(4));
    try {
      const found = await (ask ?? ((one) => api.post(`files/${file.id}/preview`, one, { signal })))({ ...asked, offset, limit: LIMIT });
      if (mine !== turn) return;
      show(list, found.data.map(row));
      place.textContent = `Rows ${whole(offset + 1)} to ${whole(offset + found.data.length)} of ${whole(found.rows)}`;
      back.disabled = offset === 0;
      on.disabled = !found.has_more;
    } catch (error) {
      if (signal.aborted || mine !== turn) return;
      show(list, h('p', { class: 'notice bad' }, error.message));
    }
  }

  function move(by) {
    offset = Math.max(0, offset + by * LIMIT);
    look();
  }

  return { element, look };
}

function row(found) {
  const answers = ['preferred', 'rejected'].filter((name) => found[name]);
  if (answers.length) return h('article', { class: 'sample' }, answers.map((name) => one({ ...found[name], line: found.line }, name)));
  return h('article', { class: 'sample' }, one(found));
}

function one(found, name = null) {
  const pieces = [name, `line ${whole(found.line)}`, count(found.tokens, 'token'), `${whole(found.trained_tokens)} learned`, found.outcome !== 'whole' && (OUTCOMES[found.outcome] ?? found.outcome), found.examples > 1 && `${number(found.examples)} examples`];
  return [h('p', { class: 'hint' }, pieces.filter(Boolean).join(' · ')), learnedText(found)];
}

// Text token by token: what training learns of it, and how sure a model was of it.

import { h } from './dom.js';
import { percent } from './format.js';

// What cannot be seen otherwise.
const visible = (piece) => piece.replaceAll('\n', '⏎\n').replaceAll('\t', '⇥\t');

// A row of a preview: runs of tokens that are learned are marked; `cut` is what training will not see.
export function learnedText(row) {
  if (!row.pieces) return h('p', { class: 'muted' }, 'Too long to be shown here token by token.');
  const runs = [];
  row.pieces.forEach((piece, i) => {
    const last = runs.at(-1);
    const mark = row.learned[i];
    if (last && last.mark === mark) last.pieces.push(piece);
    else runs.push({ mark, pieces: [piece] });
  });
  return h('p', { class: 'tokens', tabindex: '0' },
    runs.map(({ mark, pieces }) => h(mark ? 'mark' : 'span', { class: mark ? 'learned' : 'read' }, pieces.map((piece) => h('span', { class: 'token' }, visible(piece))))),
    row.cut ? h('del', { class: 'cut', title: `${row.cut.tokens} tokens are cut away` }, visible(row.cut.text), ' …') : null);
}

export function learnedLegend() {
  return h('p', { class: 'legend' },
    h('span', {}, h('mark', { class: 'learned' }, 'learned'), ' carries loss'),
    h('span', {}, h('span', { class: 'read' }, 'read'), ' is context'),
    h('span', {}, h('del', { class: 'cut' }, 'cut'), ' is left out'));
}

// Probabilities in five classes; each has its own ground in style.css.
const CLASSES = [[0.9, 'over 90 %'], [0.5, '50 to 90 %'], [0.2, '20 to 50 %'], [0.05, '5 to 20 %'], [0, 'under 5 %']];
const classOf = (probability) => CLASSES.findIndex(([least]) => probability >= least);

// A character may be cut in two: such tokens come as `bytes:\xe2\x80`, and are put together again here.
export function tokenTexts() {
  const decoder = new TextDecoder();
  return (token) => {
    if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(token)) return decoder.decode() + token;
    return decoder.decode(Uint8Array.from(token.slice(6).split('\\x').slice(1), (hex) => parseInt(hex, 16)), { stream: true });
  };
}

// One token of an answer: {token, logprob, others: [[token, logprob], …]}, shown as `text`.
export function scoredToken({ token, logprob, others }, text) {
  if (logprob === null || logprob === undefined) return h('span', {}, text);
  const share = Math.exp(logprob);
  const told = [`${JSON.stringify(token)} ${percent(share)}`, ...others.map(([text, score]) => `${JSON.stringify(text)} ${percent(Math.exp(score))}`)];
  return h('span', { class: 'scored', dataset: { sure: String(classOf(share)) }, title: [...new Set(told)].join('\n') }, text);
}

export function scoreLegend() {
  return h('p', { class: 'legend' }, h('span', { class: 'muted' }, 'The model’s probability of each token:'),
    CLASSES.map(([, text], i) => h('span', { class: 'scored', dataset: { sure: String(i) } }, text)));
}

// What is wrong with a job, one sentence each, and buttons that begin a new job with what would help.

import { h, show as fill } from '../dom.js';
import { button } from '../parts.js';
import { bodyOf, handOver } from '../wishes.js';

const NAMES = {
  warmup_longer_than_run: 'Warm-up longer than the run',
  diverging: 'Diverging',
  overfitting: 'Over-fitting',
  underfitting: 'Under-fitting',
  too_few_steps: 'Too few steps',
  never_stops: 'Never stops',
  slow_training: 'Slow training',
};

// {element, set(findings, job)}; nothing is shown where nothing is wrong.
export function makeDiagnosis() {
  const list = h('div', { class: 'stack' });
  const element = h('section', { class: 'card diagnosis', 'aria-label': 'Diagnosis' }, h('h2', {}, 'Diagnosis'), list);
  element.hidden = true;
  let drawn = '';
  return {
    element,
    set(findings, job) {
      const key = JSON.stringify(findings);
      if (key === drawn) return;
      drawn = key;
      element.hidden = !findings.length;
      fill(list, findings.map((finding) => h('div', { class: 'notice warn' },
        h('h3', {}, NAMES[finding.code] ?? finding.code.replaceAll('_', ' ')),
        h('p', {}, finding.says),
        h('ul', { class: 'remedies' }, finding.remedies.map((remedy) => h('li', {}, remedyLine(remedy, job)))))));
    },
  };
}

export function remedyLine({ says, hyperparameters }, job) {
  const changes = Object.entries(hyperparameters);
  return [
    h('span', {}, says, ' ', changes.map(([name, value], i) => [i ? ', ' : '', h('code', {}, `${name}: ${typeof value === 'object' ? JSON.stringify(value) : value}`)])),
    changes.length ? button('New job with this', { small: true, onclick: () => handOver(bodyOf(job, hyperparameters)) }) : null,
  ];
}

// What a dry run tells, beside the form: the same places for the same numbers, so that nothing jumps.

import { h, setText, show } from './dom.js';
import { bytes, compact, DASH, duration, number, whole } from './format.js';

const FACTS = [
  ['Examples', (run) => whole(run.examples)],
  ['Held out', (run) => whole(run.validation_examples)],
  ['Tokens an epoch', (run) => (run.total_tokens === null ? DASH : `${compact(run.total_tokens)} · ${compact(run.trained_tokens)} learned`)],
  ['Steps', (run) => (run.total_steps === null ? DASH : `${whole(run.total_steps)} · ${whole(run.steps_per_epoch)} an epoch`)],
  ['Examples a step', (run) => whole(run.recipe?.total_train_batch_size)],
  ['Learning rate', (run) => (run.recipe ? number(run.recipe.learning_rate, 3) : DASH)],
  ['Parameters', (run) => compact(run.parameters)],
  ['Memory', (run) => (run.memory ? `${bytes(run.memory.needed_bytes)}${run.memory.available_bytes ? ` of ${bytes(run.memory.available_bytes)}` : ''}` : DASH)],
  ['Time', (run) => (run.estimated_seconds === null || run.estimated_seconds === undefined ? 'not known before a first job' : `about ${duration(run.estimated_seconds)}`)],
];

const told = (kind, message, param, goTo) => h('li', { class: `notice ${kind}` }, message,
  param ? [' ', h('button', { type: 'button', class: 'link', onclick: () => goTo(param) }, 'Show the field')] : null);

export function rehearsal() {
  const values = FACTS.map(() => h('dd', { class: 'figure' }, DASH));
  const said = h('p', { class: 'hint', role: 'status' });
  const warnings = h('ul', { class: 'findings' });
  const element = h('div', { class: 'stack rehearsal' },
    h('dl', { class: 'facts' }, FACTS.map(([name], i) => [h('dt', {}, name), values[i]])), said, warnings);

  function forget(text) {
    for (const value of values) setText(value, DASH);
    setText(said, text);
    show(warnings);
  }

  return {
    element,
    wait() {
      element.classList.add('stale');
      setText(said, 'Counting …');
    },
    want(text) {
      element.classList.remove('stale');
      forget(text);
    },
    refuse({ message, param }, goTo) {
      element.classList.remove('stale');
      forget('This would be refused.');
      show(warnings, told('bad', message, param, goTo));
    },
    // `goTo(param)` brings the field of a warning into sight.
    tell(run, goTo) {
      element.classList.remove('stale');
      FACTS.forEach(([, read], i) => setText(values[i], read(run)));
      setText(said, run.exact === false ? 'Numbers of tokens are estimated.' : run.exact ? 'Counted over the whole file.' : '');
      show(warnings, run.warnings.map((warning) => told(warning.level === 'error' ? 'bad' : 'warn', warning.message, warning.param, goTo)));
    },
  };
}

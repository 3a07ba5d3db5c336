// What the model wrote at each evaluation: a row for each prompt, a column for each step, side by side over time.

import { api } from '../api.js';
import { h, show as fill } from '../dom.js';
import { whole } from '../format.js';
import { emptyState } from '../parts.js';
import { jobPath } from '../wishes.js';

const MOST = 60; // evaluations shown

// {element, load(), add(facts)}
export function makeSamples(jobId, signal) {
  const element = h('div', { class: 'stack' });
  let takes = []; // oldest first: {step, samples: [{prompt, text, ended}]}

  function draw() {
    if (!takes.length) {
      fill(element, emptyState('No samples', 'A job with `sample_prompts` in its recipe writes a sample for each prompt at every evaluation, so that one can read how it learns.'));
      return;
    }
    const old = element.querySelector('.samples');
    const atEnd = !old || old.scrollLeft + old.clientWidth > old.scrollWidth - 40;
    const prompts = [...new Set(takes.flatMap((take) => take.samples.map((sample) => sample.prompt)))];
    const box = h('div', { class: 'table-box samples', tabindex: '0', role: 'region', 'aria-label': 'Samples by step' },
      h('table', {},
        h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Prompt'), takes.map((take) => h('th', { scope: 'col' }, `Step ${whole(take.step)}`)))),
        h('tbody', {}, prompts.map((prompt) => h('tr', {},
          h('th', { scope: 'row' }, h('pre', {}, prompt)),
          takes.map((take) => h('td', {}, cell(take.samples.find((sample) => sample.prompt === prompt)))))))));
    const scrolled = [old?.scrollLeft ?? 0, old?.scrollTop ?? 0];
    fill(element, box);
    // The newest is shown, unless the reader looks at an older one.
    box.scrollLeft = atEnd ? box.scrollWidth : scrolled[0];
    box.scrollTop = scrolled[1];
  }

  return {
    element,
    async load() {
      const { data } = await api.get(`${jobPath(jobId)}/events`, { query: { code: 'sampled', limit: MOST }, signal });
      takes = data.map((event) => event.data).reverse();
      draw();
    },
    add(facts) {
      if (takes.some((take) => take.step === facts.step)) return;
      takes = [...takes, facts].slice(-MOST);
      draw();
    },
  };
}

function cell(sample) {
  if (!sample) return null;
  return [h('pre', {}, sample.text), h('p', { class: 'muted below' }, sample.ended ? 'ended by itself' : 'cut at its longest')];
}

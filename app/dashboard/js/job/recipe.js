// The recipe: what was given beside what was made of it.

import { h, show as fill } from '../dom.js';
import { DASH } from '../format.js';
import { table } from '../parts.js';

// OpenAI's names for fields of ours.
const ALIASES = { n_epochs: 'num_epochs', batch_size: 'total_train_batch_size', training_steps: 'max_steps' };

// {element, set(job)}
export function makeRecipe() {
  const all = h('input', { type: 'checkbox', onchange: () => draw() });
  const area = h('div');
  const element = h('div', { class: 'stack' },
    h('div', { class: 'row spread' }, h('p', { class: 'muted' }, 'What was given, and what the trainer made of it before the first step.'), h('label', { class: 'check' }, all, 'Also what was left as it is')),
    area);
  let job = null;
  let drawn = null;

  function draw() {
    const key = JSON.stringify([job.given, job.recipe, all.checked]);
    if (key === drawn) return;
    drawn = key;
    const given = new Map(Object.entries(job.given).map(([name, value]) => [ALIASES[name] ?? name, [name, value]]));
    const chosen = (name) => given.has(name) || CHOSEN.includes(name);
    const names = Object.keys(job.recipe).filter((name) => all.checked || chosen(name)).sort((a, b) => given.has(b) - given.has(a));
    fill(area, table(['Hyperparameter', 'Given', 'Used'], names.map((name) => {
      const [as, value] = given.get(name) ?? [];
      return [
        h('code', {}, name),
        as === undefined ? h('span', { class: 'muted' }, DASH) : [h('code', {}, say(value)), as === name ? null : h('span', { class: 'muted' }, ` as ${as}`)],
        h('code', { class: as !== undefined && say(value) !== say(job.recipe[name]) ? 'changed' : null }, say(job.recipe[name])),
      ];
    }), { label: 'Recipe' }));
  }

  return {
    element,
    set(now) {
      job = now;
      draw();
    },
  };
}

// What the trainer chooses where it is not told.
const CHOSEN = [
  'num_epochs', 'total_train_batch_size', 'train_batch_size', 'gradient_accumulation_steps', 'learning_rate', 'lr_scheduler_type',
  'lr_scheduler_warmup_steps', 'max_length', 'mixed_precision_training', 'eval_steps', 'save_steps', 'seed',
];

function say(value) {
  if (value === null || value === undefined) return 'none';
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

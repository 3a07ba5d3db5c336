// The playground: two models, the same question.

import { h, show as fill } from '../dom.js';
import { writers } from '../answers.js';
import { asking } from '../asking.js';
import { button, head } from '../parts.js';
import { keep } from '../router.js';

export const title = 'Playground';
const MOST = 4;

export async function show(root, params, signal) {
  const names = await writers(signal);
  const newest = names.find((name) => name.startsWith('ft:'));
  const given = (params.models ?? '').split(',').filter(Boolean);
  let chosen = given.length ? given : [names.find((name) => !name.startsWith('ft:')), newest].filter(Boolean);
  if (!chosen.length) chosen = ['']; // a key may write with models that it may not list
  if (chosen.length === 1) chosen = [chosen[0], newest && newest !== chosen[0] ? newest : ''];
  const asked = asking({ models: chosen.slice(0, MOST), choose: true, signal, onModels: (now) => {
    chosen = now;
    keep('playground', { models: now.filter(Boolean).join(',') });
  } });
  const more = button('Add a model', { onclick: () => turnTo([...chosen, '']) });
  const fewer = button('Remove the last', { kind: 'quiet', onclick: () => turnTo(chosen.slice(0, -1)) });

  function turnTo(now) {
    chosen = now;
    asked.setModels(now);
    keep('playground', { models: now.filter(Boolean).join(',') });
    limit();
  }

  function limit() {
    more.disabled = chosen.length >= MOST;
    fewer.disabled = chosen.length <= 1;
  }

  limit();
  fill(root, head(title, { about: 'The same question for models side by side: base and tuned, or two checkpoints.', actions: [fewer, more] }),
    h('datalist', { id: 'writers' }, names.map((name) => h('option', { value: name }))), asked.element);
}

// The model card of what a job made.

import { api } from '../api.js';
import { h, show as fill } from '../dom.js';
import { renderMarkdown } from '../markdown.js';
import { emptyState } from '../parts.js';

// {element, load(name)}; `name` is null while there is no model.
export function makeCard(signal) {
  const element = h('div');
  let loaded;
  return {
    element,
    async load(name) {
      if (loaded === name) return;
      loaded = name;
      if (!name) {
        fill(element, emptyState('No model yet', 'Its card is written when the job has succeeded.'));
        return;
      }
      const path = `models/${encodeURIComponent(name)}/files/README.md`;
      const text = await api.raw(path, { signal }).then((answer) => answer.text(), (error) => {
        if (error.status === 404) return null;
        loaded = undefined;
        throw error;
      });
      if (text === null) fill(element, emptyState('No card', 'The model has been deleted, or has none.'));
      else fill(element, h('article', { class: 'markdown' }, renderMarkdown(text)));
    },
  };
}

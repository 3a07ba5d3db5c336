// The checkpoints that are kept, each usable at once: to be tried, or downloaded.

import { api } from '../api.js';
import { download, modelPath } from '../download.js';
import { h, show as fill } from '../dom.js';
import { bytes, DASH, number, time, whole } from '../format.js';
import { act, button, buttonLink, emptyState, table } from '../parts.js';
import { openPermissions } from '../permissions.js';
import { link } from '../router.js';
import { newest } from '../stream.js';
import { jobPath } from '../wishes.js';

// {element, load()}
export function makeCheckpoints(jobId, signal) {
  const element = h('div', { class: 'stack' });
  let drawn = null;

  function draw(list) {
    const key = JSON.stringify(list);
    if (key === drawn) return; // the reader may be on one of its buttons
    drawn = key;
    if (!list.length) {
      fill(element, emptyState('No checkpoint yet', 'One is saved at each epoch, or as `save_steps` says, and when a job is paused or cancelled.'));
      return;
    }
    const columns = [{ text: 'Step', class: 'num' }, 'Name', { text: 'Training loss', class: 'num' }, { text: 'Validation loss', class: 'num' }, { text: 'Size', class: 'num' }, 'Saved', { text: 'Use', class: 'nowrap' }];
    fill(element, table(columns, list.map((row) => [
      whole(row.step_number),
      [h('span', { class: 'mono' }, row.fine_tuned_model_checkpoint), row.best ? h('span', { class: 'badge plain', dataset: { status: 'succeeded' } }, 'best') : null, row.pinned ? h('span', { class: 'badge plain', title: 'It stays until it is unpinned' }, 'pinned') : null],
      number(row.metrics.train_loss ?? null),
      number(row.metrics.full_valid_loss ?? row.metrics.valid_loss ?? null),
      bytes(row.bytes),
      h('span', { class: 'nowrap' }, row.created_at ? time(row.created_at) : DASH),
      h('div', { class: 'row-actions' }, useButtons(row.fine_tuned_model_checkpoint, signal), pinButton(row),
        button('Share', { small: true, title: 'Who may use it', onclick: () => openPermissions(row.fine_tuned_model_checkpoint, signal) })),
    ]), { label: 'Checkpoints' }));
  }

  function pinButton(row) {
    const title = row.pinned ? 'Let it go when its time has come' : 'Keep it, whatever else is cleared away';
    const pin = button(row.pinned ? 'Unpin' : 'Pin', { small: true, title, onclick: () => act(pin, async () => {
      const path = `${jobPath(jobId)}/checkpoints/${row.id}/pin`;
      await (row.pinned ? api.del(path, { signal }) : api.post(path, undefined, { signal }));
      await load();
    }) });
    return pin;
  }

  const load = newest(() => api.get(`${jobPath(jobId)}/checkpoints`, { query: { limit: 100 }, signal }), ({ data }) => draw(data));

  return { element, load };
}

// "Try" and "Download" for a model or checkpoint of that name.
export function useButtons(name, signal) {
  const get = button('Download', { small: true, onclick: () => act(get, () => download(`${modelPath(name)}/download`, `${name.replaceAll(':', '-')}.zip`, signal)) });
  return [buttonLink('Try', link('playground', { models: name }), { small: true }), get];
}

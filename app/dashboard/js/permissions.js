// Who else may use a model or a checkpoint: listed, permitted, taken back.

import { api } from './api.js';
import { h, show as fill } from './dom.js';
import { ago, time } from './format.js';
import { act, button, dialog, errorState, field, skeleton, table, toast } from './parts.js';

const PAGE = 100;

// An element with the list and a form; it loads itself.
export function makePermissions(name, signal) {
  const path = `fine_tuning/checkpoints/${encodeURIComponent(name)}/permissions`;
  const list = h('div', { class: 'stack' }, skeleton(1));
  const who = h('input', { name: 'project', autocomplete: 'off', maxlength: 256 });
  const asked = field('Owner', who, { hint: 'The name that their API keys carry. They may then generate with it and train from it; downloading, sharing and deleting stay yours.' });
  const permit = button('Permit', { type: 'submit' });

  async function load() {
    try {
      const rows = [];
      let page = null;
      do {
        page = await api.get(path, { query: { limit: PAGE, after: page?.last_id }, signal });
        rows.push(...page.data);
      } while (page.has_more);
      draw(rows);
    } catch (error) {
      if (!signal.aborted) fill(list, errorState(error, load));
    }
  }

  function draw(rows) {
    if (!rows.length) {
      fill(list, h('p', { class: 'muted' }, 'Nobody but you.'));
      return;
    }
    fill(list, table(['Owner', { text: 'Since', class: 'nowrap' }, { text: h('span', { class: 'sr' }, 'Actions'), class: 'num nowrap' }], rows.map((row) => [
      row.project_id, h('span', { title: time(row.created_at) }, ago(row.created_at)),
      button('Take back', { small: true, kind: 'danger', title: `Take it back from ${row.project_id}`, onclick: (event) => act(event.target, () => takeBack(row)) }),
    ]), { label: 'Who may use it' }));
  }

  async function takeBack(row) {
    try {
      await api.del(`${path}/${row.id}`, { signal });
    } catch (error) {
      if (error.status !== 404) throw error; // somebody was faster
    }
    toast(`${row.project_id} may not use it any more.`);
    await load();
  }

  const form = h('form', { class: 'asked', novalidate: true, onsubmit: (event) => {
    event.preventDefault();
    asked.refuse(null);
    act(permit, async () => {
      const owner = who.value.trim();
      try {
        await api.post(path, { project_ids: [owner] }, { signal });
      } catch (error) {
        if (!error.param?.startsWith('project_ids')) throw error;
        asked.refuse(error.message);
        who.focus();
        return;
      }
      who.value = '';
      toast(`${owner} may use it.`);
      await load();
    });
  } }, asked, permit);
  load();
  return h('div', { class: 'stack' }, list, form);
}

// The same in a dialog of its own.
export function openPermissions(name, signal) {
  const box = dialog('Who may use it', h('div', { class: 'stack' }, h('p', {}, h('code', {}, name)), makePermissions(name, signal)));
  signal.addEventListener('abort', () => box.close(), { once: true });
}

// Choosing a file of a form: drop it, or take one that is there; then its report and preview beneath.

import { api } from './api.js';
import { h, show } from './dom.js';
import { filePreview, fileReport, problemList } from './fileview.js';
import { bytes, count, isolated } from './format.js';
import { badge, errorState, field, skeleton } from './parts.js';
import { dropZone, upload } from './upload.js';

const NEWEST = 200; // files to choose from

// chooser.element, value() the file's id, choose(id), refuse(message), preview(job's body); chooser.onFile(file) is told.
export function fileChooser({ label, param, changed, signal, required = false }) {
  const select = h('select', { name: param }, h('option', { value: '' }, required ? 'Choose a file …' : 'None'));
  const chosen = field(label, select);
  const below = h('div', { class: 'stack' });
  const zone = dropZone({
    label: `Drop or choose a ${label.toLowerCase()}`,
    hint: 'JSON Lines, text, CSV, TSV or Parquet',
    take: async (file, progress) => {
      chosen.refuse(null);
      try {
        const made = await upload(file, { onProgress: progress, signal });
        add(made, true);
        await choose(made.id);
        changed();
      } catch (error) {
        if (error.name !== 'AbortError') chosen.refuse(error.message);
      }
    },
  });
  const element = h('div', { class: 'stack chooser' }, h('div', { class: 'pair' }, chosen, zone), below);
  const known = new Map();
  let shown = null;
  const listed = api.get('files', { query: { purpose: 'fine-tune', limit: NEWEST }, signal })
    .then((page) => page.data.forEach((file) => add(file)))
    .catch((error) => { if (!signal.aborted) chosen.refuse(error.message); });

  function add(file, first = false) {
    if (!known.has(file.id)) {
      const option = h('option', { value: file.id }, `${isolated(file.filename)} · ${count(file.rows, 'row')}${file.status === 'error' ? ' · has problems' : ''}`);
      if (first) select.options[0].after(option);
      else select.append(option);
    }
    known.set(file.id, file);
  }

  async function choose(id) {
    await listed;
    if (id && !known.has(id)) {
      try {
        add(await api.get(`files/${id}`, { signal }), true);
      } catch (error) {
        if (signal.aborted) return;
        chosen.refuse(error.status === 404 ? 'That file is gone; choose another.' : error.message);
        return;
      }
    }
    select.value = id ?? '';
    look();
  }

  function look() {
    const file = known.get(select.value) ?? null;
    shown = null;
    show(below);
    api_.onFile?.(file);
    if (!file) return;
    show(below, h('p', { class: 'row hint' }, badge(file.status), `${file.shape ?? 'no known shape'} · ${count(file.rows, 'row')} · ${bytes(file.bytes)}`), problemList(file));
    if (file.status === 'error' || !required) return;
    const report = h('div', {}, skeleton(3));
    shown = { preview: filePreview(file, { signal, ask: (body) => api.post('fine_tuning/jobs/preview', body, { signal }) }), report, model: null, file };
    below.append(
      h('details', { class: 'part', open: true }, h('summary', {}, h('h3', {}, 'Preview')), shown.preview.element),
      h('details', { class: 'part' }, h('summary', {}, h('h3', {}, 'Report')), report));
  }

  // Asked with the job as it would be sent, so that the marks are those of its recipe.
  async function preview(body) {
    if (!shown) return;
    const mine = shown;
    const { max_length: most, excess_length: excess, train_on_inputs: inputs } = body.hyperparameters ?? body.method?.dpo?.hyperparameters ?? {};
    const seen = JSON.stringify([body.model, body.method?.type, most, excess, inputs]);
    if (mine.seen === seen) return; // nothing that shows in it has changed
    mine.seen = seen;
    mine.preview.look(body);
    if (mine.model === body.model) return;
    mine.model = body.model;
    try {
      show(mine.report, await fileReport(mine.file, { model: body.model, signal }));
    } catch (error) {
      if (!signal.aborted) show(mine.report, errorState(error));
    }
  }

  select.addEventListener('input', () => {
    chosen.refuse(null);
    look();
    changed();
  });
  const api_ = { element, value: () => select.value || null, choose, refuse: chosen.refuse, preview, onFile: null };
  return api_;
}

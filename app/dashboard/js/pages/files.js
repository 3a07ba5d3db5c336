// Files: what was uploaded, what is wrong with it, what training will make of it.

import { api } from '../api.js';
import { download } from '../download.js';
import { h, show as fill } from '../dom.js';
import { filePreview, fileReport, problemList } from '../fileview.js';
import { ago, bytes, count, isolated, time, whole } from '../format.js';
import { act, badge, button, buttonLink, confirmed, dialog, emptyState, errorState, field, gone, head, skeleton, table, toast } from '../parts.js';
import { keep, link } from '../router.js';
import { dropZone, upload } from '../upload.js';

export const title = 'Files';
const PAGE = 100;
// By purpose. Every job that ends leaves a table of what it measured: together they would bury what was uploaded.
const KINDS = [['fine-tune', 'To train on'], ['fine-tune-results', 'Measured by jobs'], ['', 'All']];
const COLUMNS = ['Name', 'Status', 'Shape', { text: 'Rows', class: 'num' }, { text: 'Size', class: 'num' }, { text: 'Uploaded', class: 'nowrap' }, { text: h('span', { class: 'sr' }, 'Actions'), class: 'num nowrap' }];

export async function show(root, params, signal) {
  const models = api.get('models', { signal }).then((page) => page.data.map((one) => one.id)).catch(() => []);
  const search = h('input', { type: 'search', placeholder: 'Search names', 'aria-label': 'Search names' });
  const list = h('div', { class: 'stack' });
  const zone = dropZone({
    label: 'Drop files here, or choose them', hint: 'JSON Lines, text, CSV, TSV or Parquet, to train or to validate on', multiple: true,
    take: async (file, progress) => {
      try {
        const made = await upload(file, { onProgress: progress, signal });
        if (kind === 'fine-tune-results') await turnTo('fine-tune');
        else {
          files.unshift(made);
          draw();
        }
        if (made.status === 'error') openFile(made);
        else toast(`${isolated(made.filename)} is here: ${count(made.rows, 'row')}.`);
      } catch (error) {
        if (error.name !== 'AbortError') toast(error.message, 'error');
      }
    },
  });
  let kind = params.kind === 'all' ? '' : KINDS.find(([one]) => one && one === params.kind)?.[0] ?? KINDS[0][0];
  let files = [];
  let more = false;
  const kinds = KINDS.map(([value, text]) => h('button', { type: 'button', onclick: () => turnTo(value).catch((error) => { if (!signal.aborted) toast(error.message, 'error'); }) }, text));
  const stay = (query = {}) => keep('files', { ...query, kind: kind === KINDS[0][0] ? null : kind || 'all' });

  async function turnTo(value) {
    kind = value;
    press();
    stay();
    await load();
  }

  function press() {
    KINDS.forEach(([value], i) => kinds[i].setAttribute('aria-pressed', String(value === kind)));
  }

  async function load(after = null) {
    const mine = kind;
    const page = await api.get('files', { query: { limit: PAGE, after, purpose: kind }, signal });
    if (mine !== kind) return;
    files = after ? [...files, ...page.data] : page.data;
    more = page.has_more;
    draw();
  }

  function draw() {
    const wanted = search.value.trim().toLowerCase();
    const shown = files.filter((file) => file.filename.toLowerCase().includes(wanted) || file.id === search.value.trim());
    if (!files.length && kind === 'fine-tune-results') {
      fill(list, emptyState('Nothing measured yet', 'What a job measured at each step is kept here as a table (CSV) when it has succeeded.', buttonLink('To the jobs', '#/jobs')));
      return;
    }
    if (!files.length) {
      fill(list, emptyState('No files yet', 'A training file holds one example a row: a text, a prompt with its completion, a conversation, or a pair of answers of which one is preferred.', buttonLink('What a file may hold', '/docs')));
      return;
    }
    const rows = shown.map((file) => [
      h('button', { type: 'button', class: 'link', onclick: () => openFile(file) }, file.filename),
      badge(file.status),
      file.purpose === 'fine-tune' ? (file.shape ?? '–') : jobOf(file) ?? file.purpose.replaceAll('-', ' '),
      whole(file.rows), bytes(file.bytes), h('span', { title: time(file.created_at) }, ago(file.created_at)),
      file.status === 'error' || file.purpose !== 'fine-tune' ? '' : buttonLink('Train', link('new', { file: file.id }), { small: true, title: `Train on ${file.filename}` }),
    ]);
    fill(list, shown.length ? table(COLUMNS, rows, { label: 'Files' }) : emptyState('Nothing by that name', 'No file among those loaded has it in its name.'),
      more ? h('div', {}, button('Load more', { onclick: (event) => act(event.target, () => load(files.at(-1).id)) })) : null);
  }

  function openFile(file) {
    stay({ id: file.id });
    const box = dialog(file.filename, fileDrawer(file, { models, signal, removed: () => {
      files = files.filter((one) => one.id !== file.id);
      box.close();
      draw();
    } }), { drawer: true });
    box.addEventListener('close', () => { if (!signal.aborted) stay(); });
    signal.addEventListener('abort', () => box.close(), { once: true });
  }

  search.addEventListener('input', draw);
  press();
  fill(root, head(title, { about: 'What jobs train on, and what they have measured.' }), zone,
    h('div', { class: 'row filters' }, h('div', { class: 'segments', role: 'group', 'aria-label': 'Kind' }, kinds), search), list);
  fill(list, skeleton(5));
  await load();
  if (!params.id) return;
  const open = files.find((file) => file.id === params.id) ?? await api.get(`files/${encodeURIComponent(params.id)}`, { signal }).catch(gone(() => stay()));
  if (open) openFile(open);
}

// A link to the job that measured it; null for other files.
function jobOf(file) {
  const [, job] = /^file-([0-9a-f]{8,})-/.exec(file.id) ?? [];
  return file.purpose === 'fine-tune-results' && job ? h('a', { href: link(`jobs/ftjob-${job}`) }, `of ftjob-${job.slice(0, 8)}`) : null;
}

// Everything about one file.
function fileDrawer(file, { models, signal, removed }) {
  const facts = [
    ['Id', h('code', {}, file.id)], ['Format', [file.format, file.shape].filter(Boolean).join(', ') || '–'], ['Rows', whole(file.rows)], ['Size', bytes(file.bytes)],
    ['Uploaded', time(file.created_at)], file.expires_at && ['Expires', time(file.expires_at)], ['SHA-256', h('code', {}, file.sha256)],
  ];
  const take = button('Download', { onclick: () => act(take, () => download(`/v1/files/${file.id}/content`, file.filename, signal)) });
  const remove = button('Delete', { kind: 'danger', onclick: () => act(remove, async () => {
    if (!await confirmed(`Delete ${isolated(file.filename)}?`, 'Its bytes are removed for good. Jobs that have used it keep their results.', 'Delete the file')) return;
    await api.del(`files/${file.id}`, { signal });
    toast(`${isolated(file.filename)} is deleted.`);
    removed();
  }) });
  const usable = file.status === 'processed' && file.purpose === 'fine-tune';
  return h('div', { class: 'stack' },
    h('div', { class: 'actions' }, usable ? buttonLink('Train on it', link('new', { file: file.id }), { kind: 'primary' }) : null, take, remove),
    h('dl', { class: 'facts' }, facts.filter(Boolean).map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])),
    problemList(file), usable ? lens(file, models, signal) : null);
}

// Report and preview through the eyes of one model.
function lens(file, models, signal) {
  const model = h('select', { name: 'model' });
  const report = h('div', { class: 'stack' }, skeleton(4));
  const preview = filePreview(file, { signal });
  async function look() {
    preview.look({ model: model.value });
    try {
      fill(report, await fileReport(file, { model: model.value, signal }));
    } catch (error) {
      if (!signal.aborted) fill(report, errorState(error, look));
    }
  }
  models.then((names) => {
    if (signal.aborted) return;
    model.append(...names.map((name) => h('option', { value: name }, name)));
    model.value = names.includes('tiny-gpt2') ? 'tiny-gpt2' : names[0];
    look();
  });
  model.addEventListener('input', look);
  return h('div', { class: 'stack' }, field('As this model reads it', model), h('h3', {}, 'Report'), report, h('h3', {}, 'Preview'), preview.element);
}

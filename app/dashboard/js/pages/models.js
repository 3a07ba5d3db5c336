// Models: those trained here, with their files and their card, and those to begin with.

import { api } from '../api.js';
import { download, modelPath } from '../download.js';
import { h, show as fill } from '../dom.js';
import { ago, bytes, time } from '../format.js';
import { makeCard } from '../job/card.js';
import { makePermissions } from '../permissions.js';
import { act, button, buttonLink, confirmed, dialog, emptyState, errorState, gone, head, skeleton, table, toast } from '../parts.js';
import { keep, link } from '../router.js';

export const title = 'Models';

export async function show(root, params, signal) {
  const search = h('input', { type: 'search', placeholder: 'Search names', 'aria-label': 'Search names' });
  const list = h('div', { class: 'stack' }, skeleton(6));
  let models = [];

  function draw() {
    const wanted = search.value.trim().toLowerCase();
    const found = models.filter((model) => model.id.toLowerCase().includes(wanted));
    const tuned = found.filter((model) => model.id.startsWith('ft:'));
    const bases = found.filter((model) => !model.id.startsWith('ft:'));
    fill(list,
      h('section', { class: 'stack' }, h('h2', {}, 'Trained here'), tuned.length ? table(
        ['Name', 'Base', { text: 'Size', class: 'num' }, { text: 'Published', class: 'nowrap' }, { text: h('span', { class: 'sr' }, 'Actions'), class: 'num nowrap' }],
        tuned.map((model) => [
          h('button', { type: 'button', class: 'link', onclick: () => openModel(model) }, model.id), model.base_model ?? '–',
          bytes(model.bytes), h('span', { title: time(model.created) }, ago(model.created)),
          buttonLink('Try', link('playground', { models: [model.base_model, model.id].filter(Boolean).join(',') }), { small: true, title: `Try ${model.id}` }),
        ]), { label: 'Models trained here' })
        : emptyState(wanted ? 'Nothing by that name' : 'No model yet', 'When a job succeeds its model is published here, with every file and its hash.', buttonLink('New job', '#/new', { kind: 'primary' }))),
      h('section', { class: 'stack' }, h('h2', {}, 'To begin with'), table(
        ['Name', 'From', { text: h('span', { class: 'sr' }, 'Actions'), class: 'num nowrap' }],
        bases.map((model) => [model.id, { finetuned: 'part of the service', local: 'a folder of this machine', huggingface: 'the Hugging Face hub, fetched when first used' }[model.owned_by] ?? model.owned_by,
          h('span', { class: 'row-actions' }, buttonLink('Try', link('playground', { models: model.id }), { small: true, title: `Try ${model.id}` }), buttonLink('Train', link('new', { model: model.id }), { small: true, title: `Train ${model.id}` }))]),
        { label: 'Base models' })));
  }

  function openModel(model) {
    keep('models', { id: model.id });
    const box = dialog('Model', modelDrawer(model, signal, () => {
      models = models.filter((one) => one.id !== model.id);
      box.close();
      draw();
    }), { drawer: true });
    box.addEventListener('close', () => { if (!signal.aborted) keep('models'); });
    signal.addEventListener('abort', () => box.close(), { once: true });
  }

  search.addEventListener('input', draw);
  fill(root, head(title, { about: 'What jobs made, and what they begin with.' }), h('div', { class: 'row' }, search), list);
  models = (await api.get('models', { signal })).data;
  draw();
  if (!params.id) return;
  const open = models.find((one) => one.id === params.id) ?? await api.get(`models/${encodeURIComponent(params.id)}`, { signal }).catch(gone(() => keep('models')));
  if (open) openModel(open);
}

function modelDrawer(model, signal, removed) {
  const path = modelPath(model.id);
  const mine = model.bytes !== undefined;
  const files = h('div', { class: 'stack' }, skeleton(4));
  const card = makeCard(signal);
  const zip = button('Download as zip', { kind: 'primary', onclick: () => act(zip, () => download(`${path}/download`, `${model.id.replaceAll(':', '-')}.zip`, signal)) });
  const remove = button('Delete', { kind: 'danger', onclick: () => act(remove, async () => {
    if (!await confirmed('Delete this model?', `${model.id} and its weights are removed for good; the job that made it stays.`, 'Delete the model')) return;
    await api.del(path, { signal });
    toast('The model is deleted.');
    removed();
  }) });
  const facts = [
    ['Name', h('code', {}, model.id)], ['Base', model.base_model], ['Owner', model.owned_by], ['Size', mine ? bytes(model.bytes) : null], ['Published', time(model.created)],
    ['Job', model.job ? h('a', { href: link(`jobs/${model.job}`) }, model.job) : null],
  ];

  async function load() {
    try {
      const { data } = await api.get(`${path}/files`, { signal });
      fill(files, table(['File', { text: 'Size', class: 'num' }, 'SHA-256', { text: h('span', { class: 'sr' }, 'Actions'), class: 'num nowrap' }], data.map((file) => {
        const take = button('Download', { small: true, title: `Download ${file.path}`, onclick: () => act(take, () => download(`${path}/files/${file.path}`, file.path, signal)) });
        return [file.path, bytes(file.bytes), h('code', { class: 'hash', title: file.sha256 }, file.sha256), take];
      }), { label: 'Files of the model' }));
      await card.load(model.id);
    } catch (error) {
      if (signal.aborted) return;
      fill(files, errorState(error, load));
    }
  }

  if (mine) load();
  return h('div', { class: 'stack' },
    h('div', { class: 'actions' }, mine ? zip : null,
      buttonLink('Try it', link('playground', { models: [model.base_model, model.id].filter(Boolean).join(',') })),
      buttonLink('Train on', link('new', { model: model.id })), mine ? remove : null),
    h('dl', { class: 'facts' }, facts.filter(([, value]) => value).map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])),
    mine ? [h('h3', {}, 'Files'), files, h('h3', {}, 'Who may use it'), makePermissions(model.id, signal), h('h3', {}, 'Model card'), card.element] : h('p', { class: 'muted' }, 'Its files are its owner’s.'));
}

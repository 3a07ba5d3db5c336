// Machines: who trains and on what, and how full the store is. Looked at anew every few seconds.

import { api } from '../api.js';
import { h, setText, show as fill } from '../dom.js';
import { ago, bytes, count, duration, whole } from '../format.js';
import { badge, emptyState, errorState, head, skeleton, table } from '../parts.js';
import { link } from '../router.js';
import { poll } from '../stream.js';

export const title = 'Machines';
const EVERY = 5000; // ms
const KINDS = ['files', 'checkpoints', 'models'];

export async function show(root, params, signal) {
  const workers = h('div', { class: 'grid' }, skeleton(4));
  const storage = h('div', { class: 'stack' }, skeleton(4));
  const cards = new Map();
  fill(root, head(title, { about: 'Who trains, on what, and how full the disk is.' }),
    h('section', { class: 'stack' }, h('h2', {}, 'Workers'), workers), h('section', { class: 'stack' }, h('h2', {}, 'Storage'), storage));

  async function lookAtWorkers() {
    const { data } = await api.get('workers', { signal });
    if (!data.length) {
      cards.clear();
      fill(workers, emptyState('No worker has been heard of', 'Jobs wait in the queue until one comes. “finetuned up” starts one; on other machines it is “celery -A worker.main worker”.'));
      return;
    }
    const gone = [...cards.keys()].filter((id) => !data.some((worker) => worker.id === id));
    for (const id of gone) cards.delete(id);
    for (const worker of data) {
      if (!cards.has(worker.id)) cards.set(worker.id, workerCard());
      cards.get(worker.id).tell(worker);
    }
    const wanted = data.map((worker) => cards.get(worker.id).element);
    if (wanted.length !== workers.children.length || wanted.some((element, i) => workers.children[i] !== element)) fill(workers, wanted);
  }

  // The two need different scopes: a key that lacks one still sees the other.
  const failed = (place, look) => function tell(error) {
    if (!signal.aborted) fill(place, errorState(error, () => look().catch(tell)));
  };
  const lookAtStorage = async () => fill(storage, storageView(await api.get('storage', { signal })));
  poll(lookAtWorkers, EVERY, signal, failed(workers, lookAtWorkers));
  poll(lookAtStorage, 6 * EVERY, signal, failed(storage, lookAtStorage));
}

// A card whose texts change in place.
function workerCard() {
  const status = badge('idle');
  const name = h('h3', {});
  const facts = ['Slots', 'Labels', 'Devices', 'Jobs', 'Last heard of', 'Up for', 'Version'].map((text) => [text, h('dd', {})]);
  const [slots, labels, devices, jobs, seen, up, version] = facts.map(([, value]) => value);
  let drawn = '';
  const element = h('article', { class: 'card stack' }, h('div', { class: 'row spread' }, name, status),
    h('dl', { class: 'facts' }, facts.map(([text, value]) => [h('dt', {}, text), value])));

  function tell(worker) {
    status.set(!worker.alive ? 'failed' : worker.draining ? 'paused' : worker.busy ? 'running' : 'active');
    status.textContent = !worker.alive ? 'silent' : worker.draining ? 'draining' : worker.busy ? 'busy' : 'free';
    setText(name, worker.host);
    name.title = worker.id;
    setText(slots, `${whole(worker.busy)} of ${whole(worker.slots)} taken`);
    setText(labels, worker.labels?.join(', ') || 'none');
    setText(seen, ago(worker.seen_at));
    setText(up, duration(worker.seen_at - worker.started_at));
    setText(version, worker.version);
    const now = JSON.stringify([worker.devices, worker.jobs, worker.busy]);
    if (now === drawn) return;
    drawn = now;
    fill(devices, worker.devices === null ? 'not told' : worker.devices.length ? worker.devices.map(gpu) : 'its processors, no GPU');
    const others = worker.busy - worker.jobs.length;
    fill(jobs, worker.jobs.map((id) => h('div', {}, h('a', { href: link(`jobs/${id}`) }, id))),
      others > 0 ? `${worker.jobs.length ? 'and ' : ''}${count(others, 'job')} of others` : worker.jobs.length ? null : 'none');
  }

  return { element, tell };
}

function gpu(device) {
  const share = device.memory_bytes && device.used_bytes !== null ? Math.min(1, device.used_bytes / device.memory_bytes) : null;
  return h('div', { class: 'stack' },
    h('span', {}, device.name, device.memory_bytes ? `, ${share === null ? '' : `${bytes(device.used_bytes)} of `}${bytes(device.memory_bytes)}` : ''),
    share === null ? null : h('div', { class: 'meter', 'aria-hidden': 'true' }, h('span', { class: 'rest', style: { width: `${100 * share}%` } })));
}

function storageView(found) {
  const { disk, key } = found;
  const facts = [
    ['Yours', `${bytes(found.bytes)} in ${KINDS.map((kind) => count(found[kind].count, kind.slice(0, -1))).join(', ')}`],
    ['Your key', key.limit_bytes === null ? `${bytes(key.used_bytes)}, no limit` : `${bytes(key.used_bytes)} of ${bytes(key.limit_bytes)}`],
    disk && ['Disk', `${bytes(disk.free_bytes)} free of ${bytes(disk.total_bytes)}${disk.least_free_bytes ? `; below ${bytes(disk.least_free_bytes)} no file or job is taken` : ''}`],
  ].filter(Boolean);
  const all = found.owners ?? [{ owner: found.owner, ...found }];
  const total = Math.max(1, ...all.map((one) => one.bytes));
  const rows = all.map((one) => [one.owner, ...KINDS.map((kind) => bytes(one[kind].bytes)), bytes(one.bytes),
    h('div', { class: 'meter', 'aria-hidden': 'true' }, KINDS.map((kind) => h('span', { class: kind, style: { width: `${(100 * one[kind].bytes) / total}%` } })))]);
  return [
    h('div', { class: 'card stack' }, h('dl', { class: 'facts' }, facts.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])),
      disk ? h('div', { class: 'meter', role: 'img', 'aria-label': `The disk is ${Math.round(100 - (100 * disk.free_bytes) / disk.total_bytes)} % full` },
        h('span', { class: 'rest', style: { width: `${100 - (100 * disk.free_bytes) / disk.total_bytes}%` } })) : null),
    rows.length ? table(['Owner', ...KINDS.map((kind) => ({ text: kind[0].toUpperCase() + kind.slice(1), class: 'num' })), { text: 'Together', class: 'num' }, { text: h('span', { class: 'legend' }, KINDS.map((kind) => h('span', {}, h('i', { class: `dot ${kind}` }), kind))), class: 'wide' }], rows, { label: 'Storage by owner' }) : h('p', { class: 'muted' }, 'Nobody has stored anything yet.'),
  ];
}

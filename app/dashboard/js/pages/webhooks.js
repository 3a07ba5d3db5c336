// Webhooks: who is told when a job ends, what was sent to them, and sending it again.

import { api } from '../api.js';
import { codeButton } from '../code.js';
import { h, show as fill } from '../dom.js';
import { ago, count, time, whole } from '../format.js';
import { act, badge, button, confirmed, dialog, emptyState, field, head, skeleton, table, toast } from '../parts.js';
import { showSecret } from './keys.js';

export const title = 'Webhooks';
const EVENTS = [['fine_tuning.job.succeeded', 'a job succeeded'], ['fine_tuning.job.failed', 'a job failed'], ['fine_tuning.job.cancelled', 'a job was cancelled']];
const ONCE = 'This is the only time it is shown. A receiver checks with it that a message is ours.';

export async function show(root, params, signal) {
  const list = h('div', { class: 'stack' }, skeleton(4));

  async function load() {
    const { data } = await api.get('webhook_endpoints', { query: { limit: 100 }, signal });
    fill(list, data.length ? data.map((endpoint) => endpointCard(endpoint, signal, load))
      : emptyState('Nobody is told yet', 'An endpoint is a URL of yours that gets a signed message when a job ends, tried again for three days until it answers.', button('New endpoint', { kind: 'primary', onclick: () => endpointForm({ signal, done: load }) })));
  }

  fill(root, head(title, { about: 'Who is told when a job ends.', actions: [button('New endpoint', { kind: 'primary', onclick: () => endpointForm({ signal, done: load }) })] }), list);
  await load();
}

function endpointCard(endpoint, signal, load) {
  const path = `webhook_endpoints/${endpoint.id}`;
  const status = badge(endpoint.disabled ? 'failed' : 'active');
  if (endpoint.disabled) status.textContent = 'disabled: it answered 410';
  const outcome = h('p', { class: 'hint', role: 'status' });
  const deliveries = h('div', { class: 'stack' });
  const kind = h('select', { 'aria-label': `What to send to ${endpoint.name}` }, EVENTS.map(([value, text]) => h('option', { value }, text)));

  const test = button('Send a test', { small: true, onclick: () => act(test, async () => {
    outcome.textContent = 'Sending …';
    try {
      const found = await api.post(`${path}/test`, { event_type: kind.value }, { signal });
      outcome.textContent = `The receiver answered ${found.status_code}.`;
    } catch (error) {
      outcome.textContent = error.message;
    }
  }) });
  const turn = button('New secret', { small: true, onclick: () => act(turn, async () => {
    if (!await confirmed(`A new secret for ${endpoint.name}?`, 'For another 24 hours messages are signed with the old one too, so that the receiver can change over.', 'Make a new secret', { kind: 'primary' })) return;
    const made = await api.post(`${path}/rotate_secret`, { keep_old_secret_active_for_24_hours: true }, { signal });
    showSecret(`The new secret of ${endpoint.name}`, made.signing_secret, ONCE);
    await load();
  }) });
  const remove = button('Delete', { small: true, kind: 'danger', onclick: () => act(remove, async () => {
    if (!await confirmed(`Delete ${endpoint.name}?`, 'What waits for it is never sent.', 'Delete the endpoint')) return;
    await api.del(path, { signal });
    toast(`${endpoint.name} is deleted.`);
    await load();
  }) });
  const box = h('details', { class: 'part' }, h('summary', {}, h('h3', {}, 'Deliveries')), deliveries);
  box.addEventListener('toggle', () => { if (box.open) showDeliveries(path, deliveries, signal); });
  return h('article', { class: 'card stack', 'aria-label': endpoint.name },
    h('div', { class: 'row spread' }, h('h2', {}, endpoint.name), status),
    h('dl', { class: 'facts' }, [['URL', h('code', {}, endpoint.url)], ['Told when', EVENTS.filter(([value]) => endpoint.event_types.includes(value)).map(([, text]) => text).join(', ')], ['Secret', h('code', {}, endpoint.signing_secret_hint)], ['Made', time(endpoint.created_at)]]
      .map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])),
    h('div', { class: 'row spread' },
      h('div', { class: 'row test-row' }, kind, test),
      h('div', { class: 'actions' }, button('Change', { small: true, onclick: () => endpointForm({ endpoint, signal, done: load }) }), turn, remove)),
    outcome, box);
}

async function showDeliveries(path, place, signal) {
  fill(place, skeleton(3));
  const found = [];
  async function load(after = null) {
    const page = await api.get(`${path}/deliveries`, { query: { limit: 20, after }, signal });
    found.push(...page.data);
    const rows = found.map((delivery) => {
      const again = button('Send again', { small: true, onclick: () => act(again, async () => {
        Object.assign(delivery, await api.post(`${path}/deliveries/${delivery.id}/redeliver`, {}, { signal }));
        toast('It is sent again, at once.');
        showDeliveries(path, place, signal);
      }) });
      const status = badge(delivery.status === 'delivered' ? 'succeeded' : delivery.status);
      status.textContent = delivery.status;
      return [status, delivery.event.type?.replace('fine_tuning.job.', '') ?? '–', h('code', {}, delivery.event.data?.id ?? '–'), whole(delivery.attempts),
        delivery.next_attempt_at ? `next ${time(delivery.next_attempt_at)}` : ago(delivery.ended_at ?? delivery.created_at),
        h('span', { class: 'row-actions' }, delivery.log?.length ? button('Log', { small: true, onclick: () => showLog(delivery) }) : null, again)];
    });
    fill(place, rows.length ? table(['Status', 'Event', 'Job', { text: 'Attempts', class: 'num' }, { text: 'When', class: 'nowrap' }, { text: h('span', { class: 'sr' }, 'Actions'), class: 'num nowrap' }], rows, { label: 'Deliveries' })
      : h('p', { class: 'muted' }, 'Nothing has been sent yet. Tests are not listed.'),
    page.has_more ? h('div', {}, button('Load more', { small: true, onclick: (event) => act(event.target, () => load(found.at(-1).id)) })) : null);
  }
  try {
    await load();
  } catch (error) {
    if (!signal.aborted) fill(place, h('p', { class: 'notice bad' }, error.message));
  }
}

function showLog(delivery) {
  dialog(`${count(delivery.attempts, 'attempt')} of ${delivery.id}`, h('div', { class: 'stack' },
    h('pre', { class: 'code', tabindex: '0' }, delivery.log.map((entry) => JSON.stringify(entry, null, 1)).join('\n')),
    h('h3', {}, 'What was sent'), h('pre', { class: 'code', tabindex: '0' }, JSON.stringify(delivery.event, null, 2))));
}

// To make an endpoint, or to change one.
function endpointForm({ endpoint = null, signal, done }) {
  const name = h('input', { name: 'name', value: endpoint?.name ?? '', maxlength: 256, required: true, autocomplete: 'off' });
  const url = h('input', { name: 'url', type: 'url', value: endpoint?.url ?? '', required: true, autocomplete: 'off', placeholder: 'https://' });
  const fields = { name: field('Name', name, { hint: 'For people.' }), url: field('URL', url, { hint: 'It takes a POST, by https.' }) };
  const kinds = EVENTS.map(([value, text]) => [value, h('input', { type: 'checkbox', name: value, checked: endpoint ? endpoint.event_types.includes(value) : true }), text]);
  const kindsError = h('p', { class: 'field-error', hidden: true });
  const send = button(endpoint ? 'Change the endpoint' : 'Make the endpoint', { kind: 'primary', type: 'submit' });
  const body = () => ({ name: name.value.trim(), url: url.value.trim(), event_types: kinds.filter(([, box]) => box.checked).map(([value]) => value) });

  async function submit(event) {
    event.preventDefault();
    for (const one of Object.values(fields)) one.refuse(null);
    kindsError.hidden = true;
    send.disabled = true;
    try {
      const made = await api.post(endpoint ? `webhook_endpoints/${endpoint.id}` : 'webhook_endpoints', body(), { signal });
      box.close();
      if (made.signing_secret) showSecret(`The secret of ${made.name}`, made.signing_secret, ONCE);
      else toast('The endpoint is changed.');
      await done();
    } catch (error) {
      if (fields[error.param]) fields[error.param].refuse(error.message);
      else if (error.param?.startsWith('event_types')) {
        kindsError.textContent = error.message;
        kindsError.hidden = false;
      } else if (error.name !== 'AbortError') toast(error.message, 'error');
    } finally {
      send.disabled = false;
    }
  }

  const box = dialog(endpoint ? `Change ${endpoint.name}` : 'New endpoint', h('form', { class: 'stack', novalidate: true, onsubmit: submit },
    fields.name, fields.url,
    h('fieldset', {}, h('legend', {}, 'Told when'), kinds.map(([, input, text]) => h('label', { class: 'check' }, input, text)), kindsError),
    h('div', { class: 'actions end' }, codeButton(() => ({ path: endpoint ? `webhook_endpoints/${endpoint.id}` : 'webhook_endpoints', body: body() })), send)));
}

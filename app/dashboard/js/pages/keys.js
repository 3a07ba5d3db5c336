// API keys: one's own, and for admins everybody's: made, changed, revoked.

import { api } from '../api.js';
import { h, show as fill } from '../dom.js';
import { ago, bytes, DASH, time, whole } from '../format.js';
import { codeButton } from '../code.js';
import { act, badge, button, confirmed, copy, dialog, emptyState, field, head, skeleton, table, toast } from '../parts.js';

export const title = 'Keys';
const DAY = 86400;
const GIB = 1024 ** 3;
// What scopes are about, as a label says it; which there are, the service tells.
const ABOUT = { files: 'Files and uploads', generate: 'Generation', admin: 'All keys, audit log' };
const VERBS = { read: 'see', write: 'see and change' };
const LIMITS = [['requests_per_minute', 'Requests a minute', 1], ['running_jobs', 'Jobs at a time', 1], ['storage_bytes', 'Storage in GB', GIB]];
const ENDS = [['', 'never'], [String(DAY), 'in a day'], [String(7 * DAY), 'in a week'], [String(30 * DAY), 'in 30 days'], [String(90 * DAY), 'in 90 days'], [String(365 * DAY), 'in a year']];

export async function show(root, params, signal) {
  const own = await api.get('api_keys/me', { signal });
  const isAdmin = own.scopes.some((scope) => scope.startsWith('admin:'));
  const mayMake = own.scopes.includes('admin:write');
  const list = h('div', { class: 'stack' }, skeleton(4));
  const revoked = h('input', { type: 'checkbox' });
  let keys = [];

  async function load() {
    const found = [];
    let page = null;
    do {
      page = await api.get('api_keys', { query: { limit: 1000, after: page?.last_id }, signal });
      found.push(...page.data);
    } while (page.has_more);
    keys = found;
    draw();
  }

  function draw() {
    const shown = keys.filter((key) => revoked.checked || !key.revoked_at);
    fill(list, table(['Name', 'Owner', 'Key', 'May', { text: 'Last used', class: 'nowrap' }, 'State', { text: h('span', { class: 'sr' }, 'Actions'), class: 'num nowrap' }], shown.map((key) => [
      key.name, key.owner, h('code', {}, key.redacted_value), h('span', { class: 'scopes' }, key.scopes.join(', ')), key.last_used_at ? ago(key.last_used_at) : 'never', state(key),
      key.revoked_at || !mayMake ? '' : h('span', { class: 'row-actions' },
        button('Change', { small: true, title: `Change ${key.name}`, onclick: (event) => act(event.target, () => keyForm({ key, signal, done: load })) }),
        button('Revoke', { small: true, kind: 'danger', title: `Revoke ${key.name}`, onclick: (event) => act(event.target, () => revoke(key)) })),
    ]), { label: 'API keys' }));
  }

  async function revoke(key) {
    const mine = key.id === own.id;
    if (!await confirmed(`Revoke ${key.name}?`, mine ? 'It is the key you are using: you will be asked for another one.' : 'Whoever uses it is refused from this moment on. What was made with it stays.', 'Revoke the key')) return;
    await api.del(`api_keys/${key.id}`, { signal });
    toast(`${key.name} is revoked.`);
    await load();
  }

  revoked.addEventListener('input', draw);
  fill(root,
    head(title, { about: 'Who may ask this service, for what, and how much.', actions: [mayMake ? button('New key', { kind: 'primary', onclick: (event) => act(event.target, () => keyForm({ signal, done: load })) }) : null] }),
    h('section', { class: 'card' }, h('h2', {}, 'The key you are using'), keyFacts(own)),
    isAdmin ? h('section', { class: 'stack' }, h('div', { class: 'row spread' }, h('h2', {}, 'Everybody’s keys'), h('label', { class: 'check' }, revoked, 'Revoked ones too')), list)
      : emptyState('Others are not shown', 'Keys are made and listed by whoever has the scope admin:read or admin:write.'));
  if (isAdmin) await load();
}

function state(key) {
  const ended = key.expires_at && key.expires_at * 1000 <= Date.now();
  const element = badge(key.revoked_at ? 'revoked' : ended ? 'failed' : 'active');
  if (!key.revoked_at) element.textContent = ended ? 'expired' : key.expires_at ? `until ${time(key.expires_at)}` : 'active';
  return element;
}

function keyFacts(key) {
  const limits = LIMITS.filter(([name]) => key.limits[name] !== null).map(([name, text]) => `${text.toLowerCase().replace(' in gb', '')}: ${name === 'storage_bytes' ? bytes(key.limits[name]) : whole(key.limits[name])}`);
  const facts = [['Name', key.name], ['Owner', key.owner], ['Key', h('code', {}, key.redacted_value)], ['May', key.scopes.join(', ')], ['Limits', limits.join(', ') || 'none'], ['Ends', key.expires_at ? time(key.expires_at) : 'never'], ['Made', key.created_at ? time(key.created_at) : DASH]];
  return h('dl', { class: 'facts' }, facts.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}

// Every scope of the service, which its own document of the API lists.
async function allScopes(signal) {
  const document = await (await api.raw('/openapi.json', { signal })).json();
  return document.components.schemas.KeyRequest.properties.scopes.description.split(', ');
}

// To make a key, or with `key` to change it.
async function keyForm({ key = null, signal, done }) {
  const known = await allScopes(signal);
  const name = h('input', { name: 'name', value: key?.name ?? '', maxlength: 64, required: true, autocomplete: 'off' });
  const owner = h('input', { name: 'owner', maxlength: 64, autocomplete: 'off', placeholder: 'your own' });
  const ends = h('select', { name: 'expires_at' }, (key ? [['', 'leave as it is'], ...ENDS.slice(1)] : ENDS).map(([value, text]) => h('option', { value }, text)));
  const fields = { name: field('Name', name, { hint: 'For people: where the key is used.' }), owner: field('Owner', owner, { hint: 'Whose files, jobs and models it sees.' }), expires_at: field('Ends', ends) };
  const resources = [...new Set(known.map((scope) => scope.split(':')[0]))];
  const scopes = resources.flatMap((resource) => scopeChoices(resource, known, key));
  const scopesError = h('p', { class: 'field-error', hidden: true });
  const limits = LIMITS.map(([limit, text, unit]) => {
    const given = key?.limits[limit];
    const input = h('input', { name: limit, inputmode: 'decimal', autocomplete: 'off', placeholder: 'no limit', value: given ? String(given / unit) : '' });
    fields[`limits.${limit}`] = field(text, input);
    return [limit, input, unit];
  });
  const send = button(key ? 'Change the key' : 'Make the key', { kind: 'primary', type: 'submit' });

  function body() {
    const given = Object.fromEntries(limits.filter(([, input]) => input.value.trim()).map(([limit, input, unit]) => [limit, Number.isFinite(Number(input.value)) ? Math.round(Number(input.value) * unit) : input.value]));
    const found = { name: name.value.trim(), scopes: scopes.map((choice) => choice.value()).filter(Boolean), limits: given };
    if (!key && owner.value.trim()) found.owner = owner.value.trim();
    if (ends.value) found.expires_at = Math.round(Date.now() / 1000) + Number(ends.value);
    return found;
  }

  async function submit(event) {
    event.preventDefault();
    for (const one of Object.values(fields)) one.refuse(null);
    scopesError.hidden = true;
    send.disabled = true;
    try {
      const made = await api.post(key ? `api_keys/${key.id}` : 'api_keys', body(), { signal });
      box.close();
      if (key) toast('The key is changed.');
      else showSecret(`The key “${made.name}”`, made.value, 'This is the only time it is shown: what is kept is a hash of it.');
      await done();
    } catch (error) {
      const place = Object.keys(fields).find((one) => error.param === one);
      if (place) fields[place].refuse(error.message);
      else if (error.param?.startsWith('scopes')) {
        scopesError.textContent = error.message;
        scopesError.hidden = false;
      } else if (error.name !== 'AbortError') toast(error.message, 'error');
    } finally {
      send.disabled = false;
    }
  }

  const box = dialog(key ? `Change ${key.name}` : 'New key', h('form', { class: 'stack', novalidate: true, onsubmit: submit },
    h('div', { class: 'pair' }, fields.name, key ? null : fields.owner, fields.expires_at),
    h('fieldset', {}, h('legend', {}, 'May'), h('div', { class: 'scope-grid' }, scopes.map((choice) => choice.element)), scopesError),
    h('fieldset', {}, h('legend', {}, 'Limits'), h('div', { class: 'knobs' }, limits.map(([limit]) => fields[`limits.${limit}`]))),
    h('div', { class: 'actions end' }, codeButton(() => ({ path: key ? `api_keys/${key.id}` : 'api_keys', body: body() })), send)));
}

// How much of a resource a key may see or change; what is neither (`jobs:high`) is a choice of its own.
function scopeChoices(resource, known, key) {
  const own = known.filter((scope) => scope.split(':')[0] === resource);
  const graded = own.filter((scope) => VERBS[scope.split(':')[1]]);
  const text = ABOUT[resource] ?? `${resource[0].toUpperCase()}${resource.slice(1)}`;
  const single = own.filter((scope) => !graded.includes(scope)).map((scope) => oneChoice(scope.includes(':') ? `${text}: ${scope.split(':')[1]}` : text, [[scope, 'yes']], 'no', key, scope === 'generate'));
  return [...(graded.length ? [oneChoice(text, graded.map((scope) => [scope, VERBS[scope.split(':')[1]]]), 'nothing', key, graded.length > 1 && resource !== 'admin')] : []), ...single];
}

// `usual`: whether a new key has the most of it.
function oneChoice(text, kinds, none, key, usual) {
  const select = h('select', { name: `scope-${kinds[0][0]}` }, h('option', { value: '' }, none), kinds.map(([value, said]) => h('option', { value }, said)));
  const held = key ? kinds.map(([value]) => value).filter((value) => key.scopes.includes(value)) : kinds.map(([value]) => value).filter(() => usual);
  select.value = held.at(-1) ?? '';
  return { element: field(text, select), value: () => select.value };
}

// A secret that nobody will see again.
export function showSecret(name, value, text) {
  const input = h('input', { readonly: true, value, 'aria-label': name, onfocus: (event) => event.target.select() });
  dialog(name, h('div', { class: 'stack' }, h('p', { class: 'notice warn' }, text), h('div', { class: 'secret' }, input, button('Copy', { kind: 'primary', onclick: () => copy(value) }))));
  input.select();
}

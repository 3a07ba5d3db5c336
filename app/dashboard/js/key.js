// The form that asks for the API key.

import { api, ApiError } from './api.js';
import { h } from './dom.js';
import { button, field } from './parts.js';

// A form; `take(key, remember)` gets a key that the service has accepted. `refusal`: why the one before was not.
export function askForKey(refusal, take) {
  const input = h('input', { type: 'password', name: 'key', autocomplete: 'off', spellcheck: 'false', required: true, placeholder: 'ft_…' });
  const asked = field('API key', input, { hint: 'The first one stands in the file “key” of the service’s home folder; “finetuned up” prints an address that holds it.' });
  const remember = h('input', { type: 'checkbox', name: 'remember' });
  const send = button('Open the dashboard', { kind: 'primary', type: 'submit' });
  if (refusal && refusal.code !== 'missing_api_key') asked.refuse(refusal.message);

  async function submit(event) {
    event.preventDefault();
    asked.refuse(null);
    send.disabled = true;
    try {
      await check(input.value.trim());
      take(input.value.trim(), remember.checked);
    } catch (error) {
      asked.refuse(error.message);
      input.focus();
    } finally {
      send.disabled = false;
    }
  }

  return h('div', { class: 'page narrow' },
    h('form', { class: 'card key-form', onsubmit: submit },
      h('h1', {}, 'Your API key'),
      h('p', { class: 'muted' }, 'The dashboard speaks to the API as any client does. The key stays in this browser tab.'),
      asked,
      h('label', { class: 'check' }, remember, 'Remember it on this machine'),
      h('div', { class: 'actions' }, send)));
}

async function check(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) throw new ApiError(401, { message: 'That is no API key.' });
  await api.raw('models', { headers: { authorization: `Bearer ${key}` } }).catch((error) => {
    if (error.status !== 403) throw error; // a good key without that scope
  });
}

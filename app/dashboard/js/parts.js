// What pages are made of. Every one is an element of a class in style.css.

import { ApiError } from './api.js';
import { h } from './dom.js';

// button('Save', {kind: 'primary' | 'danger' | 'quiet' | '', onclick, type, small})
export function button(text, { kind = '', onclick, type = 'button', small = false, disabled = false, title } = {}) {
  return h('button', { class: ['button', kind, small && 'small'].filter(Boolean).join(' '), type, onclick, disabled, title }, text);
}

// A link that looks like a button.
export function buttonLink(text, href, { kind = '', small = false, title } = {}) {
  return h('a', { class: ['button', kind, small && 'small'].filter(Boolean).join(' '), href, title }, text);
}

const WORDS = { validating_files: 'checking files' };

// A status as a word in its colour; badge.set(status) changes it in place.
export function badge(status) {
  const element = h('span', { class: 'badge' });
  element.set = (now) => {
    if (element.dataset.status === now) return;
    element.dataset.status = now;
    element.textContent = WORDS[now] ?? now.replaceAll('_', ' ');
  };
  element.set(status);
  return element;
}

// A labelled input; field.refuse(message) shows what is wrong with it, null takes that away.
export function field(label, input, { hint = null } = {}) {
  const id = input.id || `f-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  input.id = id;
  const error = h('p', { class: 'field-error', id: `${id}-error`, hidden: true });
  const about = hint ? h('p', { class: 'hint', id: `${id}-hint` }, hint) : null;
  const described = [about && `${id}-hint`, `${id}-error`].filter(Boolean).join(' ');
  input.setAttribute('aria-describedby', described);
  const element = h('div', { class: 'field' }, h('label', { for: id }, label), input, error, about);
  element.refuse = (message) => {
    error.textContent = message ?? '';
    error.hidden = !message;
    if (message) input.setAttribute('aria-invalid', 'true');
    else input.removeAttribute('aria-invalid');
  };
  return element;
}

// Nothing is there yet: what this place is for, and what to do.
export function emptyState(title, text, ...actions) {
  return h('div', { class: 'state' }, h('h2', {}, title), h('p', {}, text), actions.length ? h('div', { class: 'actions' }, actions) : null);
}

// What went wrong, in the service's own words, and a way on.
export function errorState(error, retry = null) {
  const known = error instanceof ApiError;
  const title = !known ? 'The dashboard made a mistake' : error.status === 0 ? 'No answer' : error.status === 404 ? 'Not found' : error.status === 403 ? 'Not allowed' : 'That did not work';
  return h('div', { class: 'state error', role: 'alert' },
    h('h2', {}, title),
    h('p', {}, error.message),
    h('div', { class: 'actions' },
      retry ? button('Try again', { kind: 'primary', onclick: () => retry() }) : null,
      h('a', { class: 'button', href: '#/jobs' }, 'To the jobs')));
}

// Grey lines where something is about to be; they take the place it will have.
export function skeleton(lines = 3) {
  return h('div', { class: 'skeleton', 'aria-hidden': 'true' }, Array.from({ length: lines }, () => h('span')));
}

// A sentence at the edge for some seconds; `kind` is '' or 'error'.
export function toast(text, kind = '') {
  const element = h('p', { class: `toast ${kind}` }, text);
  document.getElementById('toasts').append(element);
  setTimeout(() => element.remove(), kind === 'error' ? 8000 : 4000);
}

// A dialog with any content; dialog.close() ends it. `drawer` comes from the side.
export function dialog(title, content, { drawer = false } = {}) {
  const element = h('dialog', { class: drawer ? 'drawer' : '', 'aria-label': title },
    h('header', {}, h('h2', {}, title), h('button', { class: 'close', type: 'button', 'aria-label': 'Close', onclick: () => element.close() }, '×')),
    h('div', { class: 'dialog-body' }, content));
  element.addEventListener('close', () => element.remove());
  element.addEventListener('click', (event) => event.target === element && element.close());
  document.body.append(element);
  element.showModal();
  if (content.tagName === 'FORM') content.querySelector('input, textarea')?.focus(); // not on what closes it
  return element;
}

// A button that opens a list of things to do: items() → [{label, danger, run}], asked when it opens. `menu.opener` is the
// button. It lies in the browser's top layer, so that no box cuts it off; Escape and a click beside it close it.
export function menu(label, items) {
  const list = h('div', { class: 'menu', popover: 'auto', role: 'menu' });
  const opener = h('button', { class: 'button quiet small opener', type: 'button', 'aria-label': label, 'aria-haspopup': 'menu', 'aria-expanded': 'false' }, '⋯');
  opener.addEventListener('click', () => {
    list.replaceChildren(...items().map((item) => h('button', { type: 'button', role: 'menuitem', class: item.danger ? 'danger' : null, onclick: () => { list.hidePopover(); item.run(); } }, item.label)));
    list.showPopover();
    const at = opener.getBoundingClientRect();
    const below = at.bottom + list.offsetHeight + 8 < innerHeight;
    list.style.top = `${below ? at.bottom + 4 : at.top - list.offsetHeight - 4}px`;
    list.style.left = `${Math.max(8, at.right - list.offsetWidth)}px`;
    list.firstElementChild?.focus();
  });
  list.addEventListener('toggle', (event) => opener.setAttribute('aria-expanded', String(event.newState === 'open')));
  list.addEventListener('keydown', (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...list.children];
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
  });
  const element = h('span', { class: 'menu-box' }, opener, list);
  element.opener = opener;
  return element;
}

// Whether the reader means it.
export function confirmed(title, text, yes, { kind = 'danger' } = {}) {
  return new Promise((resolve) => {
    const body = h('div', {}, h('p', {}, text),
      h('div', { class: 'actions end' },
        button('Keep it as it is', { onclick: () => box.close() }),
        button(yes, { kind, onclick: () => { resolve(true); box.close(); } })));
    const box = dialog(title, body);
    box.addEventListener('close', () => resolve(false));
  });
}

// Run what a button does: it rests meanwhile, and a refusal becomes a toast. Resolves to what `work` gave, or undefined.
export async function act(element, work) {
  element.disabled = true;
  try {
    return await work();
  } catch (error) {
    if (error.name !== 'AbortError' && error.status !== 401) toast(error.message, 'error');
    return undefined;
  } finally {
    element.disabled = false;
  }
}

// For catch(): what an address names may be gone; the page without it is shown then, and what is missing told.
export const gone = (forget) => (error) => {
  if (error.status !== 404) throw error;
  toast(error.message, 'error');
  forget();
};

// A page's head: title, a line below it, buttons.
export function head(title, { about = null, actions = [] } = {}) {
  return h('div', { class: 'head' }, h('div', {}, h('h1', {}, title), about ? h('p', { class: 'muted' }, about) : null), h('div', { class: 'actions' }, actions));
}

// table(['Name', {text: 'Size', class: 'num'}], rows of cells); wide ones scroll in themselves.
export function table(columns, rows, { label } = {}) {
  const body = h('tbody', {}, rows.map((cells) => h('tr', {}, cells.map((cell, i) => h('td', { class: columns[i].class }, cell)))));
  return h('div', { class: 'table-box', tabindex: '0', role: 'region', 'aria-label': label },
    h('table', {}, h('thead', {}, h('tr', {}, columns.map((column) => h('th', { scope: 'col', class: column.class }, column.text ?? column)))), body));
}

// Tabs with their panels: [[name, label, element], …]. onOpen(name) is told which was chosen. Arrow keys go from tab to tab.
export function tabs(label, list, open, onOpen = () => {}) {
  const buttons = list.map(([name, text]) => h('button', { type: 'button', role: 'tab', id: `tab-${name}`, 'aria-controls': `panel-${name}`, onclick: () => choose(name, true) }, text));
  const panels = list.map(([name, , element]) => h('div', { role: 'tabpanel', id: `panel-${name}`, 'aria-labelledby': `tab-${name}`, tabindex: '0' }, element));
  const bar = h('div', { class: 'tabs', role: 'tablist', 'aria-label': label }, buttons);
  bar.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  });
  function choose(name, told = false) {
    list.forEach(([one], i) => {
      buttons[i].setAttribute('aria-selected', String(one === name));
      buttons[i].tabIndex = one === name ? 0 : -1;
      panels[i].hidden = one !== name;
    });
    if (told) onOpen(name);
  }
  choose(list.some(([name]) => name === open) ? open : list[0][0]);
  return h('section', { class: 'tabbed' }, bar, panels);
}

// Copy to the clipboard, or say that the browser refuses.
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast('Copied.');
  } catch {
    const area = h('textarea', { class: 'mono', rows: 8, readonly: true });
    area.value = text;
    dialog('Copy this', area);
    area.select();
  }
}


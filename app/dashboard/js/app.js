// The dashboard: start, navigation, the key. A client of the public API like any other; no build step.
//
// How it is made:
// - dom.js      h(tag, attributes, ...children) makes elements; data becomes text nodes, innerHTML is used nowhere.
//               Styles by classes of style.css, or h's `style` object: the Content-Security-Policy refuses attributes.
// - api.js      api.get/post/del(path, …) below /v1; a refusal is an ApiError {status, message, param, code}.
// - stream.js   follow() reads a job's stream, messages() one answer's events, poll() looks again gently.
// - router.js   the fragment chooses the page; link(path, query) makes addresses, keep() holds a page's own state there.
// - parts.js    what pages are made of: badge, button, field, dialog, toast, empty and error states, skeletons.
// - chart.js    Plotly behind a few verbs, loaded only by pages that draw.
// - format.js   numbers, bytes, durations and times as people read them.
// - pages/X.js  exports `title` (a string) and `show(root, params, signal)`: fill `root`; `params` are the address's;
//               `signal` fires when the reader leaves: pass it to every api call, poll and listener. Errors that show()
//               throws are drawn by the shell with a button to try again.
// - Handing over: sessionStorage 'new-job' holds the JSON body of a job with which #/new begins.
// Live parts change texts and classes in place (setText), never by building anew what the reader may be using.

import { ApiError, forgetKey, getKey, setKey } from './api.js';
import { h, show as fill } from './dom.js';
import { askForKey } from './key.js';
import { confirmed, errorState, skeleton } from './parts.js';
import { HOME, link, match } from './router.js';

const PAGES = [
  ['jobs', 'Jobs'], ['new', 'New job'], ['compare', 'Compare'], ['playground', 'Playground'], null,
  ['models', 'Models'], ['files', 'Files'], ['machines', 'Machines'], null,
  ['keys', 'Keys'], ['webhooks', 'Webhooks'],
];
const main = document.getElementById('main');
let leaving = new AbortController();

// `#key=…`, as `finetuned up` prints it: taken, and out of the address and the history at once. A key that is kept already
// is not exchanged unasked: a link of somebody else's would have the reader work under that one's name.
async function takeKey() {
  if (!location.hash.startsWith('#key=')) return;
  const key = new URLSearchParams(location.hash.slice(1)).get('key');
  history.replaceState(null, '', `${location.pathname}${HOME}`);
  const before = getKey();
  if (!key || key === before) return;
  if (before && !await confirmed('Use another key?', 'The address that you opened holds another API key than the one this browser keeps.', 'Use the key of the address', { kind: 'primary' })) return;
  setKey(key, localStorage.getItem('key') !== null);
}

async function open() {
  await takeKey();
  if (location.hash.length < 2) history.replaceState(null, '', HOME);
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const { page, params } = match(location.hash);
  markNav(page);
  document.getElementById('forget').hidden = !getKey();
  if (!getKey()) {
    wantKey();
    return;
  }
  const root = h('div', { class: 'page' }, skeleton(6));
  fill(main, root);
  window.scrollTo(0, 0);
  try {
    if (!page) throw new ApiError(404, { message: 'There is no such page.' });
    const module = await import(`./pages/${page}.js`);
    if (signal.aborted) return;
    document.title = `${module.title} · finetuned`;
    root.replaceChildren();
    await module.show(root, params, signal);
  } catch (error) {
    if (signal.aborted || error.name === 'AbortError') return;
    if (error.status === 401) return; // the key is asked for
    if (!(error instanceof ApiError)) console.error(error);
    fill(root, errorState(error, page ? open : null));
  }
}

function wantKey(refusal = null) {
  leaving.abort();
  leaving = new AbortController();
  document.getElementById('forget').hidden = !getKey();
  document.title = 'API key · finetuned';
  fill(main, askForKey(refusal, (key, remember) => {
    setKey(key, remember);
    open();
  }));
  main.querySelector('input')?.focus();
}

function drawNav() {
  const nav = document.getElementById('nav');
  fill(nav, PAGES.map((entry) => (entry ? h('a', { href: link(entry[0]), dataset: { page: entry[0] } }, entry[1]) : h('span', { class: 'gap' }))));
  const theme = h('button', { class: 'quiet', type: 'button', onclick: () => turnTheme(theme) });
  nameTheme(theme);
  const leave = h('button', {
    class: 'quiet',
    id: 'forget',
    type: 'button',
    onclick: () => {
      forgetKey();
      open();
    },
  }, 'Forget key');
  fill(document.getElementById('tools'), theme, leave, h('a', { href: '/docs', class: 'quiet' }, 'API reference'));
}

function markNav(page) {
  for (const anchor of document.querySelectorAll('#nav a')) {
    const here = anchor.dataset.page === (page === 'job' ? 'jobs' : page);
    if (here) {
      anchor.setAttribute('aria-current', 'page');
      const row = anchor.parentElement; // on a phone a line that scrolls sideways
      row.scrollLeft = anchor.offsetLeft - row.offsetLeft - (row.clientWidth - anchor.offsetWidth) / 2;
    } else anchor.removeAttribute('aria-current');
  }
}

// Like the system, or the one or the other for ever on this machine.
const THEMES = { '': 'light', light: 'dark', dark: '' };

function nameTheme(button) {
  const theme = document.documentElement.dataset.theme ?? '';
  fill(button, `Theme: ${theme || 'system'}`);
}

function turnTheme(button) {
  const next = THEMES[document.documentElement.dataset.theme ?? ''];
  if (next) {
    document.documentElement.dataset.theme = next;
    localStorage.setItem('theme', next);
  } else {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem('theme');
  }
  nameTheme(button);
  window.dispatchEvent(new Event('theme'));
}

// g then a letter, as in many tools: j jobs, n new, p playground, m models, f files. / to the search field, if any.
const LETTERS = { j: 'jobs', n: 'new', c: 'compare', p: 'playground', m: 'models', f: 'files' };
let afterG = 0;

function press(event) {
  const typing = event.target.closest('input, textarea, select, [contenteditable], dialog');
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === '/') {
    const search = main.querySelector('input[type=search]');
    if (search) {
      event.preventDefault();
      search.focus();
    }
  } else if (event.timeStamp - afterG < 1000 && LETTERS[event.key]) location.hash = link(LETTERS[event.key]);
  afterG = event.key === 'g' ? event.timeStamp : 0;
}

document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault(); // the fragment is the router's
  main.focus();
});
window.addEventListener('hashchange', open);
window.addEventListener('key-wanted', (event) => wantKey(event.detail));
document.addEventListener('keydown', press);
drawNav();
open();

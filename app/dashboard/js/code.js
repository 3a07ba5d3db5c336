// A request as a person would send it without this page. The key is never in it, only the name of a variable that holds it.

import { h, show } from './dom.js';
import { button, copy, dialog } from './parts.js';

// What the SDK's own calls take by name; anything else of ours goes into extra_body.
const SDK = {
  'fine_tuning/jobs': ['client.fine_tuning.jobs.create', ['model', 'training_file', 'validation_file', 'suffix', 'seed', 'metadata', 'method']],
  completions: ['client.completions.create', ['model', 'prompt', 'max_tokens', 'temperature', 'top_p', 'n', 'stop', 'seed', 'presence_penalty', 'frequency_penalty', 'logprobs', 'stream', 'echo']],
  'chat/completions': ['client.chat.completions.create', ['model', 'messages', 'max_completion_tokens', 'temperature', 'top_p', 'n', 'stop', 'seed', 'presence_penalty', 'frequency_penalty', 'logprobs', 'top_logprobs', 'stream']],
};

// {method, path (below /v1), body}
export function asCurl({ path, body }) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl -sS ${location.origin}/v1/${path} \\\n  -H "Authorization: Bearer $FINETUNED_KEY" \\\n  -H "Content-Type: application/json" \\\n  -d '${quoted}'\n`;
}

export function asPython({ path, body }) {
  const start = `import os\n\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="${location.origin}/v1", api_key=os.environ["FINETUNED_KEY"])\n`;
  const [call, names] = SDK[path] ?? [null, []];
  if (!call) return `${start}print(client.post("/${path}", cast_to=object, body=${literal(body, 0)}))\n`;
  const own = Object.entries(body).filter(([name]) => !names.includes(name));
  const given = Object.entries(body).filter(([name]) => names.includes(name)).map(([name, value]) => `    ${name}=${literal(value, 4)},\n`);
  if (own.length) given.push(`    extra_body=${literal(Object.fromEntries(own), 4)},\n`);
  const made = `${call}(\n${given.join('')})`;
  return body.stream ? `${start}for chunk in ${made}:\n    print(chunk.choices)\n` : `${start}print(${made})\n`;
}

// A value as Python writes it.
function literal(value, indent) {
  const inner = ' '.repeat(indent + 4);
  if (value === null) return 'None';
  if (value === true) return 'True';
  if (value === false) return 'False';
  if (Array.isArray(value)) return `[${value.map((each) => literal(each, indent + 4)).join(', ')}]`;
  if (typeof value !== 'object') return JSON.stringify(value);
  const items = Object.entries(value).map(([name, each]) => `${inner}${JSON.stringify(name)}: ${literal(each, indent + 4)},\n`);
  return items.length ? `{\n${items.join('')}${' '.repeat(indent)}}` : '{}';
}

// A button that shows what `request()` would send, as curl and as Python, to be copied.
export function codeButton(request, { small = false } = {}) {
  return button('Copy as code', { kind: 'quiet', small, onclick: () => showCode(request()) });
}

function showCode(request) {
  const texts = { curl: asCurl(request), Python: asPython(request) };
  let chosen = 'curl';
  const code = h('pre', { class: 'code', tabindex: '0' });
  const buttons = Object.keys(texts).map((name) => h('button', { type: 'button', onclick: () => choose(name) }, name));
  function choose(name) {
    chosen = name;
    for (const one of buttons) one.setAttribute('aria-pressed', String(one.textContent === name));
    show(code, texts[name]);
  }
  choose(chosen);
  dialog('The same request as code', h('div', { class: 'stack' },
    h('p', { class: 'muted' }, 'Put your key into the variable FINETUNED_KEY; it is not in here.'),
    h('div', { class: 'row spread' }, h('div', { class: 'segments', role: 'group', 'aria-label': 'Language' }, buttons),
      button('Copy', { kind: 'primary', small: true, onclick: () => copy(texts[chosen]) })),
    code));
}
